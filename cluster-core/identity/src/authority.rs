//! Built-in CA, created once in the controller's data directory. It signs the certificates of nodes on the direct link
//! and of the controller.
//!
//! The controller decides the content of a certificate. Of a node's request, only the public key and the proof of the
//! private key are used.

use std::{fmt, fs, io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use aegis_fs::write_new;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{Fingerprint, random};

const CERTIFICATE_FILE: &str = "ca-cert.pem";
const KEY_FILE: &str = "ca-key.pem";
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3653 * 86_400);
/// Lifetime of the controller's own certificate and of the nodes' certificates.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// A node whose clock is behind must be able to use its certificate.
const BACKDATED: Duration = Duration::from_secs(86_400);
/// A request holds a key, a name and a signature.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// Private key with its certificate chain, as PEM.
pub struct IssuedCertificate {
    pub chain_pem: String,
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IssuedCertificate")
    }
}

/// Request of a node with a valid signature, so that the sender has the private key.
#[derive(Debug)]
pub struct CertificateRequest(CertificateSigningRequestParams);

impl CertificateRequest {
    pub fn parse(der: &[u8]) -> Result<Self> {
        let refused = || {
            Error::invalid("the certificate request is not one, or its signature does not hold")
                .remedy("send a PKCS#10 request in DER, signed with the key it names")
        };
        if der.len() > REQUEST_BYTES_MAX {
            return Err(refused());
        }
        let parsed = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
        parsed.map(Self).map_err(|e| refused().source(e))
    }
}

/// Fresh TLS key of a node, and the request for its certificate.
pub struct TlsKey {
    pub key_pem: Zeroizing<String>,
    pub request_der: Vec<u8>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey")
    }
}

impl TlsKey {
    pub fn generate(node_id: &NodeId) -> Result<Self> {
        let failed = |e: rcgen::Error| Error::internal("a certificate request cannot be made").source(e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let request = named(node_id.as_str()).serialize_request(&key).map_err(failed)?;
        Ok(Self { key_pem: Zeroizing::new(key.serialize_pem()), request_der: request.der().to_vec() })
    }
}

/// CA with its key.
pub struct Authority {
    /// The controller's id, and hosts and addresses under which it is dialled.
    own_names: Vec<String>,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

impl Authority {
    /// Reads the CA, or creates one if there is no CA. A CA that cannot be read is an error and never replaced: with a
    /// new CA, every node would have to be enrolled again. `own_names` are the controller's id and the hosts and
    /// addresses under which it is dialled.
    pub fn load_or_create(directory: &Path, own_names: Vec<String>) -> Result<Self> {
        let (certificate_path, key_path) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        let unusable = |why: &str| {
            Error::new(
                ErrorCode::ConfigInvalid,
                format!("the cluster's CA in {} {why}", certificate_path.display()),
            )
            .remedy("restore ca-cert.pem and ca-key.pem from a backup; with a new CA every node on the direct link needs a new enrolment token")
        };
        match (read(&certificate_path), read(&key_path)) {
            (Ok(Some(certificate)), Ok(Some(key))) => {
                let mode = fs::metadata(&key_path).map(|meta| meta.permissions().mode() & 0o077);
                if mode.is_ok_and(|others| others != 0) {
                    return Err(unusable("has a key that others can read")
                        .remedy(format!("run: chmod 600 {}", key_path.display())));
                }
                Self::read(&certificate, &key, own_names).map_err(|e| unusable("cannot be used").source(e))
            }
            // A crash between the two writes leaves a key alone, which has not signed anything yet.
            (Ok(None), Ok(_)) => {
                let (certificate, key) = Self::create()?;
                let written = write_new(&key_path, key.as_bytes())
                    .and_then(|()| write_new(&certificate_path, certificate.as_bytes()));
                written.map_err(|e| unusable("cannot be written").source(e))?;
                Self::read(&certificate, &key, own_names).map_err(|e| unusable("cannot be used").source(e))
            }
            (Ok(Some(_)), Ok(None)) => Err(unusable("has lost its key")),
            (Err(e), _) | (_, Err(e)) => Err(unusable("cannot be read").source(e)),
        }
    }

    fn create() -> Result<(String, Zeroizing<String>)> {
        let failed = |e: rcgen::Error| Error::internal("a CA cannot be made").source(e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        // A unique name, so that the CAs of two clusters differ.
        let mut params = named(&format!("aegis cluster CA {}", hex::encode(random::<4>()?)));
        valid_for(&mut params, AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
    }

    fn read(certificate_pem: &str, key_pem: &str, own_names: Vec<String>) -> Result<Self> {
        let failed = |e: rcgen::Error| Error::internal("the CA cannot be read").source(e);
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| Error::internal("the CA's certificate cannot be read").source(e))?;
        let key = KeyPair::from_pem(key_pem).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(failed)?;
        Ok(Self { own_names, issuer, certificate, certificate_pem: certificate_pem.to_owned() })
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Issues a certificate chain (PEM) to a node that has proven its identity. The certificate names only the node's
    /// id. An id under which the controller is dialled is rejected: the node could answer in the controller's place.
    pub fn certify(&self, node_id: &NodeId, request: &CertificateRequest) -> Result<String> {
        self.check_name(node_id)?;
        self.issue(node_id, &[], &request.0.public_key)
    }

    pub fn check_name(&self, node_id: &NodeId) -> Result<()> {
        if !self.own_names.iter().any(|name| name.eq_ignore_ascii_case(node_id.as_str())) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Conflict, format!("{node_id} is a name of the controller itself"))
            .remedy("choose another node id"))
    }

    /// Issues a fresh key and certificate to the controller itself, with its own names.
    pub fn issue_own(&self, node_id: &NodeId) -> Result<IssuedCertificate> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|e| Error::internal("a TLS key cannot be made").source(e))?;
        let chain_pem = self.issue(node_id, &self.own_names, &key)?;
        Ok(IssuedCertificate { chain_pem, key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    fn issue(&self, node_id: &NodeId, names: &[String], key: &impl PublicKeyData) -> Result<String> {
        let failed = |e: rcgen::Error| Error::internal("a certificate cannot be made").source(e);
        let mut params = named(node_id.as_str());
        let others = names.iter().map(String::as_str).filter(|name| *name != node_id.as_str());
        for name in std::iter::once(node_id.as_str()).chain(others) {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(failed)?),
            });
        }
        valid_for(&mut params, CERTIFICATE_LIFETIME);
        params.serial_number = Some(SerialNumber::from_slice(&random::<16>()?));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node is both server and client.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        // Includes the CA: a joining node knows only its fingerprint.
        Ok(format!("{}{}", certificate.pem(), self.certificate_pem))
    }
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + lifetime;
}

fn read(path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CertificateFacts;

    fn leaf(chain_pem: &str) -> CertificateFacts {
        CertificateFacts::of(&CertificateDer::from_pem_slice(chain_pem.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn authority_is_created_once_with_a_private_key_file() {
        let directory = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(directory.path(), Vec::new()).unwrap();
        let again = Authority::load_or_create(directory.path(), Vec::new()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let key = directory.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let facts = CertificateFacts::of(first.certificate()).unwrap();
        assert!(facts.is_ca);
        let years = (facts.not_after_secs - facts.not_before_secs) / (365 * 86_400);
        assert_eq!(years, 10);
        fs::remove_file(&key).unwrap();
        assert!(Authority::load_or_create(directory.path(), Vec::new()).is_err(), "never replaced");
    }

    #[test]
    fn certificate_names_the_admitted_id_not_the_requested_one() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path(), Vec::new()).unwrap();
        let (asked, admitted) = (NodeId::parse("admin").unwrap(), NodeId::parse("edge-1").unwrap());
        let key = TlsKey::generate(&asked).unwrap();
        let request = CertificateRequest::parse(&key.request_der).unwrap();
        let facts = leaf(&authority.certify(&admitted, &request).unwrap());
        assert_eq!(facts.dns_names, ["edge-1"]);
        assert!(!facts.is_ca);
        assert_eq!((facts.not_after_secs - facts.not_before_secs) / 86_400, 31);
    }

    #[test]
    fn a_request_that_is_signed_by_another_key_is_refused() {
        let mut der = TlsKey::generate(&NodeId::parse("edge-1").unwrap()).unwrap().request_der;
        let last = der.len() - 1;
        der[last] ^= 1;
        for bad in [der.as_slice(), b"", b"nonsense", &[0x30; REQUEST_BYTES_MAX + 1]] {
            assert_eq!(CertificateRequest::parse(bad).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn the_controllers_own_names_may_be_hosts_and_addresses() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["cluster", "127.0.0.1", "::1"].map(str::to_owned);
        let authority = Authority::load_or_create(directory.path(), names.into()).unwrap();
        let own = authority.issue_own(&NodeId::parse("home").unwrap()).unwrap();
        assert_eq!(leaf(&own.chain_pem).dns_names, ["home", "cluster"]);
        // No other node gets a certificate with these names.
        let taken = NodeId::parse("cluster").unwrap();
        let request = CertificateRequest::parse(&TlsKey::generate(&taken).unwrap().request_der).unwrap();
        assert_eq!(authority.certify(&taken, &request).unwrap_err().code(), ErrorCode::Conflict);
    }
}
