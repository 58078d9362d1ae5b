//! A host's certificate, against the `@cert-authority` lines of known_hosts.

use std::time::SystemTime;

use russh::keys::{
    Algorithm, Certificate, HashAlg, PublicKey,
    ssh_key::{Fingerprint, certificate::CertType},
};

use super::target::Endpoint;

/// Whether one of these authorities says that the certificate is this host's, now. A certificate for
/// no name in particular, or with options that we do not know, vouches for nothing.
pub(super) fn vouches(
    certificate: &Certificate,
    authorities: &[&PublicKey],
    host: &Endpoint,
    now: SystemTime,
) -> bool {
    let trusted: Vec<Fingerprint> =
        authorities.iter().map(|authority| authority.fingerprint(HashAlg::Sha256)).collect();
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else { return false };
    certificate.cert_type() == CertType::Host
        && certificate.critical_options().is_empty()
        && !is_broken(&certificate.signature().algorithm())
        // A principal is a name and no pattern, as for OpenSSH.
        && certificate
            .valid_principals()
            .iter()
            .any(|principal| principal.eq_ignore_ascii_case(host.address.as_str()))
        && certificate.validate_at(now.as_secs(), &trusted).is_ok()
}

/// Returns whether a signature no longer proves anything: RSA with SHA-1, which OpenSSH rejects since 8.2.
fn is_broken(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use russh::keys::{PrivateKey, key::safe_rng, ssh_key::certificate::Builder};

    use super::*;
    use crate::HostAddress;

    fn key() -> PrivateKey {
        PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap()
    }

    fn certificate(authority: &PrivateKey, change: impl FnOnce(&mut Builder)) -> Certificate {
        let subject = key().public_key().clone();
        let mut builder = Builder::new_with_random_nonce(&mut safe_rng(), subject, 1000, 2000).unwrap();
        builder.cert_type(CertType::Host).unwrap().key_id("edge").unwrap();
        change(&mut builder);
        builder.sign(authority).unwrap()
    }

    #[test]
    fn signature_with_sha1_vouches_for_nothing() {
        assert!(is_broken(&Algorithm::Rsa { hash: None }));
        assert!(
            !is_broken(&Algorithm::Rsa { hash: Some(HashAlg::Sha512) }) && !is_broken(&Algorithm::Ed25519)
        );
    }

    #[test]
    fn it_counts_for_its_host_its_time_and_its_authority_only() {
        let (ours, other) = (key(), key());
        let host = Endpoint::direct(&HostAddress::parse("edge1.lan", false).unwrap(), 22);
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let judge =
            |certificate: &Certificate, now: u64| vouches(certificate, &[ours.public_key()], &host, at(now));
        let for_host = |name: &'static str| {
            certificate(&ours, |builder| {
                builder.valid_principal(name).unwrap();
            })
        };
        let good = for_host("edge1.lan");
        assert!(judge(&good, 1500) && judge(&for_host("EDGE1.lan"), 1500));
        assert!(!judge(&for_host("*.lan"), 1500), "a principal is no pattern");
        assert!(!judge(&good, 999) && !judge(&good, 2000));
        assert!(!judge(&for_host("edge2.lan"), 1500));
        let anybody = certificate(&ours, |builder| {
            builder.all_principals_valid().unwrap();
        });
        assert!(!judge(&anybody, 1500));
        let foreign = certificate(&other, |builder| {
            builder.valid_principal("edge1.lan").unwrap();
        });
        assert!(!judge(&foreign, 1500));
        let optional = certificate(&ours, |builder| {
            builder.valid_principal("edge1.lan").unwrap().critical_option("x", "y").unwrap();
        });
        assert!(!judge(&optional, 1500));
    }
}
