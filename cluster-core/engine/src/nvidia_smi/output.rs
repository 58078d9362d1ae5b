//! Output of `nvidia-smi`: rows of `--query-gpu` and the list of `-L`. Pure.

use aegis_types::{gpu::GpuDevice, ids::GpuUuid, text::shown};

/// Fields of [`parse`]'s rows. The name is last, since it alone is free text.
pub const FIELDS: &str = "index,uuid,mig.mode.current,memory.total,name";
/// Fields for drivers before 450, which refuse a query that names MIG.
pub const FIELDS_BEFORE_MIG: &str = "index,uuid,memory.total,name";
pub const FORMAT: &str = "--format=csv,noheader,nounits";
/// Mode of a GPU with a driver without MIG, in the driver's notation of a missing feature.
const LACKING: &str = "[N/A]";

/// Device with the index of its GPU. A MIG device has the index of its parent GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGpu {
    pub index: u32,
    pub device: GpuDevice,
}

/// Returns whether some GPU is divided, so that the list of `-L` is needed.
pub fn has_mig(rows: &str) -> bool {
    rows.lines().filter_map(row).any(|row| row.is_divided)
}

/// Converts rows of [`FIELDS_BEFORE_MIG`] to the format of [`FIELDS`].
pub fn with_mig_field(rows: &str) -> String {
    let mut text = String::new();
    for line in rows.lines() {
        let mut fields = line.splitn(3, ',');
        if let (Some(index), Some(uuid), Some(rest)) = (fields.next(), fields.next(), fields.next()) {
            text.push_str(&format!("{index},{uuid}, {LACKING},{rest}\n"));
        }
    }
    text
}

/// Returns the devices for containers: each GPU, or instead the MIG devices into which it is divided. Invalid rows are
/// skipped: a failed GPU prints an error instead.
pub fn parse(rows: &str, list: &str) -> Vec<FoundGpu> {
    let mut found = Vec::new();
    for row in rows.lines().filter_map(row) {
        match row.is_divided {
            false => found.push(FoundGpu { index: row.index, device: row.device }),
            true => found
                .extend(mig_devices(list, &row.device).map(|device| FoundGpu { index: row.index, device })),
        }
    }
    found.retain(|gpu| gpu.device.check().is_ok());
    found
}

struct Row {
    index: u32,
    is_divided: bool,
    device: GpuDevice,
}

/// Reads a row like `0, GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77, Disabled, 40960, NVIDIA A100-SXM4-40GB`.
fn row(line: &str) -> Option<Row> {
    let mut fields = line.splitn(5, ',').map(str::trim);
    let index = fields.next()?.parse().ok()?;
    let uuid = GpuUuid::parse(fields.next()?).ok()?;
    let is_divided = fields.next()? == "Enabled";
    // "[N/A]" where GPU and CPU share their memory, "[Insufficient Permissions]" with MIG.
    let memory_mb = fields.next()?.parse().unwrap_or(0);
    let name = fields.next()?.to_owned();
    Some(Row { index, is_divided, device: GpuDevice { uuid, name, memory_mb } })
}

/// Reads the lines below one GPU, like
/// `  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)`.
fn mig_devices<'a>(list: &'a str, parent: &'a GpuDevice) -> impl Iterator<Item = GpuDevice> + 'a {
    let is_parent = |line: &&str| uuid(line).is_some_and(|uuid| uuid == parent.uuid);
    let lines = list.lines().skip_while(move |line| !is_parent(line)).skip(1);
    let profiles = lines.map_while(|line| Some((line, line.trim_start().strip_prefix("MIG ")?)));
    profiles.filter_map(|(line, rest)| {
        let profile = rest.split_whitespace().next()?;
        Some(GpuDevice {
            uuid: uuid(line)?,
            name: format!("{} MIG {profile}", parent.name),
            memory_mb: profile_memory_mb(profile).unwrap_or(0),
        })
    })
}

fn uuid(line: &str) -> Option<GpuUuid> {
    let (_, rest) = line.rsplit_once("(UUID: ")?;
    GpuUuid::parse(rest.trim_end().strip_suffix(')')?).ok()
}

/// Returns memory that a MIG device of a profile like `1g.5gb`, `1g.10gb+me` or `1c.3g.20gb` surely has.
///
/// The name is rounded, up or down. 1g.10gb of an H100 has 9.75 GiB; 1g.18gb of an H200 has only 16 GiB, 95 % of 18
/// decimal GB. Nine tenths of the decimal number are less than each. A compute instance (`1c.3g.20gb`) shares the
/// memory of its GPU instance, and counts for its part.
fn profile_memory_mb(profile: &str) -> Option<u32> {
    const MIB: u64 = 1024 * 1024;
    let (slices, memory) = profile.rsplit_once('.')?;
    let digits = memory.split_once("gb")?.0;
    let gigabytes: u64 = digits.parse().ok()?;
    let (part, whole) = match slices.split_once('.') {
        Some((part, whole)) => (count(part, 'c')?, count(whole, 'g')?),
        None => (1, 1),
    };
    let bytes = gigabytes.checked_mul(900_000_000)?.checked_mul(part)?.checked_div(whole)?;
    u32::try_from(bytes / MIB).ok()
}

fn count(text: &str, unit: char) -> Option<u64> {
    text.strip_suffix(unit)?.parse().ok()
}

/// Returns the first line of an error, which the program prints to standard output.
pub fn first_line(text: &str) -> String {
    shown(text.lines().next().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
0, GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77, Enabled, 40960, NVIDIA A100-SXM4-40GB
1, GPU-69e2f5a1-7b1c-9c8e-6f2e-0a6d1f1f2b3c, Enabled, [Insufficient Permissions], NVIDIA A100-SXM4-40GB
2, GPU-8c1f6a3e-1d2b-3c4d-5e6f-708192a3b4c5, Disabled, 81559, NVIDIA H100 80GB HBM3
3, GPU-0fe2c9ab-90d4-4a55-a4cf-3a2d1b0c9e8f, [N/A], 15360, Tesla T4
";
    const LIST: &str = "\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-69e2f5a1-7b1c-9c8e-6f2e-0a6d1f1f2b3c)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-8c1f6a3e-1d2b-3c4d-5e6f-708192a3b4c5)
GPU 3: Tesla T4 (UUID: GPU-0fe2c9ab-90d4-4a55-a4cf-3a2d1b0c9e8f)
";

    fn shown_devices(found: &[FoundGpu]) -> Vec<String> {
        let shown = |gpu: &FoundGpu| {
            let GpuDevice { uuid, name, memory_mb } = &gpu.device;
            format!("{} {} {name} {memory_mb}", gpu.index, &uuid.as_str()[..8])
        };
        found.iter().map(shown).collect()
    }

    #[test]
    fn mig_devices_take_the_place_of_their_gpu() {
        assert!(has_mig(MIXED));
        assert_eq!(
            shown_devices(&parse(MIXED, LIST)),
            [
                "0 MIG-c6d4 NVIDIA A100-SXM4-40GB MIG 3g.20gb 17166",
                "0 MIG-cba6 NVIDIA A100-SXM4-40GB MIG 1g.5gb 4291",
                // GPU 1 is divided, but has no MIG devices yet.
                "2 GPU-8c1f NVIDIA H100 80GB HBM3 81559",
                "3 GPU-0fe2 Tesla T4 15360",
            ]
        );
        // Without a list, no part of a divided GPU can be used.
        assert_eq!(parse(MIXED, "").len(), 2);
        assert_eq!(parse(MIXED, LIST.trim_start_matches(|c| c != '\n').trim()).len(), 2);
    }

    #[test]
    fn older_and_unusual_forms_are_read() {
        let older = "GPU 0: A100-PCIE-40GB (UUID: GPU-e91edf3b-b297-37c1-a2a7-7601c3238fa2)\n  \
                     MIG 1c.3g.20gb Device 0: (UUID: MIG-GPU-e91edf3b-b297-37c1-a2a7-7601c3238fa2/1/0)\r\n";
        let rows = "0, GPU-e91edf3b-b297-37c1-a2a7-7601c3238fa2, Enabled, 40536, A100-PCIE-40GB\n";
        assert_eq!(shown_devices(&parse(rows, older)), ["0 MIG-GPU- A100-PCIE-40GB MIG 1c.3g.20gb 5722"]);
        let before_mig = "0, GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c, 11441, Tesla K80\n";
        let rows = with_mig_field(before_mig);
        assert!(!has_mig(&rows));
        assert_eq!(shown_devices(&parse(&rows, "")), ["0 GPU-4cf8 Tesla K80 11441"]);
        // The GPU shares the machine's memory.
        let shared = "0, GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c, [N/A], [N/A], NVIDIA GB10\n";
        assert_eq!(shown_devices(&parse(shared, "")), ["0 GPU-4cf8 NVIDIA GB10 0"]);
    }

    #[test]
    fn refusals_and_failed_gpus_are_no_devices() {
        for text in [
            "",
            "No devices were found\n",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the \
             latest NVIDIA driver is installed and running.\n",
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.90\n",
            "Unable to determine the device handle for GPU0000:0B:00.0: Unknown Error\n",
            "Field \"mig.mode.current\" is not a valid field to query.\n",
            "0, GPU-????????-????-????-????-????????????, Disabled, 40960, NVIDIA A100\n",
            "0, GPU-1, Disabled, 40960, ignore\u{7}me\n",
        ] {
            assert!(parse(text, "").is_empty() && !has_mig(text), "{text}");
        }
        let one_failed = format!("Unable to determine the device handle for GPU 0000:0B:00.0\n{MIXED}");
        assert_eq!(parse(&one_failed, LIST).len(), 4);
        assert_eq!(first_line("No devices were found\nx"), "No devices were found");
    }

    #[test]
    fn profile_memory_is_never_more_than_the_device_has() {
        // Profiles and GiB as `nvidia-smi mig -lgip` and NVIDIA's MIG guide have them.
        for (profile, gibibytes) in [
            ("1g.5gb", 4.75),
            ("1g.5gb+me", 4.75),
            ("7g.40gb", 39.5),
            ("1g.6gb", 5.81),
            ("1g.10gb", 9.5),
            ("7g.80gb", 79.25),
            ("1g.18gb", 16.0),
            ("1g.35gb", 32.5),
            ("7g.141gb", 140.0),
            ("1g.24gb-me", 23.0),
        ] {
            let memory_mb = profile_memory_mb(profile).unwrap();
            let has_mb = gibibytes * 1024.0;
            assert!(f64::from(memory_mb) <= has_mb && f64::from(memory_mb) > has_mb * 0.84, "{profile}");
        }
        for odd in ["", "1g", "gb", "1g.gb", "1g.5mb", "1c.0g.5gb", "xc.3g.20gb", "1g.99999999999999gb"] {
            assert_eq!(profile_memory_mb(odd), None, "{odd}");
        }
    }
}
