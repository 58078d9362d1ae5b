//! Checks the logins of deployments, as far as possible without a host: keys, agent, and the client's files.

use std::path::PathBuf;

use cluster_core::{
    config::schema::Deploy,
    deploy::settings::DeploySettings,
    ssh::{
        auth::DEFAULT_IDENTITIES,
        client_config::{ClientConfig, ConfigFile, LocalUser},
        known_hosts::KnownHosts,
    },
    types::error::Result,
};

use super::{Check, Finding};

#[derive(Debug)]
pub struct Facts {
    /// Default keys that exist.
    keys: Vec<PathBuf>,
    /// Path in `SSH_AUTH_SOCK`, and whether the agent answers.
    agent: Option<(PathBuf, bool)>,
    /// Whether the ssh configuration can be read.
    config: Result<()>,
    known_hosts: Result<()>,
}

pub fn look(deploy: &Deploy) -> Facts {
    let base =
        std::env::home_dir().map_or_else(DeploySettings::default, |home| DeploySettings::for_home(&home));
    let usual = base.with_environment();
    let home = usual.home.unwrap_or_else(|| "/".into());
    let keys = DEFAULT_IDENTITIES.iter().map(|name| home.join(".ssh").join(name));
    let config = deploy.ssh_config.clone().map_or(usual.ssh_config, ConfigFile::Named);
    let known_hosts = deploy.known_hosts.clone().map_or(usual.known_hosts, |path| vec![path]);
    let answers = |socket: &PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
    Facts {
        keys: keys.filter(|key| key.exists()).collect(),
        agent: usual.agent_socket.map(|socket| (socket.clone(), answers(&socket))),
        config: ClientConfig::read(&config, LocalUser::of(&home)).map(drop),
        known_hosts: KnownHosts::read(&known_hosts).map(drop),
    }
}

pub fn judge(facts: &Facts) -> Vec<Finding> {
    let check = Check::Ssh;
    let mut findings = Vec::new();
    for file in [&facts.config, &facts.known_hosts] {
        if let Err(error) = file {
            let remedy = error.remedy_text().unwrap_or("every deployment reads it: correct it");
            findings.push(check.fail(error.message(), remedy));
        }
    }
    let agent = facts.agent.as_ref();
    if let Some((socket, false)) = agent {
        findings.push(check.warn(
            format!("SSH_AUTH_SOCK names {}, where no agent answers", socket.display()),
            "start the agent, or unset SSH_AUTH_SOCK; the daemon uses the agent of the newest command that has one",
        ));
    }
    let agent = agent.is_some_and(|(_, answers)| *answers);
    if facts.keys.is_empty() && !agent {
        findings.push(check.warn(
            "there is no usual key in ~/.ssh and no agent: deployments need one that is named",
            "ssh-keygen -t ed25519, and ssh-copy-id to the hosts; or name a key (`ssh_key_path`, ~/.ssh/config)",
        ));
    }
    if findings.is_empty() {
        let mut with: Vec<_> = facts.keys.iter().map(|key| key.display().to_string()).collect();
        with.extend(agent.then(|| "an agent".to_owned()));
        findings.push(check.ok(format!("logs in with {}", with.join(", "))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{self, Fail, Ok as Good, Warn};
    use cluster_core::types::error::{Error, ErrorCode};

    fn facts() -> Facts {
        Facts { keys: vec!["/root/.ssh/id_ed25519".into()], agent: None, config: Ok(()), known_hosts: Ok(()) }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        judge(facts).iter().map(|finding| finding.result).collect()
    }

    #[test]
    fn a_key_or_an_agent_is_enough() {
        let agent = |answers| Some(("/run/agent".into(), answers));
        assert_eq!(verdicts(&facts()), [Good]);
        assert_eq!(verdicts(&Facts { keys: Vec::new(), agent: agent(true), ..facts() }), [Good]);
        assert_eq!(verdicts(&Facts { keys: Vec::new(), ..facts() }), [Warn]);
        assert_eq!(verdicts(&Facts { keys: Vec::new(), agent: agent(false), ..facts() }), [Warn, Warn]);
        let unreadable = Err(Error::new(ErrorCode::HostKeyUnknown, "it cannot be read"));
        assert_eq!(verdicts(&Facts { known_hosts: unreadable, ..facts() }), [Fail]);
    }

    #[test]
    fn files_of_the_configuration_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let deploy = Deploy {
            ssh_config: Some(dir.path().join("missing")),
            known_hosts: Some(dir.path().to_owned()),
            ..Deploy::default()
        };
        let facts = look(&deploy);
        assert!(facts.config.is_err() && facts.known_hosts.is_err(), "{facts:?}");
    }
}
