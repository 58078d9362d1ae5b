//! Who we are to a host: one key file, or the agent and the default identities.
//!
//! A private key is read through one file descriptor after its place, kind, owner and mode were
//! checked; its content never stands in an error.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use russh::{
    client::{AuthResult, Handle},
    keys::{
        Error as KeyError, HashAlg, PrivateKey, PrivateKeyWithHashAlg,
        agent::{AgentIdentity, client::AgentClient},
        decode_secret_key,
    },
};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::{handler::ClientHandler, target::SshTarget};
use crate::error::{Error, ErrorCode, Result};

/// The largest private key file (RSA 16384) has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 * 1024;
/// sshd disconnects after six tries by default (MaxAuthTries); one is left for its own counting.
const ATTEMPTS_MAX: usize = 5;
/// Default identities, in OpenSSH's order.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// What may be tried on a host, in this order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Named by the caller: then nothing else is tried.
    pub key_path: Option<PathBuf>,
    /// When set, `key_path` must lie in one of these (the caller is an assistant).
    pub confined_to: Option<Vec<PathBuf>>,
    pub agent_socket: Option<PathBuf>,
    /// Usually `~/.ssh`.
    pub identities_dir: Option<PathBuf>,
}

/// What was tried and what became of it: the evidence in an authentication error.
#[derive(Debug, Default)]
struct Tried(Vec<String>);

impl Tried {
    fn note(&mut self, what: impl std::fmt::Display, outcome: impl std::fmt::Display) {
        self.0.push(format!("{what} ({outcome})"));
    }
}

/// One attempt's outcome; a broken connection is not a refusal.
enum Attempt {
    In,
    Refused(String),
}

pub(super) async fn authenticate(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    credentials: &Credentials,
) -> Result<()> {
    let mut tried = Tried::default();
    if let Some(path) = credentials.key_path.as_deref().or(target.key_path.as_deref()) {
        let key = load_key(path, credentials.confined_to.as_deref())?;
        return match with_key(handle, target, key).await? {
            Attempt::In => Ok(()),
            Attempt::Refused(why) => {
                tried.note(path.display(), why);
                Err(refused(target, &tried))
            }
        };
    }
    if let Some(socket) = &credentials.agent_socket
        && with_agent(handle, target, socket, &mut tried).await?
    {
        return Ok(());
    }
    for name in DEFAULT_IDENTITIES {
        let Some(path) = credentials.identities_dir.as_ref().map(|dir| dir.join(name)) else { break };
        if !path.exists() || tried.0.len() >= ATTEMPTS_MAX {
            continue;
        }
        match load_key(&path, None) {
            Ok(key) => match with_key(handle, target, key).await? {
                Attempt::In => return Ok(()),
                Attempt::Refused(why) => tried.note(path.display(), why),
            },
            Err(error) => tried.note(path.display(), error.message()),
        }
    }
    Err(refused(target, &tried))
}

async fn with_key(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    key: PrivateKey,
) -> Result<Attempt> {
    let hash = rsa_hash(handle, target, key.algorithm().is_rsa()).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    let outcome = handle
        .authenticate_publickey(target.user.as_str(), key)
        .await
        .map_err(|error| broken(target).source(error))?;
    judge(outcome, target)
}

/// Whether one of the agent's keys let us in.
async fn with_agent(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    socket: &Path,
    tried: &mut Tried,
) -> Result<bool> {
    let mut agent = match UnixStream::connect(socket).await {
        Ok(stream) => AgentClient::connect(stream),
        Err(error) => {
            tried.note("ssh agent", format_args!("cannot be reached: {}", error.kind()));
            return Ok(false);
        }
    };
    let identities = match agent.request_identities().await {
        Ok(identities) => identities,
        Err(_) => {
            tried.note("ssh agent", "does not list its keys");
            return Ok(false);
        }
    };
    if identities.is_empty() {
        tried.note("ssh agent", "holds no key");
    }
    for identity in identities {
        let AgentIdentity::PublicKey { key, comment } = identity else { continue };
        if tried.0.len() >= ATTEMPTS_MAX {
            tried.note("more agent keys", "not tried: hosts bound attempts; name the key file");
            break;
        }
        let hash = rsa_hash(handle, target, key.algorithm().is_rsa()).await?;
        match handle.authenticate_publickey_with(target.user.as_str(), key, hash, &mut agent).await {
            Ok(outcome) => match judge(outcome, target)? {
                Attempt::In => return Ok(true),
                Attempt::Refused(why) => {
                    tried.note(format_args!("agent key {}", crate::ids::shown(&comment)), why)
                }
            },
            Err(_) if handle.is_closed() => return Err(broken(target)),
            Err(_) => {
                tried.note(format_args!("agent key {}", crate::ids::shown(&comment)), "agent did not sign")
            }
        }
    }
    Ok(false)
}

/// Without a hash the signature is SHA-1, which today's sshd refuses.
async fn rsa_hash(
    handle: &Handle<ClientHandler>,
    target: &SshTarget,
    is_rsa: bool,
) -> Result<Option<HashAlg>> {
    if !is_rsa {
        return Ok(None);
    }
    let supported = handle.best_supported_rsa_hash().await.map_err(|error| broken(target).source(error))?;
    Ok(supported.unwrap_or(Some(HashAlg::Sha512)))
}

fn judge(outcome: AuthResult, target: &SshTarget) -> Result<Attempt> {
    match outcome {
        AuthResult::Success => Ok(Attempt::In),
        // russh reports a connection that broke during login in this form.
        AuthResult::Failure { remaining_methods, .. } if remaining_methods.is_empty() => Err(broken(target)),
        AuthResult::Failure { remaining_methods, partial_success } => {
            let methods: Vec<String> =
                remaining_methods.iter().map(|method| <&str>::from(method).to_owned()).collect();
            Ok(Attempt::Refused(match partial_success {
                true => format!("accepted, but the host demands {} as well", methods.join(", ")),
                false => format!("refused; the host accepts {}", methods.join(", ")),
            }))
        }
    }
}

fn broken(target: &SshTarget) -> Error {
    Error::new(ErrorCode::HostUnreachable, format!("{target} broke the connection during login"))
        .remedy("look at the host's sshd log (MaxStartups, MaxAuthTries, AllowUsers, fail2ban)")
}

fn refused(target: &SshTarget, tried: &Tried) -> Error {
    let what = if tried.0.is_empty() { "there is no key to try".to_owned() } else { tried.0.join("; ") };
    Error::new(ErrorCode::HostAuthentication, format!("{target} does not let us in: {what}")).remedy(format!(
        "put a public key into ~{}/.ssh/authorized_keys on the host, or name another key or user",
        target.user
    ))
}

/// Reads a private key after checking where it lies and what it is.
pub fn load_key(path: &Path, confined_to: Option<&[PathBuf]>) -> Result<PrivateKey> {
    let refuse =
        |why: &str| Error::invalid(format!("ssh key {}: {why}", crate::ids::shown(&path.to_string_lossy())));
    let real = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refuse("there is no such file").remedy("name an existing private key")
        }
        _ => refuse("it cannot be reached").source(error),
    })?;
    if let Some(dirs) = confined_to {
        // Compared after links are followed on both sides: a link inside leads nowhere else.
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
    // The decoder's own errors may quote what they read: they are not kept as a source.
    decode_secret_key(&text, None).map_err(|error| match error {
        KeyError::KeyIsEncrypted => refuse("it is encrypted").remedy(
            "add it to an ssh agent (ssh-add) and leave ssh_key_path out, or use a key without passphrase",
        ),
        _ if text.contains("ENCRYPTED") => refuse("it is encrypted").remedy(
            "add it to an ssh agent (ssh-add) and leave ssh_key_path out, or use a key without passphrase",
        ),
        _ => refuse("it is not a private key that can be read")
            .remedy("name the private key, not the .pub file"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A fresh key and the same one encrypted, as ssh-keygen writes them.
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
        assert!(load_key(&path, Some(&[dir.path().to_owned()])).is_ok());
        assert!(load_key(&path, None).is_ok());
    }

    #[test]
    fn keys_that_are_not_fit_are_refused_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, locked) = keys();
        let open = write(dir.path(), "open", &plain, 0o644);
        let encrypted = write(dir.path(), "encrypted", &locked, 0o600);
        let text = write(dir.path(), "text", "root:x:0:0:secret", 0o600);
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
            let error = load_key(path, None).unwrap_err();
            assert!(error.message().contains(why), "{}: {error}", path.display());
            assert!(!error.chain().contains("secret"));
        }
    }

    #[test]
    fn a_confined_key_may_not_be_led_outside() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = write(outside.path(), "key", &keys().0, 0o600);
        let link = inside.path().join("link");
        symlink(&key, &link).unwrap();
        let climb = inside.path().join("..").join(outside.path().file_name().unwrap()).join("key");
        for path in [&key, &link, &climb] {
            let error = load_key(path, Some(&[inside.path().to_owned()])).unwrap_err();
            assert!(error.message().contains("outside"), "{error}");
        }
    }
}
