//! Settings of one host from the files: the first applicable value of each keyword.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::PathBuf,
};

use aegis_types::error::{Error, Result};

use super::{
    ClientConfig,
    block::{Judgement, Subject},
    line::Place,
    read::Directive,
    tokens::Tokens,
};
use crate::target::SSH_PORT_DEFAULT;

/// Supported keywords. All others are skipped, also in blocks that cannot be judged.
const KEYWORDS: [&str; 11] = [
    "hostname",
    "user",
    "port",
    "identityfile",
    "certificatefile",
    "identitiesonly",
    "identityagent",
    "proxyjump",
    "proxycommand",
    "userknownhostsfile",
    "stricthostkeychecking",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictHostKeys {
    /// `yes` and `ask`, since there is no person to ask.
    Yes,
    AcceptNew,
    /// `no` and `off`, which count as `accept-new` at most.
    No,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum IdentityAgent {
    /// The agent of the environment.
    #[default]
    Environment,
    None,
    Socket(PathBuf),
}

/// Settings of a host, with expanded tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    pub host_name: Option<String>,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// Named identity files; `None` if the default identities are tried.
    pub identity_files: Option<Vec<PathBuf>>,
    pub certificate_files: Vec<PathBuf>,
    pub identities_only: bool,
    pub identity_agent: IdentityAgent,
    /// Hops as written, nearest first.
    pub jumps: Vec<String>,
    /// Used instead of the user's default file. An empty list stands for `none`.
    pub known_hosts: Option<Vec<PathBuf>>,
    pub strict_host_keys: Option<(StrictHostKeys, Place)>,
}

/// `ProxyJump` and `ProxyCommand` are one setting: the first of them applies.
enum Proxy {
    None,
    Jump(String, Place),
    Command(Place),
}

/// First values, as written.
#[derive(Default)]
struct Found {
    host_name: Option<(String, Place)>,
    user: Option<(String, Place)>,
    port: Option<u16>,
    identity_files: Vec<(String, Place)>,
    certificate_files: Vec<(String, Place)>,
    identities_only: Option<bool>,
    identity_agent: Option<(String, Place)>,
    proxy: Option<Proxy>,
    known_hosts: Option<(Vec<String>, Place)>,
    strict_host_keys: Option<(StrictHostKeys, Place)>,
}

impl ClientConfig {
    /// Returns the settings of a host, given the name that the person used. An explicit user and port override the
    /// files, and are visible to conditions and tokens.
    pub fn for_host(
        &self,
        original: &str,
        user: Option<&str>,
        port: Option<u16>,
        user_default: &str,
    ) -> Result<HostSettings> {
        let asked = Question { original, user, user_default };
        let mut found = Found::default();
        self.pass(&asked, &mut found, false)?;
        let second = self.directives.iter().flat_map(|directive| &directive.scope);
        if second.into_iter().any(|block| block.condition.asks_for_second_pass()) {
            self.pass(&asked, &mut found, true)?;
        }
        found.expanded(self, &asked, port)
    }

    fn pass(&self, asked: &Question<'_>, found: &mut Found, final_pass: bool) -> Result<()> {
        // A block is judged where it begins: settings of its own lines do not end it.
        let mut judged = HashMap::new();
        for directive in &self.directives {
            for block in &directive.scope {
                if let Entry::Vacant(vacant) = judged.entry(block.id) {
                    let host_name = found.host_name(self, asked, None)?;
                    vacant.insert(block.condition.judge(&Subject {
                        original: asked.original,
                        host_name: &host_name,
                        user: asked.user.or(found.user()).unwrap_or(asked.user_default),
                        local_user: &self.local.name,
                        final_pass,
                    }));
                }
            }
            match in_all(directive.scope.iter().filter_map(|block| judged.get(&block.id))) {
                Judgement::Applies => found.take(directive)?,
                Judgement::Undecided(criterion) if found.would_take(&directive.keyword) => {
                    return Err(undecided(&criterion, directive, asked.original));
                }
                Judgement::Undecided(_) | Judgement::Not => {}
            }
        }
        Ok(())
    }
}

/// Returns whether all enclosing blocks of a line apply.
fn in_all<'a>(blocks: impl Iterator<Item = &'a Judgement>) -> Judgement {
    let mut all = Judgement::Applies;
    for block in blocks {
        match block {
            Judgement::Applies => {}
            Judgement::Not => return Judgement::Not,
            undecided => all = undecided.clone(),
        }
    }
    all
}

struct Question<'a> {
    original: &'a str,
    user: Option<&'a str>,
    user_default: &'a str,
}

impl Found {
    fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|(user, _)| user.as_str())
    }

    fn would_take(&self, keyword: &str) -> bool {
        match keyword {
            "hostname" => self.host_name.is_none(),
            "user" => self.user.is_none(),
            "port" => self.port.is_none(),
            "identitiesonly" => self.identities_only.is_none(),
            "identityagent" => self.identity_agent.is_none(),
            "proxyjump" | "proxycommand" => self.proxy.is_none(),
            "userknownhostsfile" => self.known_hosts.is_none(),
            "stricthostkeychecking" => self.strict_host_keys.is_none(),
            other => KEYWORDS.contains(&other),
        }
    }

    fn take(&mut self, directive: &Directive) -> Result<()> {
        let keyword = directive.keyword.as_str();
        if !self.would_take(keyword) {
            return Ok(());
        }
        let place = directive.place.clone();
        let wrong = |why: &str| wrong(&place, &format!("{keyword} {why}"));
        let first = directive.words.first().ok_or_else(|| wrong("has no value"))?;
        let truth = || match first.to_ascii_lowercase().as_str() {
            "yes" | "true" => Ok(true),
            "no" | "false" => Ok(false),
            _ => Err(wrong("is neither yes nor no")),
        };
        let noted = || (first.clone(), place.clone());
        match keyword {
            "hostname" => self.host_name = Some(noted()),
            "user" => self.user = Some(noted()),
            "port" => {
                let port = first.parse::<u16>().ok().filter(|port| *port > 0);
                self.port = Some(port.ok_or_else(|| wrong("is no number from 1 to 65535"))?);
            }
            "identityfile" => self.identity_files.push(noted()),
            "certificatefile" => self.certificate_files.push(noted()),
            "identitiesonly" => self.identities_only = Some(truth()?),
            "identityagent" => self.identity_agent = Some(noted()),
            "proxyjump" | "proxycommand" if first.eq_ignore_ascii_case("none") => {
                self.proxy = Some(Proxy::None);
            }
            "proxyjump" => self.proxy = Some(Proxy::Jump(first.clone(), place)),
            "proxycommand" => self.proxy = Some(Proxy::Command(place)),
            "userknownhostsfile" => self.known_hosts = Some((directive.words.clone(), place)),
            "stricthostkeychecking" => {
                let strict = match first.to_ascii_lowercase().as_str() {
                    "yes" | "ask" | "true" => StrictHostKeys::Yes,
                    "accept-new" => StrictHostKeys::AcceptNew,
                    "no" | "off" | "false" => StrictHostKeys::No,
                    _ => return Err(wrong("is none of yes, ask, accept-new, no")),
                };
                self.strict_host_keys = Some((strict, place));
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the host name. In its value `%h` is the name that the person gave; only `%%` is supported besides.
    fn host_name(&self, config: &ClientConfig, asked: &Question<'_>, port: Option<u16>) -> Result<String> {
        let Some((text, place)) = &self.host_name else { return Ok(asked.original.to_owned()) };
        let tokens = self.tokens(config, asked, port, asked.original);
        tokens.expand(text).map_err(|why| wrong(place, &why))
    }

    fn tokens<'a>(
        &'a self,
        config: &'a ClientConfig,
        asked: &Question<'a>,
        port: Option<u16>,
        host_name: &'a str,
    ) -> Tokens<'a> {
        Tokens {
            home: &config.local.home,
            original: asked.original,
            host_name,
            port: port.or(self.port).unwrap_or(SSH_PORT_DEFAULT),
            user: asked.user.or(self.user()).unwrap_or(asked.user_default),
            local_user: &config.local.name,
        }
    }

    fn expanded(
        self,
        config: &ClientConfig,
        asked: &Question<'_>,
        port: Option<u16>,
    ) -> Result<HostSettings> {
        let host_name = self.host_name(config, asked, port)?;
        let tokens = self.tokens(config, asked, port, &host_name);
        let path = |text: &str, place: &Place| tokens.path(text).map_err(|why| wrong(place, &why));
        let paths = |named: &[(String, Place)]| {
            let mut found = Vec::new();
            for (text, place) in named.iter().filter(|(text, _)| !text.eq_ignore_ascii_case("none")) {
                let path = path(text, place)?;
                if !found.contains(&path) {
                    found.push(path);
                }
            }
            Ok::<_, Error>(found)
        };
        let identity_files = match self.identity_files.is_empty() {
            true => None,
            false => Some(paths(&self.identity_files)?),
        };
        let identity_agent = match &self.identity_agent {
            None => IdentityAgent::Environment,
            Some((name, _)) if name == "SSH_AUTH_SOCK" || name == "$SSH_AUTH_SOCK" => {
                IdentityAgent::Environment
            }
            Some((name, _)) if name.eq_ignore_ascii_case("none") => IdentityAgent::None,
            Some((name, place)) => IdentityAgent::Socket(path(name, place)?),
        };
        let known_hosts = match &self.known_hosts {
            None => None,
            Some((names, place)) => {
                let files = names.iter().filter(|name| !name.eq_ignore_ascii_case("none"));
                Some(files.map(|name| path(name, place)).collect::<Result<Vec<_>>>()?)
            }
        };
        let jumps = match &self.proxy {
            None | Some(Proxy::None) => Vec::new(),
            Some(Proxy::Jump(text, place)) => {
                let text = tokens.expand(text).map_err(|why| wrong(place, &why))?;
                text.split(',').map(|hop| hop.trim().to_owned()).collect()
            }
            Some(Proxy::Command(place)) => return Err(never_run("ProxyCommand", place, asked.original)),
        };
        Ok(HostSettings {
            host_name: self.host_name.as_ref().map(|_| host_name.clone()),
            user: self.user.as_ref().map(|(user, _)| user.clone()),
            port: self.port,
            identity_files,
            certificate_files: paths(&self.certificate_files)?,
            identities_only: self.identities_only.unwrap_or(false),
            identity_agent,
            jumps,
            known_hosts,
            strict_host_keys: self.strict_host_keys.clone(),
        })
    }
}

fn wrong(place: &Place, why: &str) -> Error {
    Error::invalid(format!("ssh configuration {place}: {}", aegis_types::text::shown(why)))
        .remedy("correct the line, or name another file in spec.deploy.ssh_config")
}

fn never_run(what: &str, place: &Place, host: &str) -> Error {
    Error::invalid(format!(
        "host {} needs {what} ({place}), and no command of a configuration file is ever run",
        aegis_types::text::shown(host)
    ))
    .remedy("use ProxyJump, or name a file without it in spec.deploy.ssh_config")
}

fn undecided(criterion: &str, directive: &Directive, host: &str) -> Error {
    let what = format!("{} under \"{}\"", directive.keyword, aegis_types::text::shown(criterion));
    if criterion == "Match exec" {
        return never_run(&what, &directive.place, host);
    }
    wrong(&directive.place, &format!("whether {what} counts for host {host} cannot be told"))
}
