//! The controller's own SSH key, for its standing connections alone: with it a link needs neither the
//! login's key nor an agent, and may do on the host what its line in `authorized_keys` permits.

use std::{path::Path, sync::Arc};

use aegis_fs::write_new;
use aegis_types::error::{Error, ErrorCode, Result};
use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};

use crate::key_file::load_key;

pub const FILE: &str = "link-key.pem";

/// Ed25519. Never shown.
#[derive(Clone)]
pub struct LinkKey(Arc<PrivateKey>);

impl std::fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKey")
    }
}

impl LinkKey {
    /// Reads the key, or makes it where there is no file. It is of OpenSSH's format and its owner's alone.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        let failed = |what: &str| {
            Error::new(ErrorCode::Storage, format!("the link's key {} cannot be {what}", path.display()))
        };
        match path.try_exists() {
            Ok(true) => return Ok(Self(Arc::new(load_key(path, None, None)?))),
            Ok(false) => {}
            Err(error) => return Err(failed("reached").source(error)),
        }
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)
            .map_err(|error| failed("made").source(error))?;
        let text = key.to_openssh(LineEnding::LF).map_err(|error| failed("written").source(error))?;
        write_new(path, text.as_bytes()).map_err(|error| failed("written").source(error))?;
        Ok(Self(Arc::new(key)))
    }

    /// `ssh-ed25519 AAAA…`
    pub fn public(&self) -> Result<String> {
        let mut public = self.0.public_key().clone();
        public.set_comment("");
        let text = public
            .to_openssh()
            .map_err(|error| Error::internal("the link's public key cannot be written").source(error))?;
        Ok(text.trim().to_owned())
    }

    pub(super) fn private(&self) -> Arc<PrivateKey> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let public = LinkKey::load_or_create(&path).unwrap().public().unwrap();
        assert!(public.starts_with("ssh-ed25519 AAAA") && public.split(' ').count() == 2, "{public}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(LinkKey::load_or_create(&path).unwrap().public().unwrap(), public);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(LinkKey::load_or_create(&path).is_err(), "others may read it");
    }
}
