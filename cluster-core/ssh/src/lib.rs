//! One SSH connection a host, in process: no `ssh` program, no local port.
//!
//! - [`target`]: where to, checked by grammar before any socket exists.
//! - [`known_hosts`], [`host_keys`]: is this the host? Pure decisions over files and pins.
//! - [`client_config`]: what `~/.ssh/config` says about a host, and the hosts on the way there.
//! - [`auth`]: who are we? Key file, agent, default identities.
//! - [`connection`]: scripts, bulk input, SFTP, channels to and from the host's sockets.
//!   `sessions`: how many at a time; `forward`: what the host listens on for us.
//! - [`jump_hosts`]: the connections that others go through.
//! - [`probe`]: a host's key without logging in, for a person to approve.
//! - [`link`]: the standing connection of a node; `link_key`: a key of its own for it.
//!
//! Tasks: russh runs one per connection; every exec has one that always reads its channel (an unread
//! channel stops the whole connection) and ends with the caller, the command or its time limit; every
//! link has one supervisor, owned by its [`link::LinkHandle`].
//!
//! Absent on purpose: passwords and keyboard-interactive logins, agent forwarding.

pub mod auth;
mod certificate;
pub mod client_config;
pub mod connection;
mod credentials;
mod dial;
mod endpoint;
mod exec;
mod forward;
mod handler;
mod host_certificate;
pub mod host_keys;
pub mod jump_hosts;
mod key_file;
pub mod known_hosts;
pub mod link;
mod link_key;
pub mod probe;
pub mod script;
mod session_slots;
mod sessions;
pub mod sftp;
pub mod target;

pub use connection::{Connection, Leg};
pub use credentials::Credentials;
pub use dial::{ConnectOptions, Timeouts};
pub use endpoint::{ForwardEndpoint, SshStream};
pub use exec::{Held, ScriptOutput};
pub use host_keys::{HostKey, HostKeyPolicy, HostKeyRules};
pub use key_file::Passphrase;
pub use link::{Dialer, LinkHandle, LinkSettings, LinkState};
pub use link_key::{FILE as LINK_KEY_FILE, LinkKey};
pub use target::{Endpoint, HostAddress, SshTarget};
