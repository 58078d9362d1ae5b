//! Explains a failed handshake as an error with cause and remedy.

use std::{error::Error as StdError, io};

use aegis_types::error::{Error, ErrorCode};
use rustls::{AlertDescription, CertificateError};

/// Finds the TLS error in a chain of causes.
pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error skips its wrapped error when asked for its source.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Explains that the server is not the expected one or rejects the client. `None` for errors outside TLS.
pub fn of(peer: &str, error: &(dyn StdError + 'static)) -> Option<Error> {
    let found = find(error)?;
    let untrusted = |what: String, remedy: &str| Error::new(ErrorCode::UntrustedCa, what).remedy(remedy);
    let told = match found {
        rustls::Error::InvalidCertificate(why) => {
            let (what, remedy) = certificate(why);
            untrusted(format!("the certificate of {peer} {what}"), remedy)
        }
        rustls::Error::NoCertificatesPresented => {
            untrusted(format!("{peer} shows no certificate"), "turn TLS on there")
        }
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => untrusted(
                format!("{peer} wants a certificate of this node, which has none"),
                "name one in spec.cluster.tls (cert_path, key_path, ca_cert), signed by the CA that is trusted there",
            ),
            AlertDescription::CertificateExpired => untrusted(
                format!("{peer} refuses this node's certificate: it has expired"),
                "renew it, and compare the clocks of both nodes",
            ),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => untrusted(
                format!("{peer} does not trust this node's certificate"),
                "it must be signed by a CA in spec.cluster.tls.ca_cert of the other node, and be made for client authentication",
            ),
            _ => Error::new(ErrorCode::Unavailable, format!("{peer} ended the TLS handshake")),
        },
        rustls::Error::InvalidMessage(_) => {
            Error::new(ErrorCode::Unavailable, format!("{peer} does not speak TLS"))
                .remedy("turn TLS on there, or write http:// where plaintext is meant")
        }
        _ => Error::new(ErrorCode::Unavailable, format!("the TLS handshake with {peer} failed")),
    };
    Some(told.source(found.clone()))
}

/// Returns whether the other end rejected our certificate.
pub fn is_of_our_certificate(error: &(dyn StdError + 'static)) -> bool {
    use AlertDescription as A;
    matches!(
        find(error),
        Some(rustls::Error::AlertReceived(
            A::UnknownCA
                | A::BadCertificate
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::CertificateRevoked
                | A::UnsupportedCertificate
                | A::DecryptError
                | A::AccessDenied
        ))
    )
}

/// Explains a rejected caller, for the log.
pub(super) fn of_caller(error: &io::Error) -> Error {
    let told = match find(error) {
        Some(rustls::Error::InvalidCertificate(why)) => {
            let (what, _) = certificate(why);
            Error::new(ErrorCode::UntrustedCa, format!("the caller's certificate {what}")).remedy(
                "all nodes share the CAs in spec.cluster.tls.ca_cert, or join with an enrolment token",
            )
        }
        Some(rustls::Error::NoCertificatesPresented) => {
            Error::new(ErrorCode::UntrustedCa, "the caller shows no certificate")
                .remedy("name one in its spec.cluster.tls")
        }
        // The second alert occurs if another CA of the same name is trusted.
        Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError)) => {
            Error::new(ErrorCode::UntrustedCa, "the caller does not trust this node's CA")
                .remedy("give it this node's CA in spec.cluster.tls.ca_cert, or a new enrolment token")
        }
        Some(rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown,
        )) => Error::new(ErrorCode::UntrustedCa, "the caller does not take this node's certificate")
            .remedy("look at the caller's log for the reason"),
        _ => Error::new(ErrorCode::Unavailable, "the TLS handshake was not finished"),
    };
    match find(error) {
        Some(found) => told.source(found.clone()),
        None => told.source(error.to_string()),
    }
}

fn certificate(error: &CertificateError) -> (&'static str, &'static str) {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("has expired", "renew it, and compare the clocks of both nodes")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("is not valid yet", "compare the clocks of both nodes")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "is not made for the name that was dialled",
            "its subject alternative name must hold the host of the controller's endpoint, and on every node the node's id",
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            ("is not made for this use", "nodes need certificates for client and server authentication")
        }
        CertificateError::BadEncoding => ("cannot be read", "replace it"),
        _ => (
            "is not signed by a CA that this node trusts",
            "put that CA into spec.cluster.tls.ca_cert; with the built-in CA, take a new enrolment token (`aegis node token create`), which names it",
        ),
    }
}
