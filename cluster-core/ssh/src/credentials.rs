//! Credentials for a login: a link key, a key file, or the agent and the default identities.

use std::path::PathBuf;

use super::link_key::LinkKey;
use crate::key_file::Passphrase;

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
