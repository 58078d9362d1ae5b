//! User certificates: the files that may lie beside a key, and the signature that goes with one.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use russh::{
    Signer,
    keys::{Certificate, HashAlg, PrivateKey, agent::AgentIdentity, ssh_key::encoding::Encode},
};

use crate::credentials::Credentials;

/// A certificate with hundreds of principals has some 20 KiB.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// The certificates for a key: the one beside it, then those that the ssh configuration names. What
/// cannot be read as one is passed over, as ssh does.
pub(super) fn for_key(path: &Path, key: &PrivateKey, credentials: &Credentials) -> Vec<Certificate> {
    let beside = beside(path).filter(|path| path.exists());
    let read = beside.iter().chain(&credentials.certificate_files).filter_map(|path| read(path));
    read.filter(|certificate| certificate.public_key() == key.public_key().key_data()).collect()
}

/// `id_ed25519` has `id_ed25519-cert.pub`.
fn beside(key: &Path) -> Option<PathBuf> {
    let mut name = key.file_name()?.to_owned();
    name.push("-cert.pub");
    Some(key.with_file_name(name))
}

fn read(path: &Path) -> Option<Certificate> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Certificate::from_openssh(text.trim()).ok()
}

/// Signs with a key in our hands; RSA as rsa-sha2-512, which russh's own way does not.
pub(super) struct KeySigner<'a>(pub &'a PrivateKey);

#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    #[error("the connection ended")]
    Send(#[from] russh::SendError),
    #[error("the key does not sign")]
    Key,
}

impl Signer for KeySigner<'_> {
    type Error = SignError;

    async fn auth_sign(
        &mut self,
        _: &AgentIdentity,
        _: Option<HashAlg>,
        mut to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, SignError> {
        use russh::keys::signature::Signer as _;
        let signature = self.0.try_sign(&to_sign).map_err(|_| SignError::Key)?;
        signature.encode_prefixed(&mut to_sign).map_err(|_| SignError::Key)?;
        Ok(to_sign)
    }
}
