//! A value sealed for the database, and the key that seals it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aegis_fs::write_synced;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::{Secret, SecretName},
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

const KEY_LEN: usize = 32;
/// Version of the sealed form: `1`, nonce, ciphertext with tag.
const VERSION: u8 = 1;
/// No other use of this key, should there ever be one, can be taken for this one.
const DOMAIN: &str = "aegis secret v1\0";

pub(super) struct Key {
    key: RandomizedNonceKey,
    path: PathBuf,
}

impl Key {
    /// Reads the key. Returns `None` without a file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let unusable = |why: &str| {
            Error::new(ErrorCode::Storage, format!("the key of the secrets, {}, {why}", path.display()))
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let remedy = "it is the daemon's, with mode 0600: give it back, or restore it";
                return Err(unusable("cannot be read").remedy(remedy).source(error));
            }
        };
        let mode = fs::metadata(path).map(|meta| meta.permissions().mode() & 0o077);
        if mode.is_ok_and(|others| others != 0) {
            return Err(
                unusable("can be read by others").remedy(format!("run: chmod 600 {}", path.display()))
            );
        }
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).map_err(|_| {
            unusable("is not 64 hexadecimal digits").remedy("restore that file from where it was kept")
        })?;
        Self::of(&bytes, path).map(Some)
    }

    /// On disk, readable by its owner alone, before anything is sealed with it.
    pub fn create(path: &Path) -> Result<Self> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice())
            .map_err(|_| Error::internal("the system gives no random numbers"))?;
        let text = Zeroizing::new(hex::encode(bytes.as_slice()));
        write_synced(path, text.as_bytes()).map_err(|error| {
            Error::new(ErrorCode::Storage, format!("the key {} cannot be written", path.display()))
                .source(error)
        })?;
        Self::of(&bytes, path)
    }

    fn of(bytes: &[u8; KEY_LEN], path: &Path) -> Result<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes)
            .map_err(|_| Error::internal("a key of 32 bytes was refused"))?;
        Ok(Self { key, path: path.to_owned() })
    }

    pub fn seal(&self, name: &SecretName, value: &Secret) -> Result<Vec<u8>> {
        let mut sealed = value.reveal().as_bytes().to_vec();
        // In place: what held the value holds the ciphertext afterwards, but for a move as it grows.
        sealed.reserve_exact(AES_256_GCM.tag_len());
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context(name)), &mut sealed)
            .map_err(|_| Error::internal("a secret cannot be sealed"))?;
        Ok([&[VERSION], nonce.as_ref().as_slice(), &sealed].concat())
    }

    pub fn open(&self, name: &SecretName, sealed: &[u8]) -> Result<Secret> {
        let closed = || {
            Error::new(
                ErrorCode::Storage,
                format!("the secret {name} cannot be opened with {}", self.path.display()),
            )
            .remedy(format!(
                "restore the key file that belongs to this database, or set it again: aegis secret set {name}"
            ))
        };
        let (nonce, ciphertext) = match sealed.split_first() {
            Some((&VERSION, rest)) => rest.split_first_chunk::<NONCE_LEN>().ok_or_else(closed)?,
            _ => return Err(closed()),
        };
        let mut bytes = Zeroizing::new(ciphertext.to_vec());
        let plain = self
            .key
            .open_in_place(Nonce::from(nonce), Aad::from(context(name)), &mut bytes)
            .map_err(|_| closed())?;
        std::str::from_utf8(plain).map(Secret::new).map_err(|_| closed())
    }
}

fn context(name: &SecretName) -> Vec<u8> {
    [DOMAIN.as_bytes(), name.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_under_its_own_name_and_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("secrets.key"), dir.path().join("other.key"));
        let (a, b) = (SecretName::parse("a").unwrap(), SecretName::parse("b").unwrap());
        let value = Secret::new("p\u{e4}ss\nword");
        let key = Key::create(&path).unwrap();
        let sealed = key.seal(&a, &value).unwrap();
        assert_eq!(key.open(&a, &sealed).unwrap(), value);
        assert_eq!(Key::read(&path).unwrap().unwrap().open(&a, &sealed).unwrap(), value);
        assert_ne!(key.seal(&a, &value).unwrap(), sealed, "the nonce is fresh");

        assert!(key.open(&b, &sealed).is_err(), "rows cannot be swapped");
        assert!(Key::create(&other).unwrap().open(&a, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(key.open(&a, &bent).is_err(), "byte {at}");
        }
        for length in 0..sealed.len() {
            assert!(key.open(&a, &sealed[..length]).is_err());
        }
    }

    #[test]
    fn a_key_file_is_the_owners_alone_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.key");
        assert!(Key::read(&path).unwrap().is_none());
        Key::create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::read(&path).err().unwrap().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "cut of").unwrap();
        assert_eq!(Key::read(&path).err().unwrap().code(), ErrorCode::Storage);
    }
}
