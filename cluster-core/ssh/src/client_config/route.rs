//! Route to a host: its jump hosts, nearest first, each with its settings.

use aegis_types::{
    error::{Error, Result},
    ids::UserName,
    text::shown,
};

use super::{ClientConfig, settings::HostSettings};
use crate::target::{Endpoint, HostAddress, SSH_PORT_DEFAULT};

/// Maximum number of hops, including the host itself.
const HOPS_MAX: usize = 8;

/// Requested login of a host that a person named.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub host: &'a HostAddress,
    pub user: Option<&'a UserName>,
    pub port: Option<u16>,
    /// User if neither the person nor the files name one.
    pub user_default: &'a str,
}

/// One host of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    pub endpoint: Endpoint,
    pub user: UserName,
    pub settings: HostSettings,
}

impl ClientConfig {
    /// Returns the route; the last hop is the host itself. Every address is checked by the rules for hosts, since a
    /// file may name any address.
    pub fn route(&self, asked: Asked<'_>, allow_loopback: bool) -> Result<Vec<Hop>> {
        let mut route = Vec::new();
        let mut next = Some((Wanted::of(asked), None));
        // From the host back to the controller.
        while let Some((wanted, before)) = next.take() {
            if route.len() >= HOPS_MAX {
                return Err(Error::invalid(format!(
                    "the way to {} has more than {HOPS_MAX} hosts",
                    asked.host
                ))
                .remedy("look for a loop in the ProxyJump lines of the ssh configuration"));
            }
            let hop = self.hop(&wanted, allow_loopback)?;
            // Hops that were written before this one override the hop's own lines.
            let mut jumps: Vec<String> = before.unwrap_or_else(|| hop.settings.jumps.clone());
            if let Some(previous) = jumps.pop() {
                let before = Some(jumps).filter(|rest| !rest.is_empty());
                next = Some((Wanted::parse(&previous, &self.local.name, allow_loopback)?, before));
            }
            route.push(hop);
        }
        route.reverse();
        Ok(route)
    }

    fn hop(&self, wanted: &Wanted, allow_loopback: bool) -> Result<Hop> {
        let user = wanted.user.as_ref().map(UserName::as_str);
        let settings = self.for_host(wanted.host.as_str(), user, wanted.port, &wanted.user_default)?;
        let address = match &settings.host_name {
            None => wanted.host.clone(),
            Some(name) => HostAddress::parse(name, allow_loopback)?,
        };
        let user = match (&wanted.user, &settings.user) {
            (Some(user), _) => user.clone(),
            (None, Some(user)) => UserName::parse(user.as_str())?,
            (None, None) => UserName::parse(wanted.user_default.as_str())?,
        };
        let port = wanted.port.or(settings.port).unwrap_or(SSH_PORT_DEFAULT);
        Ok(Hop { endpoint: Endpoint { name: wanted.host.clone(), address, port }, user, settings })
    }
}

struct Wanted {
    host: HostAddress,
    user: Option<UserName>,
    port: Option<u16>,
    user_default: String,
}

impl Wanted {
    fn of(asked: Asked<'_>) -> Self {
        Self {
            host: asked.host.clone(),
            user: asked.user.cloned(),
            port: asked.port,
            user_default: asked.user_default.to_owned(),
        }
    }

    /// Parses `[user@]host[:port]` or `ssh://[user@]host[:port]`. An IPv6 address with a port needs brackets. A jump
    /// host's default user is the local user, as in ssh.
    fn parse(text: &str, local_user: &str, allow_loopback: bool) -> Result<Self> {
        let bare = text.strip_prefix("ssh://").unwrap_or(text).trim_end_matches('/');
        let (user, place) = match bare.rsplit_once('@') {
            Some((user, place)) => (Some(UserName::parse(user)?), place),
            None => (None, bare),
        };
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').unwrap_or(port))),
            None if place.matches(':').count() > 1 => (place, None),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(()));
        let port = port.transpose().map_err(|()| {
            Error::invalid(format!("ProxyJump \"{}\" has no valid port", shown(text)))
                .remedy("write [user@]host[:port], several with commas between them")
        })?;
        let host = HostAddress::parse(host, allow_loopback)?;
        Ok(Self { host, user, port, user_default: local_user.to_owned() })
    }
}
