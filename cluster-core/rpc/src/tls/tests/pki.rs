//! Test CA that issues good or bad leaves on request.

use std::{fs, path::Path};

use aegis_config::cluster_port::CertificatePaths;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

pub struct Pki {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Leaf with its key, as PEM.
#[derive(Clone)]
pub struct Leaf {
    pub chain: String,
    pub key: String,
}

/// Properties of a leaf.
pub struct Say {
    pub names: &'static [&'static str],
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub ended: bool,
    pub begins_later: bool,
}

impl Say {
    pub fn names(names: &'static [&'static str]) -> Self {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Self { names, usages, ended: false, begins_later: false }
    }

    fn params(&self) -> CertificateParams {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::days(2);
        params.not_after = now + Duration::days(if self.ended { -1 } else { 1 });
        if self.begins_later {
            params.not_before = now + Duration::hours(1);
        }
        params.extended_key_usages = self.usages.clone();
        params
    }
}

impl Pki {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn leaf(&self, say: &Say) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let chain = say.params().signed_by(&key, &self.issuer).unwrap().pem();
        Leaf { chain, key: key.serialize_pem() }
    }

    pub fn good(&self, names: &'static [&'static str]) -> Leaf {
        self.leaf(&Say::names(names))
    }
}

pub fn self_signed(say: &Say) -> Leaf {
    let key = KeyPair::generate().unwrap();
    Leaf { chain: say.params().self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// The three files of a node, each replaced by a rename, as tools do.
pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn new(leaf: &Leaf, bundle: &str) -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        files.put(leaf);
        files.write("ca.crt", bundle);
        files
    }

    pub fn put(&self, leaf: &Leaf) {
        self.write("node.crt", &leaf.chain);
        self.write("node.key", &leaf.key);
    }

    pub fn write(&self, name: &str, text: &str) {
        let new = self.path().join("incoming");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path().join(name)).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn paths(&self) -> CertificatePaths {
        let path = |name| self.path().join(name);
        CertificatePaths { cert: path("node.crt"), key: path("node.key"), ca: path("ca.crt") }
    }
}
