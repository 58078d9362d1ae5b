//! Credentials for a login: a link key, a key file, or the agent and the default identities.

use std::path::PathBuf;

use super::link_key::LinkKey;
use crate::key_file::Passphrase;

/// Credentials that may be tried on a host, in this order.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The controller's own key for a standing connection. If set, nothing else is tried.
    pub link_key: Option<LinkKey>,
    /// Key named by the caller. If set, nothing else is tried.
    pub key_path: Option<PathBuf>,
    /// If set, `key_path` must be in one of these directories (the caller is an assistant).
    pub confined_to: Option<Vec<PathBuf>>,
    pub agent_socket: Option<PathBuf>,
    /// Files named by the ssh configuration, used instead of the default identities. Public halves select among the
    /// agent's keys.
    pub identity_files: Option<Vec<PathBuf>>,
    /// Use only those keys of the agent that `identity_files` names.
    pub identities_only: bool,
    /// Certificates in addition to the `-cert.pub` file of each key.
    pub certificate_files: Vec<PathBuf>,
    /// Usually `~/.ssh`.
    pub identities_dir: Option<PathBuf>,
    pub passphrase: Option<Passphrase>,
}
