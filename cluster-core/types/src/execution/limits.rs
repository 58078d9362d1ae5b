//! Limits of an execution for which the policy of its node has no value.

pub const TIMEOUT_SECONDS_MAX_DEFAULT: u64 = 3600;
pub const PROCESSES_DEFAULT: u32 = 512;
pub const TMP_MB_DEFAULT: u32 = 64;
pub const OUTPUT_MB_DEFAULT: u32 = 10;
/// Kubernetes keeps images up to 85 % of a disk of their own; here executions and the host share it.
pub const IMAGE_DISK_PERCENT_DEFAULT: u32 = 50;
/// Checkouts and builds fit; a node whose executions need more states so.
pub const WORKSPACE_MB_DEFAULT: u32 = 10_240;
/// The rest is for what runs.
pub const IMAGE_DISK_PERCENT_MAX: u32 = 95;
