//! Amounts of CPU, memory and GPUs: of a node, of an execution, and what is left.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Amounts that executions share. Also used for what is reserved and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Amounts {
    pub cpu_millicores: u32,
    pub memory_mb: u32,
    pub gpus: u32,
    pub vram_gb: u32,
}

impl Amounts {
    /// Above what one machine has: the largest servers of today, with room. A node that states or reports
    /// more is refused.
    pub const MAX: Self =
        Self { cpu_millicores: 4_096_000, memory_mb: 128 * 1024 * 1024, gpus: 128, vram_gb: 65_536 };

    /// Whether some amount is greater than the other's.
    pub fn exceeds(self, other: Self) -> bool {
        self.at_most(other) != self
    }

    /// Returns the lesser of each amount.
    pub fn at_most(self, other: Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.min(other.cpu_millicores),
            memory_mb: self.memory_mb.min(other.memory_mb),
            gpus: self.gpus.min(other.gpus),
            vram_gb: self.vram_gb.min(other.vram_gb),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_add(other.cpu_millicores),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            gpus: self.gpus.saturating_add(other.gpus),
            vram_gb: self.vram_gb.saturating_add(other.vram_gb),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_sub(other.cpu_millicores),
            memory_mb: self.memory_mb.saturating_sub(other.memory_mb),
            gpus: self.gpus.saturating_sub(other.gpus),
            vram_gb: self.vram_gb.saturating_sub(other.vram_gb),
        }
    }
}

impl std::fmt::Display for Amounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu_millicores, memory_mb, gpus, vram_gb } = self;
        write!(f, "{} CPUs, {memory_mb} MB of memory", f64::from(*cpu_millicores) / 1000.0)?;
        if *gpus > 0 || *vram_gb > 0 {
            write!(f, ", {gpus} GPUs with {vram_gb} GB")?;
        }
        Ok(())
    }
}
