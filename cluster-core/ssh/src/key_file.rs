//! Private keys in files.
//!
//! A key is read through one file descriptor, after its place, kind, owner and mode were checked. Its content never stands
//! in an error.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_types::error::{Error, Result};
use russh::keys::{Error as KeyError, PrivateKey, decode_secret_key};
use zeroize::Zeroizing;

/// Reads a private key after checking its path and file.
pub fn load_key(
    path: &Path,
    confined_to: Option<&[PathBuf]>,
    passphrase: Option<&Passphrase>,
) -> Result<PrivateKey> {
    let refuse = |why: &str| {
        Error::invalid(format!("ssh key {}: {why}", aegis_types::text::shown(&path.to_string_lossy())))
    };
    let real = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refuse("there is no such file").remedy("name an existing private key")
        }
        _ => refuse("it cannot be reached").source(error),
    })?;
    if let Some(dirs) = confined_to {
        // Compared after links are followed on both sides, so that a link inside cannot lead elsewhere.
        let inside = dirs.iter().filter_map(|dir| dir.canonicalize().ok()).any(|dir| real.starts_with(dir));
        if !inside {
            return Err(refuse("it lies outside of the key directories").remedy(
                "use a key below spec.deploy.key_dirs (default ~/.ssh), or let a person run aegis deploy",
            ));
        }
    }
    let flags =
        (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC).bits();
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(&real)
        .map_err(|error| refuse("it cannot be opened").source(error))?;
    let metadata = file.metadata().map_err(|error| refuse("it cannot be examined").source(error))?;
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file"));
    }
    if metadata.len() > KEY_BYTES_MAX {
        return Err(refuse("it is too large for a private key"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refuse("others may read it").remedy(format!("chmod 600 {}", real.display())));
    }
    let us = nix::unistd::geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(refuse("it belongs to another user"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(|_| refuse("it is not a private key"))?;
    open_key(&text, passphrase).map_err(refuse_by(&refuse))
}

/// The largest private key file (RSA 16384) has 13 KiB.
pub const KEY_BYTES_MAX: u64 = 64 * 1024;

/// Reason why a key file cannot be opened.
enum Closed {
    NoPassphrase,
    WrongPassphrase,
    NoKey,
}

/// Opens a key. The decoder's own errors may quote the key file, so they are dropped.
fn open_key(text: &str, passphrase: Option<&Passphrase>) -> Result<PrivateKey, Closed> {
    let encrypted = match decode_secret_key(text, None) {
        Ok(key) => return Ok(key),
        Err(KeyError::KeyIsEncrypted) => true,
        Err(_) => text.contains("ENCRYPTED"),
    };
    match passphrase {
        _ if !encrypted => Err(Closed::NoKey),
        None => Err(Closed::NoPassphrase),
        Some(passphrase) => {
            decode_secret_key(text, Some(passphrase.reveal())).map_err(|_| Closed::WrongPassphrase)
        }
    }
}

fn refuse_by(refuse: &impl Fn(&str) -> Error) -> impl Fn(Closed) -> Error {
    const OPEN_IT: &str = "add it to an ssh agent (ssh-add), or name its passphrase in \
                           spec.deploy.key_passphrase (secret:NAME, env:NAME or file:PATH)";
    move |closed| match closed {
        Closed::NoPassphrase => refuse("it is encrypted").remedy(OPEN_IT),
        Closed::WrongPassphrase => {
            refuse("it is encrypted, and not with the passphrase that is configured").remedy(OPEN_IT)
        }
        Closed::NoKey => refuse("it is not a private key that can be read")
            .remedy("name the private key, not the .pub file"),
    }
}

/// Passphrase of encrypted keys. Never shown.
#[derive(Clone)]
pub struct Passphrase(Arc<Zeroizing<String>>);

impl Passphrase {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// Returns a fresh key and its encrypted form, as ssh-keygen writes them.
    fn keys() -> (String, String) {
        use russh::keys::{Algorithm, key::safe_rng, ssh_key::LineEnding};
        let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let encrypted = key.encrypt(&mut safe_rng(), "test").unwrap();
        let text = |key: &PrivateKey| key.to_openssh(LineEnding::LF).unwrap().to_string();
        (text(&key), text(&encrypted))
    }

    fn write(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_private_key_of_ours_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "key", &keys().0, 0o600);
        assert!(load_key(&path, Some(&[dir.path().to_owned()]), None).is_ok());
        assert!(load_key(&path, None, None).is_ok());
    }

    #[test]
    fn keys_that_are_not_fit_are_refused_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, locked) = keys();
        let open = write(dir.path(), "open", &plain, 0o644);
        let encrypted = write(dir.path(), "encrypted", &locked, 0o600);
        let text = write(dir.path(), "text", "root:x:0:0:hunter2", 0o600);
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for (path, why) in [
            (&open, "others may read it"),
            (&encrypted, "encrypted"),
            (&text, "not a private key"),
            (&fifo, "not a regular file"),
            (&dir.path().to_owned(), "not a regular file"),
            (&dir.path().join("none"), "no such file"),
        ] {
            let error = load_key(path, None, None).unwrap_err();
            assert!(error.message().contains(why), "{}: {error}", path.display());
            assert!(!error.chain().contains("hunter2"));
        }
    }

    #[test]
    fn a_passphrase_opens_an_encrypted_key_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "encrypted", &keys().1, 0o600);
        let (right, wrong) = (Passphrase::new("test"), Passphrase::new("hunter2"));
        assert!(load_key(&path, None, Some(&right)).is_ok());
        let error = load_key(&path, None, Some(&wrong)).unwrap_err();
        assert!(error.message().contains("not with the passphrase"), "{error}");
        assert!(!format!("{error:?} {wrong:?} {}", error.chain()).contains("hunter2"));
    }

    #[test]
    fn a_confined_key_may_not_be_led_outside() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = write(outside.path(), "key", &keys().0, 0o600);
        let link = inside.path().join("link");
        symlink(&key, &link).unwrap();
        let climb = inside.path().join("..").join(outside.path().file_name().unwrap()).join("key");
        for path in [&key, &link, &climb] {
            let error = load_key(path, Some(&[inside.path().to_owned()]), None).unwrap_err();
            assert!(error.message().contains("outside"), "{error}");
        }
    }
}
