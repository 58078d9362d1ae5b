//! The container that holds the network namespace of an execution, with the rules of what may be reached in it.

use std::time::Duration;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::order::Attempt,
    ids::NodeId,
};
use bollard::{
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{CreateContainerOptionsBuilder, LogsOptionsBuilder, StartContainerOptions},
};
use futures::StreamExt as _;

use super::{Engine, Found, container_name, refused, status, volume::VolumeOf};
use crate::network_guard::READY;

/// The guard adds some twenty rules, in a few milliseconds; the rest is for a busy machine.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const MEMORY_BYTES: i64 = 64 * 1024 * 1024;
const PROCESSES: i64 = 32;
/// Output kept for the error where it fails.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Name of an execution's guard.
pub fn guard_name(node_id: &NodeId, attempt: &Attempt) -> String {
    format!("{}-net", container_name(node_id, attempt, 1))
}

#[derive(Debug)]
pub struct GuardSpec<'a> {
    /// The execution that it is for.
    pub of: VolumeOf<'a>,
    /// Image of this very program.
    pub image: &'a str,
    pub network: &'a str,
    /// The program's arguments.
    pub arguments: Vec<String>,
}

impl GuardSpec<'_> {
    fn to_body(&self) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(self.image.to_owned()),
            cmd: Some(self.arguments.clone()),
            user: Some("0:0".to_owned()),
            // As many threads as the machine has cores would be more than its processes.
            env: Some(vec!["TOKIO_WORKER_THREADS=1".to_owned()]),
            labels: Some(self.of.labels()),
            host_config: Some(HostConfig {
                network_mode: Some(self.network.to_owned()),
                cap_drop: Some(vec!["ALL".into()]),
                cap_add: Some(vec!["NET_ADMIN".into()]),
                security_opt: Some(vec!["no-new-privileges".into()]),
                readonly_rootfs: Some(true),
                memory: Some(MEMORY_BYTES),
                memory_swap: Some(MEMORY_BYTES),
                pids_limit: Some(PROCESSES),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

impl Engine {
    /// Returns once the guard runs and its rules are active. A guard that has ended is made again, since no container
    /// can join it.
    pub async fn ensure_guard(&self, spec: &GuardSpec<'_>) -> Result<()> {
        let name = guard_name(spec.of.node_id, spec.of.attempt);
        match self.find(&name).await? {
            Found::Running => return self.await_guard(&name).await,
            Found::Created | Found::Exited(_) => self.remove(&name).await?,
            Found::Missing => {}
        }
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        match self.docker.create_container(Some(options), spec.to_body()).await {
            Ok(_) => {}
            Err(e) if status(&e) == Some(409) => {}
            Err(e) => return Err(refused("create the guard of a network", e)),
        }
        self.docker
            .start_container(&name, None::<StartContainerOptions>)
            .await
            .map_err(|e| refused("start the guard of a network", e))?;
        self.await_guard(&name).await
    }

    async fn await_guard(&self, name: &str) -> Result<()> {
        let options = LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).build();
        let ready = async {
            let mut text = String::new();
            let mut pieces = self.docker.logs(name, Some(options));
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| refused("read the guard of a network", e))?;
                text.push_str(&piece.to_string());
                if text.contains(READY) {
                    return Ok(());
                }
                if text.len() > OUTPUT_BYTES_MAX {
                    break;
                }
            }
            Err(unguarded(aegis_types::text::shown(text.trim())))
        };
        match tokio::time::timeout(READY_TIMEOUT, ready).await {
            Ok(ready) => ready,
            Err(_) => Err(unguarded(format!("no answer within {} s", READY_TIMEOUT.as_secs()))),
        }
    }
}

fn unguarded(why: String) -> Error {
    Error::new(ErrorCode::Engine, format!("the network of a container cannot be guarded: {why}")).remedy(
        "run the execution without a network, or open every network on the node with \
         spec.runtime.policy.allowed_networks: [0.0.0.0/0]",
    )
}
