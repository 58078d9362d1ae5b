//! Which GPUs of this machine executions may have: found ones within what the configuration states. Pure.

use aegis_config::schema::ResourcesConfig;
use aegis_engine::nvidia_smi::FoundGpu;
use aegis_types::gpu::{DEVICES_MAX, GpuDevice, memory_gb};

/// GPUs of a node for executions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeGpus {
    /// Known one by one.
    Devices(Vec<FoundGpu>),
    /// A number of GPUs that count as alike, and the sum of their memory.
    Counted { count: u32, vram_gb: u32 },
}

impl NodeGpus {
    pub const NONE: Self = Self::Counted { count: 0, vram_gb: 0 };

    pub fn count(&self) -> u32 {
        match self {
            NodeGpus::Devices(devices) => u32::try_from(devices.len()).unwrap_or(u32::MAX),
            NodeGpus::Counted { count, .. } => *count,
        }
    }

    pub fn vram_gb(&self) -> u32 {
        match self {
            NodeGpus::Devices(devices) => memory_gb(devices.iter().map(|gpu| &gpu.device)),
            NodeGpus::Counted { vram_gb, .. } => *vram_gb,
        }
    }

    /// Returns the devices to report.
    pub fn devices(&self) -> Vec<GpuDevice> {
        match self {
            NodeGpus::Devices(devices) => devices.iter().map(|gpu| gpu.device.clone()).collect(),
            NodeGpus::Counted { .. } => Vec::new(),
        }
    }
}

/// Returns the GPUs that executions may have. Stated devices replace those that are found. A stated number bounds both,
/// and 0 grants no GPU. Without devices the stated numbers count.
///
/// `engine_has_runtime`: whether the engine can give a container a GPU, as far as it says. Without it, found GPUs
/// would fail every execution that gets one; what is stated is the operator's word.
pub fn usable(stated: &ResourcesConfig, found: Vec<FoundGpu>, engine_has_runtime: bool) -> NodeGpus {
    let counted = NodeGpus::Counted {
        count: stated.gpus().unwrap_or(0),
        vram_gb: stated.vram_gb.filter(|_| stated.gpus() != Some(0)).unwrap_or(0),
    };
    let mut devices = match stated.gpu_devices.is_empty() {
        false => listed(&stated.gpu_devices),
        true if engine_has_runtime || stated.gpus().is_some() => found,
        true => Vec::new(),
    };
    if stated.gpus() == Some(0) || devices.is_empty() {
        return counted;
    }
    if let Some(count) = stated.gpu_count {
        devices.truncate(usize::try_from(count).unwrap_or(usize::MAX));
    }
    bound_memory(&mut devices, stated.vram_gb);
    match devices.len() > DEVICES_MAX {
        true => NodeGpus::Counted {
            count: u32::try_from(devices.len()).unwrap_or(u32::MAX),
            vram_gb: memory_gb(devices.iter().map(|gpu| &gpu.device)),
        },
        false => NodeGpus::Devices(devices),
    }
}

/// Returns stated devices, numbered as the driver numbers GPUs: earlier executions may hold one by its number.
fn listed(stated: &[GpuDevice]) -> Vec<FoundGpu> {
    (0..).zip(stated).map(|(index, device)| FoundGpu { index, device: device.clone() }).collect()
}

/// Applies a stated sum of memory. Where it is less than the devices have, each loses the same part; where no
/// device tells its memory, each has the same part.
fn bound_memory(devices: &mut [FoundGpu], vram_gb: Option<u32>) {
    let Some(stated_gb) = vram_gb else { return };
    let has_mb: u64 = devices.iter().map(|gpu| u64::from(gpu.device.memory_mb)).sum();
    let stated_mb = u64::from(stated_gb) * 1024;
    let count = devices.len() as u64;
    for gpu in devices {
        let own_mb = u64::from(gpu.device.memory_mb);
        let bound_mb = match has_mb {
            0 => stated_mb / count,
            // Whole GiB are stated: what they leave out is no bound.
            _ if u64::from(stated_gb) >= has_mb / 1024 => own_mb,
            _ => own_mb * stated_mb / has_mb,
        };
        gpu.device.memory_mb = u32::try_from(bound_mb).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::ids::GpuUuid;

    fn found(memory_mb: &[u32]) -> Vec<FoundGpu> {
        let gpu = |(index, memory_mb): (u32, &u32)| FoundGpu {
            index,
            device: GpuDevice {
                uuid: GpuUuid::parse(format!("GPU-{index}")).unwrap(),
                name: "NVIDIA A10".into(),
                memory_mb: *memory_mb,
            },
        };
        (0..).zip(memory_mb).map(gpu).collect()
    }

    fn memory(gpus: &NodeGpus) -> Vec<u32> {
        gpus.devices().iter().map(|device| device.memory_mb).collect()
    }

    #[test]
    fn found_devices_count_within_what_is_stated() {
        let two = || found(&[40_960, 16_384]);
        let with = |stated: ResourcesConfig| usable(&stated, two(), true);
        assert_eq!(memory(&with(ResourcesConfig::default())), [40_960, 16_384]);
        assert_eq!(
            memory(&with(ResourcesConfig { gpu: Some(true), ..Default::default() })),
            [40_960, 16_384]
        );
        assert_eq!(memory(&with(ResourcesConfig { gpu_count: Some(1), ..Default::default() })), [40_960]);
        assert_eq!(
            memory(&with(ResourcesConfig { gpu_count: Some(9), ..Default::default() })),
            [40_960, 16_384]
        );
        for off in [
            ResourcesConfig { gpu_count: Some(0), vram_gb: Some(9), ..Default::default() },
            ResourcesConfig { gpu: Some(false), ..Default::default() },
            ResourcesConfig { gpu: Some(true), gpu_count: Some(0), ..Default::default() },
        ] {
            assert_eq!(with(off), NodeGpus::NONE);
        }
        let gpus = with(ResourcesConfig::default());
        assert_eq!((gpus.count(), gpus.vram_gb()), (2, 56));
    }

    #[test]
    fn stated_numbers_stand_where_nothing_is_found() {
        let stated = ResourcesConfig { gpu_count: Some(2), vram_gb: Some(80), ..Default::default() };
        let counted = NodeGpus::Counted { count: 2, vram_gb: 80 };
        assert_eq!(usable(&stated, Vec::new(), false), counted);
        let one = ResourcesConfig { gpu: Some(true), ..Default::default() };
        assert_eq!(usable(&one, Vec::new(), true).count(), 1);
        assert_eq!(usable(&ResourcesConfig::default(), Vec::new(), true), NodeGpus::NONE);
    }

    #[test]
    fn found_devices_need_an_engine_that_hands_them_out() {
        assert_eq!(usable(&ResourcesConfig::default(), found(&[1]), false), NodeGpus::NONE);
        let stated = ResourcesConfig { gpu: Some(true), ..Default::default() };
        assert_eq!(usable(&stated, found(&[1]), false).count(), 1, "the operator's word");
    }

    #[test]
    fn listed_devices_stand_for_found_ones() {
        let devices = vec![found(&[0, 8_000])[1].device.clone()];
        let stated = ResourcesConfig { gpu_count: Some(2), gpu_devices: devices, ..Default::default() };
        assert_eq!(memory(&usable(&stated, found(&[40_960]), false)), [8_000]);
    }

    #[test]
    fn stated_memory_bounds_that_of_the_devices() {
        let with = |vram_gb, has: &[u32]| {
            memory(&usable(
                &ResourcesConfig { vram_gb: Some(vram_gb), ..Default::default() },
                found(has),
                true,
            ))
        };
        assert_eq!(with(28, &[40_960, 16_384]), [20_480, 8_192]);
        // What a deployment of an earlier version has written for these.
        assert_eq!(with(44, &[23_028, 23_028]), [23_028, 23_028]);
        assert_eq!(with(500, &[23_028]), [23_028]);
        assert_eq!(with(128, &[0, 0]), [65_536, 65_536]);
        assert_eq!(
            usable(&ResourcesConfig::default(), found(&[1_024; 65]), true),
            NodeGpus::Counted { count: 65, vram_gb: 65 }
        );
    }
}
