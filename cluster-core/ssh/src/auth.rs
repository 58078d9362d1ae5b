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

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};
use russh::{
    client::{AuthResult, Handle},
    keys::{
        Error as KeyError, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
        decode_secret_key,
        ssh_key::public::KeyData,
    },
};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::{
    certificate::{self, KeySigner},
    handler::ClientHandler,
    link_key::LinkKey,
    target::SshTarget,
};

/// The largest private key file (RSA 16384) has 13 KiB.
const KEY_BYTES_MAX: u64 = 64 * 1024;
/// sshd disconnects after six tries by default (MaxAuthTries); one is left for its own counting.
const ATTEMPTS_MAX: usize = 5;
/// Default identities, in OpenSSH's order.
pub const DEFAULT_IDENTITIES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// Opens encrypted keys. Never shown.
#[derive(Clone)]
pub struct Passphrase(Arc<Zeroizing<String>>);

impl Passphrase {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase")
    }
}

/// What may be tried on a host, in this order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The controller's own, for a standing connection: then nothing else is tried.
    pub link_key: Option<LinkKey>,
    /// Named by the caller: then nothing else is tried.
    pub key_path: Option<PathBuf>,
    /// When set, `key_path` must lie in one of these (the caller is an assistant).
    pub confined_to: Option<Vec<PathBuf>>,
    pub agent_socket: Option<PathBuf>,
    /// Named by the ssh configuration, and then instead of the default ones. Public halves choose
    /// among the agent's keys.
    pub identity_files: Option<Vec<PathBuf>>,
    /// Of the agent's keys only those that `identity_files` name.
    pub identities_only: bool,
    /// Beside the `-cert.pub` that may lie beside each key.
    pub certificate_files: Vec<PathBuf>,
    /// Usually `~/.ssh`.
    pub identities_dir: Option<PathBuf>,
    pub passphrase: Option<Passphrase>,
}

/// What was tried and what became of it: the evidence in an authentication error.
#[derive(Debug, Default)]
struct Tried {
    notes: Vec<String>,
    /// Keys that were offered to the host: hosts bound these, not the other notes.
    attempts: usize,
}

impl Tried {
    fn note(&mut self, what: impl std::fmt::Display, outcome: impl std::fmt::Display) {
        self.notes.push(format!("{what} ({outcome})"));
    }

    fn refused(&mut self, what: impl std::fmt::Display, outcome: impl std::fmt::Display) {
        self.attempts += 1;
        self.note(what, outcome);
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
    if let Some(key) = &credentials.link_key {
        let key = PrivateKeyWithHashAlg::new(key.private(), None);
        return match with_key(handle, target, key, "the link's own key", &mut tried).await? {
            true => Ok(()),
            false => Err(refused(target, &tried)),
        };
    }
    if let Some(path) = credentials.key_path.as_deref().or(target.key_path.as_deref()) {
        let key = load_key(path, credentials.confined_to.as_deref(), credentials.passphrase.as_ref())?;
        return match with_file(handle, target, credentials, path, key, &mut tried).await? {
            true => Ok(()),
            false => Err(refused(target, &tried)),
        };
    }
    let mut agent = match &credentials.agent_socket {
        Some(socket) => AgentKeys::list(socket, &mut tried).await,
        None => None,
    };
    let named = credentials.identity_files.as_deref().map(public_halves);
    // Of the agent's keys those that are named come first: hosts bound the attempts.
    if let Some(agent) = &mut agent {
        let first = agent.take(|key| named.as_ref().is_none_or(|named| named.contains(key.key_data())));
        if with_agent(handle, target, agent, first, &mut tried).await? {
            return Ok(());
        }
    }
    for path in identity_files(credentials) {
        if !path.exists() || path.extension().is_some_and(|end| end == "pub") {
            continue;
        }
        if tried.attempts >= ATTEMPTS_MAX {
            tried.note(path.display(), "not tried: hosts bound attempts");
            break;
        }
        match load_key(&path, None, credentials.passphrase.as_ref()) {
            Ok(key) => {
                if with_file(handle, target, credentials, &path, key, &mut tried).await? {
                    return Ok(());
                }
            }
            Err(error) => tried.note(path.display(), error.message()),
        }
    }
    if let Some(agent) = agent.as_mut().filter(|_| !credentials.identities_only) {
        let others = agent.take(|_| true);
        if with_agent(handle, target, agent, others, &mut tried).await? {
            return Ok(());
        }
    }
    Err(refused(target, &tried))
}

fn identity_files(credentials: &Credentials) -> Vec<PathBuf> {
    match (&credentials.identity_files, &credentials.identities_dir) {
        (Some(files), _) => files.clone(),
        (None, Some(dir)) => DEFAULT_IDENTITIES.iter().map(|name| dir.join(name)).collect(),
        (None, None) => Vec::new(),
    }
}

/// Of each named file the `.pub` beside it, or itself when it is one: a key may live in an agent only.
fn public_halves(files: &[PathBuf]) -> Vec<KeyData> {
    let public = |path: &PathBuf| {
        let mut name = path.clone().into_os_string();
        if path.extension().is_none_or(|end| end != "pub") {
            name.push(".pub");
        }
        let mut text = String::new();
        File::open(name).ok()?.take(KEY_BYTES_MAX).read_to_string(&mut text).ok()?;
        PublicKey::from_openssh(text.trim()).ok().map(|key| key.key_data().clone())
    };
    files.iter().filter_map(public).collect()
}

/// With a key file: first its certificates, then the key alone.
async fn with_file(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    credentials: &Credentials,
    path: &Path,
    key: PrivateKey,
    tried: &mut Tried,
) -> Result<bool> {
    let hash = rsa_hash(handle, target, key.algorithm().is_rsa()).await?;
    for certificate in certificate::for_key(path, &key, credentials) {
        let what = format!("certificate \"{}\" of {}", shown(certificate.key_id()), path.display());
        let hash = key.algorithm().is_rsa().then_some(HashAlg::Sha512);
        let mut signer = KeySigner(&key);
        match handle.authenticate_certificate_with(target.user.as_str(), certificate, hash, &mut signer).await
        {
            Ok(outcome) => match judge(outcome, target)? {
                Attempt::In => return Ok(true),
                Attempt::Refused(why) => tried.refused(what, why),
            },
            Err(error) if handle.is_closed() => return Err(broken(target).source(error)),
            Err(error) => tried.note(what, error),
        }
    }
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    with_key(handle, target, key, path.display(), tried).await
}

async fn with_key(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    key: PrivateKeyWithHashAlg,
    what: impl std::fmt::Display,
    tried: &mut Tried,
) -> Result<bool> {
    let outcome = handle
        .authenticate_publickey(target.user.as_str(), key)
        .await
        .map_err(|error| broken(target).source(error))?;
    match judge(outcome, target)? {
        Attempt::In => Ok(true),
        Attempt::Refused(why) => {
            tried.refused(what, why);
            Ok(false)
        }
    }
}

/// An agent and what of it was not tried yet.
struct AgentKeys {
    client: AgentClient<UnixStream>,
    left: Vec<AgentIdentity>,
}

impl AgentKeys {
    async fn list(socket: &Path, tried: &mut Tried) -> Option<Self> {
        let mut client = match UnixStream::connect(socket).await {
            Ok(stream) => AgentClient::connect(stream),
            Err(error) => {
                tried.note("ssh agent", format_args!("cannot be reached: {}", error.kind()));
                return None;
            }
        };
        let Ok(left) = client.request_identities().await else {
            tried.note("ssh agent", "does not list its keys");
            return None;
        };
        if left.is_empty() {
            tried.note("ssh agent", "holds no key");
        }
        Some(Self { client, left })
    }

    fn take(&mut self, wanted: impl Fn(&PublicKey) -> bool) -> Vec<AgentIdentity> {
        let (taken, left) =
            std::mem::take(&mut self.left).into_iter().partition(|one| wanted(&one.public_key()));
        self.left = left;
        taken
    }
}

/// Whether one of these keys of the agent let us in.
async fn with_agent(
    handle: &mut Handle<ClientHandler>,
    target: &SshTarget,
    agent: &mut AgentKeys,
    identities: Vec<AgentIdentity>,
    tried: &mut Tried,
) -> Result<bool> {
    for identity in identities {
        if tried.attempts >= ATTEMPTS_MAX {
            tried.note("more agent keys", "not tried: hosts bound attempts; name the key file");
            break;
        }
        let (user, client) = (target.user.as_str(), &mut agent.client);
        let hash = rsa_hash(handle, target, identity.public_key().algorithm().is_rsa()).await?;
        let (what, outcome) = match identity {
            AgentIdentity::PublicKey { key, comment } => {
                let outcome = handle.authenticate_publickey_with(user, key, hash, client).await;
                (format!("agent key {}", shown(&comment)), outcome)
            }
            AgentIdentity::Certificate { certificate, comment } => {
                let outcome = handle.authenticate_certificate_with(user, certificate, hash, client).await;
                (format!("agent certificate {}", shown(&comment)), outcome)
            }
        };
        match outcome {
            Ok(outcome) => match judge(outcome, target)? {
                Attempt::In => return Ok(true),
                Attempt::Refused(why) => tried.refused(what, why),
            },
            Err(_) if handle.is_closed() => return Err(broken(target)),
            Err(_) => tried.refused(what, "agent did not sign"),
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
    let what =
        if tried.notes.is_empty() { "there is no key to try".to_owned() } else { tried.notes.join("; ") };
    Error::new(ErrorCode::HostAuthentication, format!("{target} does not let us in: {what}")).remedy(format!(
        "put a public key into ~{}/.ssh/authorized_keys on the host, or name another key or user",
        target.user
    ))
}

/// Reads a private key after checking where it lies and what it is.
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
    open_key(&text, passphrase).map_err(refuse_by(&refuse))
}

/// Why a key file's text is not a key in our hands.
enum Closed {
    NoPassphrase,
    WrongPassphrase,
    NoKey,
}

/// The decoder's own errors may quote what they read: they are not kept.
fn open_key(text: &str, passphrase: Option<&Passphrase>) -> Result<PrivateKey, Closed> {
    let encrypted = match decode_secret_key(text, None) {
        Ok(key) => return Ok(key),
        Err(KeyError::KeyIsEncrypted) => true,
        Err(_) => text.contains("ENCRYPTED"),
    };
    match passphrase {
        _ if !encrypted => Err(Closed::NoKey),
        None => Err(Closed::NoPassphrase),
        Some(passphrase) => decode_secret_key(text, Some(&passphrase.0)).map_err(|_| Closed::WrongPassphrase),
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
