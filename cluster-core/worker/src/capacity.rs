//! Resources of this machine for executions: detected, unless the configuration states them.

mod gpus;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use aegis_config::{schema::ResourcesConfig, settings::Settings};
use aegis_engine::{EngineInfo, facts::EngineFacts, nvidia_smi::FoundGpus};
use aegis_types::{ids::Tag, node::Capabilities, resources::Amounts};
use arc_swap::ArcSwap;
use sysinfo::{Disks, System};
use tokio::sync::watch;

pub use gpus::NodeGpus;

/// Left to the machine itself.
const MEMORY_RESERVED_MB: u32 = 256;

/// Resources that the configuration states. A later configuration may change them.
#[derive(Debug)]
struct ConfiguredResources {
    resources: ResourcesConfig,
    tags: Vec<Tag>,
}

impl ConfiguredResources {
    fn of(settings: &Settings) -> Self {
        Self { resources: settings.resources.clone(), tags: settings.tags.clone() }
    }
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct Capacity {
    stated: Arc<ArcSwap<ConfiguredResources>>,
    engine: Option<EngineFacts>,
    found: FoundGpus,
    /// Whether the log says that found GPUs stay unused.
    is_warned: Arc<AtomicBool>,
    disk_path: PathBuf,
}

impl Capacity {
    pub fn new(settings: &Settings, engine: Option<EngineFacts>, found: FoundGpus) -> Self {
        Self {
            stated: Arc::new(ArcSwap::from_pointee(ConfiguredResources::of(settings))),
            engine,
            found,
            is_warned: Arc::default(),
            disk_path: settings.data_dir.clone(),
        }
    }

    /// Another configuration came: resources and tags are as it states from the next measure on.
    pub fn state(&self, settings: &Settings) {
        self.stated.store(Arc::new(ConfiguredResources::of(settings)));
    }

    /// Changes when the engine stops to answer, and when it answers again. `None` without an engine.
    pub fn engine_changes(&self) -> Option<watch::Receiver<bool>> {
        self.engine.as_ref().map(EngineFacts::changes)
    }

    /// Measures what there is now. An engine that does not answer shows as an empty name; it is waited for 3 s.
    pub async fn measure(&self) -> Capabilities {
        let (detected_mb, memory_mb_free) = memory_mb();
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let info = self.engine_info().await;
        let gpus = self.usable_gpus(info.as_ref()).await;
        let configured = self.stated.load_full();
        let stated = &configured.resources;
        Capabilities {
            total: Amounts {
                cpu_millicores: stated
                    .cpu_cores
                    .unwrap_or(u32::try_from(cores).unwrap_or(1))
                    .saturating_mul(1000),
                memory_mb: stated.memory_gb.map_or(detected_mb, |gb| gb.saturating_mul(1024)),
                gpus: gpus.count(),
                vram_gb: gpus.vram_gb(),
            },
            gpus: gpus.devices(),
            disk_gb: stated.disk_gb.unwrap_or_else(|| self.disk_gb()),
            memory_mb_free,
            runtimes: vec!["docker".to_owned()],
            tags: configured.tags.clone(),
            models: Vec::new(),
            engine: info.as_ref().map(|info| format!("docker {}", info.version)).unwrap_or_default(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
        }
    }

    /// Returns the GPUs that executions may have.
    pub async fn gpus(&self) -> NodeGpus {
        let info = self.engine_info().await;
        self.usable_gpus(info.as_ref()).await
    }

    async fn usable_gpus(&self, info: Option<&EngineInfo>) -> NodeGpus {
        let found = self.found.get().await;
        // An engine that does not answer says nothing of its runtimes, and gets no work.
        let has_runtime = info.is_none_or(EngineInfo::has_nvidia_runtime);
        let count = found.len();
        let usable = gpus::usable(&self.stated.load().resources, found, has_runtime);
        if count > 0
            && !has_runtime
            && usable == NodeGpus::NONE
            && !self.is_warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                count,
                "Docker has no nvidia runtime: GPUs stay unused; run nvidia-ctk runtime configure --runtime=docker"
            );
        }
        usable
    }

    async fn engine_info(&self) -> Option<EngineInfo> {
        let answer = self.engine.as_ref()?.get().await;
        answer.inspect_err(|error| tracing::debug!(error = %error.chain(), "the engine does not answer")).ok()
    }

    /// Size of the file system that holds the data directory.
    fn disk_gb(&self) -> u32 {
        let Ok(disks) = Disks::new_with_refreshed_list() else { return 0 };
        disks
            .iter()
            .filter(|disk| self.disk_path.starts_with(disk.mount_point()))
            .max_by_key(|disk| disk.mount_point().as_os_str().len())
            .map_or(0, |disk| u32::try_from(disk.total_space() / 1_000_000_000).unwrap_or(u32::MAX))
    }
}

/// Returns the memory for executions in all, and the free memory, in MiB. Zero if the system does not tell.
fn memory_mb() -> (u32, u32) {
    let Ok(mut system) = System::new() else { return (0, 0) };
    system.refresh_memory();
    let mb = |bytes: u64| u32::try_from(bytes / (1024 * 1024)).unwrap_or(u32::MAX);
    (mb(system.total_memory()).saturating_sub(MEMORY_RESERVED_MB), mb(system.available_memory()))
}
