//! Checks whether containers can run here. Compose is not checked: deployed hosts need it, this machine does not.

use std::path::{Path, PathBuf};

use cluster_core::{
    config::{Settings, schema::NodeType},
    engine::{Engine, EngineInfo, SOCKET_DEFAULT},
    types::node::Role,
};
use nix::unistd::{AccessFlags, access};

use super::{Check, Finding};

/// Minimum version (major and minor), as for hosts.
const VERSION_MIN: (u32, u32) = (20, 10);

#[derive(Debug)]
pub struct Facts {
    socket: PathBuf,
    there: bool,
    /// Whether this user may read and write the socket.
    permitted: bool,
    info: Result<EngineInfo, String>,
    /// A worker needs an engine; a hybrid controller works without.
    needed: bool,
}

/// Returns the facts; `None` on a node that runs no containers.
pub async fn look(settings: &Settings) -> Option<Facts> {
    if settings.node_type == NodeType::Orchestrator || !settings.role.runs_executions() {
        return None;
    }
    let socket = settings.docker_socket.clone().unwrap_or_else(|| Path::new(SOCKET_DEFAULT).to_owned());
    let info = match Engine::new(Some(&socket)) {
        Ok(engine) => engine.info().await,
        Err(error) => Err(error),
    };
    Some(Facts {
        there: socket.exists(),
        permitted: access(&socket, AccessFlags::R_OK | AccessFlags::W_OK).is_ok(),
        info: info.map_err(|error| error.message().to_owned()),
        needed: settings.role == Role::Worker,
        socket,
    })
}

pub fn judge(facts: &Facts) -> Finding {
    let check = Check::Engine;
    let Facts { socket, .. } = facts;
    let bad = |what: String, remedy: &str| match facts.needed {
        true => check.fail(what, remedy),
        false => check.warn(format!("{what}; nodes you deploy run containers all the same"), remedy),
    };
    match &facts.info {
        Ok(info) if version(&info.version).is_some_and(|version| version < VERSION_MIN) => {
            bad(format!("docker {} is older than 20.10", info.version), "install a newer Docker")
        }
        Ok(info) => check.ok(format!(
            "docker {} at {}: {} cores, {} MB",
            info.version,
            socket.display(),
            info.cpu_cores,
            info.memory_mb
        )),
        Err(_) if !facts.there => bad(
            format!("there is no {}", socket.display()),
            "install and start Docker, or set spec.runtime.docker_socket_path",
        ),
        Err(_) if !facts.permitted => bad(
            format!("this user may not use {}", socket.display()),
            "add the user to the group `docker`, and log in anew",
        ),
        Err(why) => bad(why.clone(), "start Docker; its own log says why it does not answer"),
    }
}

/// Parses a version; `None` for text without numbers, like `dev`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{Fail, Ok as Good, Warn};
    use cluster_core::config::{NodeConfig, Overrides};

    fn docker(version: &str) -> Facts {
        let info = EngineInfo {
            version: version.to_owned(),
            cpu_cores: 2,
            memory_mb: 4096,
            os: String::new(),
            arch: String::new(),
            runtimes: Vec::new(),
        };
        Facts {
            socket: "/run/docker.sock".into(),
            there: true,
            permitted: true,
            info: Ok(info),
            needed: false,
        }
    }

    #[test]
    fn the_cause_is_told_apart() {
        for (version, result) in [("28.2.2", Good), ("20.10.5", Good), ("19.03.1", Warn), ("dev", Good)] {
            assert_eq!(judge(&docker(version)).result, result, "{version}");
        }
        let silent = || Facts { info: Err("it is silent".into()), ..docker("") };
        let remedy = |facts: &Facts| judge(facts).remedy.unwrap();
        assert!(remedy(&silent()).contains("log"));
        assert!(remedy(&Facts { permitted: false, ..silent() }).contains("group"));
        assert!(remedy(&Facts { there: false, permitted: false, ..silent() }).contains("install"));
        assert_eq!(judge(&silent()).result, Warn);
        assert_eq!(judge(&Facts { needed: true, ..silent() }).result, Fail);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_found_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::of(&NodeConfig::default(), &Overrides::default()).unwrap();
        settings.docker_socket = Some(dir.path().join("docker.sock"));
        let facts = look(&settings).await.unwrap();
        assert!(!facts.there && facts.info.is_err(), "{facts:?}");
        settings.role = Role::Controller;
        assert!(look(&settings).await.is_none());
    }
}
