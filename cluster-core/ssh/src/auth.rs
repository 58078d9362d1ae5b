//! Authenticates to a host: with one key file, or with the agent and the default identities.
//!
//! A private key is read through one file descriptor after its path, type, owner and mode were checked. Its content
//! never appears in an error.

use std::{
    fs::File,
    io::Read,
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
        HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
        ssh_key::public::KeyData,
    },
};
use tokio::net::UnixStream;

use super::{
    certificate::{self, KeySigner},
    handler::ClientHandler,
    target::SshTarget,
};
use crate::{
    Credentials,
    key_file::{KEY_BYTES_MAX, load_key},
};

/// sshd disconnects after six tries by default (MaxAuthTries); one is left for its own counting.
const ATTEMPTS_MAX: usize = 5;
/// Default identities, in OpenSSH's order.
pub const DEFAULT_IDENTITIES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// Log of the attempts: the evidence in an authentication error.
#[derive(Debug, Default)]
struct Tried {
    notes: Vec<String>,
    /// Number of keys offered to the host. Hosts limit this number, not the other notes.
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

/// Outcome of one attempt. A broken connection is not a rejection.
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
    // Named keys of the agent come first, since hosts limit the attempts.
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

/// Reads the `.pub` file of each named file, or the file itself if it is one: a key may exist only in an agent.
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

/// Authenticates with a key file: first with its certificates, then with the key alone.
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

/// An agent and its keys that were not tried yet.
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

/// Returns whether one of these keys of the agent was accepted.
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

/// Returns the hash for RSA. Without a hash the signature is SHA-1, which current sshd rejects.
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
