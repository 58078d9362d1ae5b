//! `~/.ssh/config`, as far as it says where a host is and how to log in there.
//!
//! - `line`: one line's words; `block`: `Host` and `Match`; `read`: files and `Include`.
//! - [`settings`]: what applies to one host, first value wins. - `tokens`: `%h`, `~` and the like.
//! - [`route`]: the hosts on the way there, by `ProxyJump`.
//!
//! Nothing in these files is ever executed: a `ProxyCommand` or a `Match exec` that would count for a
//! host is an error that names it. Keywords that are not listed in [`settings`] are passed over.
//!
//! The parser is our own because of what others lack (tried: ssh2-config 0.9, russh-config 0.58):
//! neither knows `Match`, so that the lines of such a block would count for the block before it;
//! the second knows no `Include` either, runs `ProxyCommand`, and lets the last value win.
//!
//! Absent: the system's `/etc/ssh/ssh_config`, `CanonicalizeHostname`, `HostKeyAlias`, `%C`, `%k`.

mod block;
mod line;
mod read;
pub mod route;
pub mod settings;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::{Path, PathBuf};

use aegis_types::error::{Error, Result};

use self::read::{Directive, Reader};
pub use self::{
    line::Place,
    route::{Asked, Hop},
    settings::{HostSettings, IdentityAgent, StrictHostKeys},
};

/// Which file counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConfigFile {
    #[default]
    None,
    /// Its absence says nothing.
    Usual(PathBuf),
    /// Named by the configuration: it must be there.
    Named(PathBuf),
}

/// The user whom the controller runs as, for tokens, `~` and `Match localuser`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalUser {
    pub name: String,
    pub home: PathBuf,
}

impl LocalUser {
    pub fn of(home: &Path) -> Self {
        let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
        Self { name: name.unwrap_or_else(|| "root".to_owned()), home: home.to_owned() }
    }
}

/// The files as they were read, still to be asked about a host.
#[derive(Debug)]
pub struct ClientConfig {
    directives: Vec<Directive>,
    local: LocalUser,
}

impl ClientConfig {
    pub fn read(file: &ConfigFile, local: LocalUser) -> Result<Self> {
        let mut reader = Reader::new(&local.home);
        match file {
            ConfigFile::None => {}
            ConfigFile::Usual(path) => {
                reader.read(path, &[])?;
            }
            ConfigFile::Named(path) => {
                if !reader.read(path, &[])? {
                    return Err(Error::invalid(format!("there is no file {}", path.display()))
                        .remedy("correct spec.deploy.ssh_config"));
                }
            }
        }
        let directives = reader.directives;
        Ok(Self { directives, local })
    }
}
