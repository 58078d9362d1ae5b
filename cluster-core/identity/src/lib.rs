//! Identity: node keys, tokens that admit and name nodes, and the seal on every call.
//!
//! This crate knows neither the wire's messages nor the network.

mod attestation;
mod authority;
mod certificate;
mod enrolment;
mod key;
mod key_file;
mod seal;
mod token;

pub use attestation::{
    Admitted, Attestation, CHALLENGE_BYTES, Challenge, ChallengeTicket, Challenger, PresentedToken, statement,
};
pub use authority::{Authority, CertificateRequest, IssuedCertificate, TlsKey};
pub use certificate::{CertificateFacts, Fingerprint};
pub use enrolment::{EnrolmentToken, IssuedToken};
pub use key::{NodeKey, PublicKey};
pub use key_file::KeyFile;
pub use seal::{SealContext, SealExpectation, SequenceWindow};
pub use token::{
    Claims, LocalKeys, TOKEN_LIFETIME_SECS, TokenKeys, TokenKeysView, TokenSigner, TransitAuth,
    TransitSettings,
};

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

/// Returns the SHA-256 of bytes in hexadecimal.
pub fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

/// Fresh random bytes from the operating system.
pub fn random<const N: usize>() -> aegis_types::error::Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| aegis_types::error::Error::internal("the system gives no random numbers"))?;
    Ok(bytes)
}
