//! GPUs as devices: what a node reports of each, and which of them an execution gets. Pure.
//!
//! An execution has whole devices. Its `vram_gb` is the sum of their memory, an equal share on each, so that a
//! device counts for it when its own memory is at least that share.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    ids::GpuUuid,
    resources::Amounts,
    text::shown,
};

/// Devices of one node that are reported one by one. Eight GPUs in seven MIG devices each are 56; a node that has
/// more reports their number and the sum of their memory, as one that knows no devices does.
pub const DEVICES_MAX: usize = 64;
/// Names are shown to people and assistants: the longest known one, with a MIG profile behind it, has 69 bytes.
const NAME_BYTES_MAX: usize = 80;
/// Above every device there is, with room.
const MEMORY_MB_MAX: u32 = 4 * 1024 * 1024;

/// GPUs that a container of the NVIDIA runtime sees; `reserved_variable` keeps it from manifests.
pub const NVIDIA_DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// True for variables that decide what the container may reach.
pub fn is_reserved_variable(name: &str) -> bool {
    name == NVIDIA_DEVICES
}

/// GPU that Docker is asked for: a known device, or an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuId {
    /// Index by the driver's count, from 0.
    Index(u32),
    Uuid(GpuUuid),
}

impl fmt::Display for GpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GpuId::Index(index) => index.fmt(f),
            GpuId::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

/// A GPU, or a MIG device of one, that executions may be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GpuDevice {
    pub uuid: GpuUuid,
    pub name: String,
    /// 0 where the driver does not tell.
    pub memory_mb: u32,
}

impl GpuDevice {
    /// # Errors
    ///
    /// The name is malformed, or the memory is above that of any device: both would be shown, and would attract work.
    pub fn check(&self) -> Result<()> {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b" ._:/@+-()[]".contains(&byte);
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_sound) {
            let message = format!(
                "GPU name \"{}\" is not 1 to {NAME_BYTES_MAX} letters, digits, spaces and ._:/@+-()[]",
                shown(name)
            );
            return Err(Error::invalid(message));
        }
        if self.memory_mb > MEMORY_MB_MAX {
            let Self { uuid, memory_mb, .. } = self;
            return Err(Error::invalid(format!(
                "GPU {uuid} cannot have {memory_mb} MB: at most {MEMORY_MB_MAX}"
            )));
        }
        Ok(())
    }
}

/// Checks the devices of one node: each device, their number, and that no device is named twice.
pub fn check_devices(devices: &[GpuDevice]) -> Result<()> {
    if devices.len() > DEVICES_MAX {
        let count = devices.len();
        return Err(Error::invalid(format!("{count} GPUs are named, and at most {DEVICES_MAX} are kept")));
    }
    for (place, device) in devices.iter().enumerate() {
        device.check()?;
        if devices[..place].iter().any(|other| other.uuid == device.uuid) {
            return Err(Error::invalid(format!("GPU {} is named twice", device.uuid)));
        }
    }
    Ok(())
}

/// Returns the memory of devices together, in whole GiB.
pub fn memory_gb<'a>(devices: impl Iterator<Item = &'a GpuDevice>) -> u32 {
    let megabytes: u64 = devices.map(|device| u64::from(device.memory_mb)).sum();
    u32::try_from(megabytes / 1024).unwrap_or(u32::MAX)
}

/// Returns the memory that each GPU of a demand must have.
pub fn share_mb(need: Amounts) -> u32 {
    let megabytes = u64::from(need.vram_gb) * 1024;
    match need.gpus {
        0 => 0,
        gpus => u32::try_from(megabytes.div_ceil(u64::from(gpus))).unwrap_or(u32::MAX),
    }
}

/// Chooses devices for a demand: the smallest that are large enough, so that large ones stay for what needs them.
/// Equals come in their order. Fewer than asked for where no more are large enough.
pub fn choose<T>(
    devices: impl Iterator<Item = T>,
    wanted: u32,
    share_mb: u32,
    memory_mb: impl Fn(&T) -> u32,
) -> Vec<T> {
    let mut fitting: Vec<T> = devices.filter(|device| memory_mb(device) >= share_mb).collect();
    // Stable: equals keep their order.
    fitting.sort_by_key(|device| memory_mb(device));
    fitting.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(uuid: &str, name: &str, memory_mb: u32) -> GpuDevice {
        GpuDevice { uuid: GpuUuid::parse(uuid).unwrap(), name: name.into(), memory_mb }
    }

    #[test]
    fn devices_of_a_node_are_checked() {
        let sound = [
            device("GPU-1", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition MIG 1g.24gb+me", 24_000),
            device("GPU-2", "Tesla T4", 0),
        ];
        check_devices(&sound).unwrap();
        for (odd, word) in [
            (device("GPU-3", "", 1), "name"),
            (device("GPU-3", "a\nb", 1), "name"),
            (device("GPU-3", &"a".repeat(81), 1), "name"),
            (device("GPU-3", "a", u32::MAX), "cannot have"),
            (device("GPU-1", "a", 1), "twice"),
        ] {
            let devices = [sound.as_slice(), &[odd]].concat();
            let error = check_devices(&devices).unwrap_err();
            assert!(error.message().contains(word) && error.message().len() < 200, "{error}");
        }
        let many: Vec<_> = (0..=DEVICES_MAX).map(|n| device(&format!("GPU-{n}"), "a", 1)).collect();
        assert!(check_devices(&many).is_err() && check_devices(&many[1..]).is_ok());
    }

    #[test]
    fn smallest_sufficient_devices_are_chosen_in_order() {
        let memory = [40_960, 16_384, 24_576, 16_384];
        let chosen = |wanted, share| choose(0..memory.len(), wanted, share, |place| memory[*place]);
        assert_eq!(chosen(1, 0), [1]);
        assert_eq!(chosen(2, 8_000), [1, 3]);
        assert_eq!(chosen(1, 20_000), [2]);
        assert_eq!(chosen(2, 20_000), [2, 0]);
        assert_eq!(chosen(2, 30_000), [0], "one is large enough");
        let need = |gpus, vram_gb| share_mb(Amounts { gpus, vram_gb, ..Default::default() });
        assert_eq!([need(0, 0), need(1, 24), need(2, 45), need(3, 10)], [0, 24_576, 23_040, 3_414]);
    }
}
