//! Facts of an X.509 certificate, and the fingerprint by which a joining node verifies its CA.

use std::fmt;

use aegis_types::error::{Error, ErrorCode, Result};
use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::sha256;

/// SHA-256 of a certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (hex::encode(bytes) == text).then_some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Fields of a certificate that decide its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// DNS names of the subject alternative name, unchanged: nothing is folded or expanded.
    pub dns_names: Vec<String>,
    /// Seconds since 1970.
    pub not_before_secs: i64,
    pub not_after_secs: i64,
    /// The certificate may sign other certificates.
    pub is_ca: bool,
}

impl CertificateFacts {
    /// Parses a certificate. Fails with `UntrustedCa` if the bytes are not a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let unreadable = || Error::new(ErrorCode::UntrustedCa, "a certificate cannot be read");
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|_| unreadable())?;
        if !rest.is_empty() {
            return Err(unreadable());
        }
        let names = parsed.subject_alternative_name().map_err(|_| unreadable())?;
        let dns_names = names.map(|names| {
            let names = names.value.general_names.iter();
            names.filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
        });
        Ok(Self {
            dns_names: dns_names.map(Iterator::collect).unwrap_or_default(),
            not_before_secs: parsed.validity().not_before.timestamp(),
            not_after_secs: parsed.validity().not_after.timestamp(),
            is_ca: parsed.is_ca(),
        })
    }

    /// Returns whether half of the lifetime is over, so that a renewal is due.
    pub fn is_past_half(&self, now_secs: i64) -> bool {
        now_secs.saturating_mul(2) >= self.not_before_secs.saturating_add(self.not_after_secs)
    }

    pub fn is_expired(&self, now_secs: i64) -> bool {
        now_secs > self.not_after_secs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_reads_back_and_nothing_else_is_one() {
        let fingerprint = Fingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        for bad in ["", "none", "ab", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn half_of_a_life_is_counted_from_its_begin() {
        let facts = CertificateFacts {
            dns_names: Vec::new(),
            not_before_secs: 100,
            not_after_secs: 300,
            is_ca: false,
        };
        assert!(!facts.is_past_half(199));
        assert!(facts.is_past_half(200));
        assert!(!facts.is_expired(300));
        assert!(facts.is_expired(301));
    }
}
