//! Whether GPUs of this machine can be given to executions.

use cluster_core::{
    config::{Settings, schema::NodeType},
    engine::{
        Engine,
        nvidia_smi::{self, FoundGpu},
    },
};

use super::{Check, Finding};

#[derive(Debug)]
pub struct Facts {
    found: Result<Vec<FoundGpu>, (String, String)>,
    /// Whether Docker has the nvidia runtime. `None` where it does not answer.
    has_runtime: Option<bool>,
}

/// `None` on a node that runs no containers.
pub async fn look(settings: &Settings) -> Option<Facts> {
    if settings.node_type == NodeType::Orchestrator || !settings.role.runs_executions() {
        return None;
    }
    let found = nvidia_smi::find().await;
    let has_runtime = match Engine::new(settings.docker_socket.as_deref()) {
        Ok(engine) => engine.info().await.ok().map(|info| info.has_nvidia_runtime()),
        Err(_) => None,
    };
    let words = |error: cluster_core::types::error::Error| {
        (error.message().to_owned(), error.remedy_text().unwrap_or_default().to_owned())
    };
    Some(Facts { found: found.map_err(words), has_runtime })
}

/// `None` on a machine without GPUs.
pub fn judge(facts: &Facts) -> Option<Finding> {
    let check = Check::Gpus;
    let found = match &facts.found {
        Ok(found) if found.is_empty() => return None,
        Ok(found) => found,
        Err((message, remedy)) => return Some(check.warn(message, remedy)),
    };
    let names: Vec<_> =
        found.iter().map(|gpu| format!("{} with {} MB", gpu.device.name, gpu.device.memory_mb)).collect();
    let names = names.join(", ");
    Some(match facts.has_runtime {
        Some(false) => check.warn(
            format!("{names}; Docker has no nvidia runtime, so that executions get none"),
            "install the NVIDIA container toolkit, run nvidia-ctk runtime configure --runtime=docker, and restart \
             Docker",
        ),
        Some(true) | None => check.ok(names),
    })
}

#[cfg(test)]
mod tests {
    use cluster_core::types::{gpu::GpuDevice, ids::GpuUuid};

    use super::{super::Verdict, *};

    #[test]
    fn gpus_without_a_runtime_are_a_warning() {
        let device = GpuDevice {
            uuid: GpuUuid::parse("GPU-1").unwrap(),
            name: "NVIDIA A10".into(),
            memory_mb: 23_028,
        };
        let found = || Ok(vec![FoundGpu { index: 0, device: device.clone() }]);
        let judged = |found, has_runtime| judge(&Facts { found, has_runtime }).map(|finding| finding.result);
        assert_eq!(judged(found(), Some(true)), Some(Verdict::Ok));
        assert_eq!(judged(found(), None), Some(Verdict::Ok), "the engine has a check of its own");
        assert_eq!(judged(found(), Some(false)), Some(Verdict::Warn));
        assert_eq!(judged(Ok(Vec::new()), Some(false)), None);
        let failed = Err(("nvidia-smi finds no GPU".to_owned(), "load the driver".to_owned()));
        assert_eq!(judged(failed, Some(true)), Some(Verdict::Warn));
    }
}
