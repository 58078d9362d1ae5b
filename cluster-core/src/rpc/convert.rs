//! Messages to domain types and back: the one place, beside events, where generated types are read.

use std::time::Duration;

use aegis_proto::aegis::cluster::v1 as pb;

use crate::{
    clock::now_ms,
    cluster::{
        membership::{Command, ConfigReport},
        peer::{Amounts, Capabilities, PeerStatus, PeerView, Role},
    },
    error::{Error, Result},
    execution::order::Held,
    ids::{CommandId, ExecutionId, Tag},
    store::{NodeRecord, to_name},
};

/// Lists in a message are bounded by its size; these bound what is kept.
const TAGS_MAX: usize = 64;
const NAMES_MAX: usize = 256;

pub fn role_to_wire(role: Role) -> pb::NodeRole {
    match role {
        Role::Controller => pb::NodeRole::Controller,
        Role::Worker => pb::NodeRole::Worker,
        Role::Hybrid => pb::NodeRole::Hybrid,
    }
}

pub fn role_from_wire(role: i32) -> Result<Role> {
    match pb::NodeRole::try_from(role) {
        Ok(pb::NodeRole::Controller) => Ok(Role::Controller),
        Ok(pb::NodeRole::Worker | pb::NodeRole::Edge) => Ok(Role::Worker),
        Ok(pb::NodeRole::Hybrid) => Ok(Role::Hybrid),
        Ok(pb::NodeRole::Unspecified | pb::NodeRole::RelayCoordinator) | Err(_) => {
            Err(Error::invalid(format!("role {role} is not controller, worker or hybrid")))
        }
    }
}

pub fn capabilities_to_wire(own: &Capabilities) -> pb::NodeCapabilities {
    pb::NodeCapabilities {
        gpu_count: own.total.gpus,
        vram_gb: own.total.vram_gb,
        cpu_cores: own.total.cpu_millicores / 1000,
        available_memory_gb: own.total.memory_mb / 1024,
        supported_runtimes: own.runtimes.clone(),
        tags: own.tags.iter().map(ToString::to_string).collect(),
        disk_gb: own.disk_gb,
        memory_mb: own.total.memory_mb,
        memory_mb_free: own.memory_mb_free,
        models: own.models.clone(),
        engine: own.engine.clone(),
        os: own.os.clone(),
        arch: own.arch.clone(),
        ..Default::default()
    }
}

/// Fields of ours win; without them the published ones are all there is.
pub fn capabilities_from_wire(theirs: pb::NodeCapabilities) -> Result<Capabilities> {
    if theirs.tags.len() > TAGS_MAX
        || theirs.supported_runtimes.len() > NAMES_MAX
        || theirs.models.len() > NAMES_MAX
    {
        return Err(Error::invalid("the capabilities name too many tags, runtimes or models"));
    }
    let memory_mb = match theirs.memory_mb {
        0 => theirs.available_memory_gb.saturating_mul(1024),
        own => own,
    };
    let cpu_millicores = theirs.cpu_cores.saturating_mul(1000);
    Ok(Capabilities {
        total: Amounts { cpu_millicores, memory_mb, gpus: theirs.gpu_count, vram_gb: theirs.vram_gb },
        disk_gb: theirs.disk_gb,
        memory_mb_free: theirs.memory_mb_free,
        runtimes: theirs.supported_runtimes,
        tags: theirs.tags.into_iter().map(Tag::parse).collect::<Result<_>>()?,
        models: theirs.models,
        engine: crate::ids::shown(&theirs.engine),
        os: crate::ids::shown(&theirs.os),
        arch: crate::ids::shown(&theirs.arch),
    })
}

pub fn command_to_wire(command_id: CommandId, command: Command) -> pb::NodeCommand {
    use pb::node_command::Command as Wire;
    let command = match command {
        Command::Drain => Wire::Drain(pb::DrainCommand { drain: true }),
        Command::Resume => Wire::Drain(pb::DrainCommand { drain: false }),
        Command::Shutdown => {
            Wire::Shutdown(pb::ShutdownCommand { reason: "an operator shuts the node down".to_owned() })
        }
        Command::PushConfig { version, body } => {
            Wire::PushConfig(pb::PushConfigCommand { config_version: version, config_payload: body })
        }
    };
    pb::NodeCommand { command_id: command_id.to_string(), command: Some(command) }
}

/// None for a command that this version does not know: it is left unacknowledged.
pub fn command_from_wire(command: pb::NodeCommand) -> Result<Option<(CommandId, Command)>> {
    use pb::node_command::Command as Wire;
    let known = match command.command {
        Some(Wire::Drain(drain)) if drain.drain => Command::Drain,
        Some(Wire::Drain(_)) => Command::Resume,
        Some(Wire::Shutdown(_)) => Command::Shutdown,
        Some(Wire::PushConfig(push)) => {
            Command::PushConfig { version: push.config_version, body: push.config_payload }
        }
        None => return Ok(None),
    };
    Ok(Some((CommandId::parse(command.command_id)?, known)))
}

pub fn status_to_wire(status: PeerStatus) -> pb::NodeStatus {
    match status {
        PeerStatus::Active => pb::NodeStatus::Active,
        PeerStatus::Draining => pb::NodeStatus::Draining,
        PeerStatus::Unhealthy | PeerStatus::Offline => pb::NodeStatus::Unhealthy,
        PeerStatus::Expected | PeerStatus::Removed => pb::NodeStatus::Unspecified,
    }
}

pub fn peer_to_wire(view: &PeerView, record: &NodeRecord) -> pb::NodeInfo {
    let time = |ms: i64| prost_types::Timestamp {
        seconds: ms.div_euclid(1000),
        nanos: i32::try_from(ms.rem_euclid(1000) * 1_000_000).unwrap_or(0),
    };
    let heard_ms = view
        .last_heartbeat_age_ms
        .and_then(|age| now_ms().checked_sub_unsigned(age))
        .or(record.last_heartbeat_ms);
    pb::NodeInfo {
        node_id: view.node_id.to_string(),
        role: role_to_wire(view.role).into(),
        status: status_to_wire(view.status).into(),
        capabilities: Some(capabilities_to_wire(&record.capabilities)),
        grpc_address: record.address.clone(),
        last_heartbeat_at: heard_ms.map(time),
        registered_at: record.registered_at_ms.map(time),
        desired: to_name(&record.desired),
        observed: to_name(&record.observed),
        active_executions: view.running,
        link: to_name(&record.link),
        software_version: view.version.clone(),
        sealed: record.sealed,
    }
}

/// None for a node that says nothing of its configuration.
pub fn config_from_wire(version: String, error: &str) -> Option<ConfigReport> {
    const ERROR_CHARS_MAX: usize = 500;
    let sound = (1..=64).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_graphic());
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let error: String = error.chars().take(ERROR_CHARS_MAX).map(clean).collect();
    sound.then(|| ConfigReport { version, error: Some(error).filter(|error| !error.is_empty()) })
}

/// None where the node does not say.
pub fn interval_from_wire(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

pub fn interval_to_wire(interval: Duration) -> u32 {
    u32::try_from(interval.as_secs()).unwrap_or(u32::MAX).max(1)
}

pub fn held_to_wire(held: &Held) -> pb::RunningExecution {
    pb::RunningExecution {
        execution_id: held.execution_id.to_string(),
        attempt: held.attempt,
        last_sequence: held.last_sequence,
    }
}

pub fn held_from_wire(running: pb::RunningExecution) -> Result<Held> {
    Ok(Held {
        execution_id: ExecutionId::parse(running.execution_id)?,
        attempt: running.attempt,
        last_sequence: running.last_sequence,
    })
}
