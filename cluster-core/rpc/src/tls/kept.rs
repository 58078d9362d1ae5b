//! A worker's certificate from the built-in CA: requested at attestation, stored in one file, and renewed at half of
//! its life.
//!
//! Key, chain and CAs are in one file, since separate files could be out of step after a crash.

use std::{fs, io, path::PathBuf};

use aegis_fs::write_new;
use aegis_identity::{Fingerprint, TlsKey};
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use serde::{Deserialize, Serialize};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::{Credentials, Identity, PeerRule, Trust};

pub const FILE: &str = "node-certificate.json";

#[derive(Serialize, Deserialize, ZeroizeOnDrop)]
struct Record {
    certificate_chain: String,
    key: String,
    ca_bundle: String,
}

#[derive(Debug, Clone)]
pub struct KeptCertificate {
    path: PathBuf,
    node_id: NodeId,
    pinned: Option<Fingerprint>,
    credentials: Credentials,
}

impl KeptCertificate {
    /// Loads the stored certificate. An unusable file is reported and a new certificate requested, for which the node's
    /// key suffices.
    pub fn load(path: PathBuf, node_id: NodeId, pinned: Option<Fingerprint>) -> Result<Self> {
        let (identity, trust) = match read(&path, pinned) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(error = %error.chain(), "the kept certificate is not used");
                (None, Trust::pinned(pinned))
            }
        };
        let credentials = Credentials::new(PeerRule::Required, identity, trust)?;
        Ok(Self { path, node_id, pinned, credentials })
    }

    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Returns a request if a certificate is needed: it is missing, half of its life is over, or the controller rejects
    /// it.
    pub fn request(&self, refused: bool) -> Result<Option<TlsKey>> {
        let now_secs = now_ms() / 1000;
        match self.credentials.identity() {
            Some(identity) if !refused && !identity.facts.is_past_half(now_secs) => Ok(None),
            _ => TlsKey::generate(&self.node_id).map(Some),
        }
    }

    /// Stores an issued certificate, then uses it.
    pub fn keep(&self, key: &TlsKey, certificate_chain: &[u8], ca_bundle: &[u8]) -> Result<()> {
        let unusable = |why: &str| {
            Error::new(ErrorCode::UntrustedCa, format!("the controller issued a certificate that {why}"))
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| unusable("is not PEM"));
        let record = Record {
            certificate_chain: text(certificate_chain)?,
            key: key.key_pem.to_string(),
            ca_bundle: text(ca_bundle)?,
        };
        let (identity, trust) = record.open(self.pinned)?;
        if !identity.facts.dns_names.iter().any(|name| name == self.node_id.as_str()) {
            return Err(unusable("is not this node's"));
        }
        let failed = || {
            Error::new(
                ErrorCode::Storage,
                format!("the certificate {} cannot be written", self.path.display()),
            )
        };
        let bytes = serde_json::to_vec(&record).map(Zeroizing::new).map_err(|e| failed().source(e))?;
        write_new(&self.path, &bytes).map_err(|e| failed().source(e))?;
        self.credentials.replace(Some(identity), trust)?;
        tracing::info!("a certificate of the cluster's CA was taken");
        Ok(())
    }
}

impl Record {
    fn open(&self, pinned: Option<Fingerprint>) -> Result<(Identity, Trust)> {
        let identity = Identity::of_pem(self.certificate_chain.as_bytes(), self.key.as_bytes())?;
        Ok((identity, Trust::of_pem(self.ca_bundle.as_bytes(), pinned)?))
    }
}

fn read(path: &PathBuf, pinned: Option<Fingerprint>) -> Result<(Option<Identity>, Trust)> {
    let unusable =
        || Error::new(ErrorCode::Storage, format!("the certificate {} cannot be read", path.display()));
    let bytes = match fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((None, Trust::pinned(pinned))),
        Err(e) => return Err(unusable().source(e)),
    };
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| unusable().source(e))?;
    // The CAs are trusted even if the certificate has expired.
    let trust = Trust::of_pem(record.ca_bundle.as_bytes(), pinned)?;
    match Identity::of_pem(record.certificate_chain.as_bytes(), record.key.as_bytes()) {
        Ok(identity) => Ok((Some(identity), trust)),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the kept certificate is not used; a new one is asked for");
            Ok((None, trust))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_identity::{Authority, CertificateRequest};

    fn issue(authority: &Authority, node: &str, key: &TlsKey) -> (Vec<u8>, Vec<u8>) {
        let request = CertificateRequest::parse(&key.request_der).unwrap();
        let chain = authority.certify(&NodeId::parse(node).unwrap(), &request).unwrap();
        (chain.into_bytes(), authority.certificate_pem().as_bytes().to_vec())
    }

    #[test]
    fn certificate_is_requested_when_missing_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path(), Vec::new()).unwrap();
        let (path, node) = (directory.path().join(FILE), NodeId::parse("edge-1").unwrap());
        let load = || KeptCertificate::load(path.clone(), node.clone(), None).unwrap();
        let kept = load();
        let key = kept.request(false).unwrap().expect("there is none yet");
        let (chain, bundle) = issue(&authority, "edge-1", &key);
        kept.keep(&key, &chain, &bundle).unwrap();
        for kept in [kept, load()] {
            assert!(kept.request(false).unwrap().is_none());
            assert!(kept.request(true).unwrap().is_some());
        }
        // Truncated by a full disk or by hand: a new certificate is requested.
        fs::write(&path, &fs::read(&path).unwrap()[..100]).unwrap();
        assert!(load().request(false).unwrap().is_some());
    }

    #[test]
    fn what_is_not_this_nodes_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path(), Vec::new()).unwrap();
        let node = NodeId::parse("edge-1").unwrap();
        let kept = KeptCertificate::load(directory.path().join(FILE), node.clone(), None).unwrap();
        let (key, other) = (TlsKey::generate(&node).unwrap(), TlsKey::generate(&node).unwrap());
        let (chain, bundle) = issue(&authority, "edge-2", &key);
        assert!(kept.keep(&key, &chain, &bundle).is_err(), "another node's");
        let (chain, bundle) = issue(&authority, "edge-1", &other);
        assert!(kept.keep(&key, &chain, &bundle).is_err(), "for another key");
        assert!(kept.keep(&other, &chain, b"nonsense").is_err(), "without a CA");
        assert!(!directory.path().join(FILE).exists());
        kept.keep(&other, &chain, &bundle).unwrap();
    }
}
