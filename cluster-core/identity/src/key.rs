//! Ed25519 key of a node, created once and kept in a PKCS#8 file that only its owner can read.

use std::{fmt, fs, io::ErrorKind, os::unix::fs::PermissionsExt as _, path::Path};

use aegis_fs::write_new;
use aegis_types::error::{Error, ErrorCode, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};

use super::{random, sha256};

/// Public key of a node, as it is pinned.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Parses a key. Rejects bytes that are no point of the curve, and weak points that verify anything.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let refused = || {
            Error::invalid(format!("a public key of {} bytes is not a sound Ed25519 key", bytes.len()))
                .remedy("send the 32 bytes of a key that aegis or ssh-keygen -t ed25519 made")
        };
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| refused())?;
        if !is_canonical(&bytes) {
            return Err(refused());
        }
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| refused())?;
        if key.is_weak() { Err(refused()) } else { Ok(Self(bytes)) }
    }

    /// Parses the base64 that a worker writes to a file for its deployment.
    pub fn from_base64(text: &str) -> Result<Self> {
        let bytes = STANDARD
            .decode(text.trim())
            .map_err(|_| Error::invalid("a public key is not base64 of 32 bytes"))?;
        Self::parse(&bytes)
    }

    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the hexadecimal SHA-256: the `cnf` thumbprint, which people also compare.
    pub fn thumbprint(&self) -> String {
        hex::encode(sha256(&self.0))
    }

    /// Checks a signature in full (`verify_strict`: no malleated `S`, no small-order point).
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<()> {
        let refused = |why: &str| {
            Error::new(ErrorCode::InvalidSignature, format!("the signature does not match the key: {why}"))
                .remedy("the node must sign with the key that was pinned when it joined")
        };
        let signature =
            Signature::from_slice(signature).map_err(|_| refused("it has not the 64 bytes of one"))?;
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| refused("the pinned key is not sound"))?;
        key.verify_strict(message, &signature)
            .map_err(|_| refused("it was made by another key or over other bytes"))
    }
}

/// Returns whether y is below p = 2^255 - 19: each key has one encoding.
fn is_canonical(bytes: &[u8; 32]) -> bool {
    let mut y = *bytes;
    y[31] &= 0x7f;
    y[31] != 0x7f || y[1..31].iter().any(|byte| *byte != 0xff) || y[0] < 0xed
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", &self.thumbprint()[..16])
    }
}

/// Private key. Never shown.
pub struct NodeKey(SigningKey);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.public())
    }
}

impl NodeKey {
    pub fn generate() -> Result<Self> {
        Ok(Self(SigningKey::from_bytes(&random()?)))
    }

    /// Reads the key, or creates one if there is no file. A file that cannot be read is an error and never replaced:
    /// with a new key, this would be another node.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        let unusable = |why: &str| {
            Error::new(ErrorCode::ConfigInvalid, format!("the node key {} {why}", path.display()))
        };
        match fs::read_to_string(path) {
            Ok(pem) => {
                let mode = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o077);
                if mode.is_ok_and(|others| others != 0) {
                    return Err(unusable("can be read by others")
                        .remedy(format!("run: chmod 600 {}", path.display())));
                }
                let key = SigningKey::from_pkcs8_pem(&pem).map_err(|_| {
                    unusable("is not an Ed25519 key in PKCS#8 PEM")
                        .remedy("restore it from a backup; without it the node must be enrolled again")
                })?;
                Ok(Self(key))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = Self::generate()?;
                let pem = key
                    .0
                    .to_pkcs8_pem(LineEnding::LF)
                    .map_err(|_| Error::internal("a fresh key cannot be encoded"))?;
                write_new(path, pem.as_bytes()).map_err(|e| unusable("cannot be written").source(e))?;
                Ok(key)
            }
            Err(error) => Err(unusable("cannot be read").source(error)),
        }
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-keypair.pem");
        let first = NodeKey::load_or_create(&path).unwrap().public();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(NodeKey::load_or_create(&path).unwrap().public(), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(NodeKey::load_or_create(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-keypair.pem");
        write_new(&path, b"not a key").unwrap();
        assert_eq!(NodeKey::load_or_create(&path).unwrap_err().code(), ErrorCode::ConfigInvalid);
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }

    #[test]
    fn signatures_of_another_length_key_message_or_form_are_refused() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let good = key.sign(b"m");
        key.public().verify(b"m", &good).unwrap();
        let mut long = good.to_vec();
        long.push(0);
        // S + L is the same point equation with another encoding.
        let order: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut malleated = good;
        let mut carry = 0_u16;
        for (byte, add) in malleated[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        for bad in [&good[..63], &long, &malleated, &other.sign(b"m"), &key.sign(b"n")] {
            let error = key.public().verify(b"m", bad).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidSignature);
        }
        assert!(PublicKey::parse(&[0; 32]).is_err(), "a small-order point");
        assert!(PublicKey::parse(&[1; 31]).is_err());
        for (first, last) in [(0xff, 0xff), (0xed, 0x7f), (0xf0, 0xff), (0xff, 0x7f)] {
            let mut beyond = [0xff; 32];
            (beyond[0], beyond[31]) = (first, last);
            assert!(PublicKey::parse(&beyond).is_err(), "y is not below p");
        }
    }
}
