//! User certificates: the files next to a key, and the signature for a certificate.

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

/// Returns the certificates of a key: the file next to the key, then those named by the ssh configuration. Files that
/// are not certificates are skipped, as in ssh.
pub(super) fn for_key(path: &Path, key: &PrivateKey, credentials: &Credentials) -> Vec<Certificate> {
    let beside = beside(path).filter(|path| path.exists());
    let read = beside.iter().chain(&credentials.certificate_files).filter_map(|path| read(path));
    read.filter(|certificate| certificate.public_key() == key.public_key().key_data()).collect()
}

/// Returns the certificate's path: `id_ed25519-cert.pub` for `id_ed25519`.
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

/// Signs with a private key in memory. RSA uses rsa-sha2-512, unlike russh's own signer.
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
