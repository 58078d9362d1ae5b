//! Resources that an execution used. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Resources that the latest attempt of an execution used. Its node samples the container, so that CPU time and peak memory are
/// those of the last sample, and absent for a container that ended before the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// CPU time of all cores together, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Bytes written to stdout and stderr, also those that were not kept.
    pub output_bytes: u64,
}

/// Sample of a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageSample {
    /// CPU time since the container was started.
    pub cpu_ms: u64,
    /// Peak memory, or the memory of this moment where the engine knows no peak.
    pub memory_bytes: u64,
}

/// Sum of the samples of an execution's containers, one container an iteration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageMeter {
    iteration: u32,
    latest: Option<UsageSample>,
    /// CPU time of earlier iterations.
    earlier_cpu_ms: u64,
    memory_peak_bytes: u64,
}

impl UsageMeter {
    pub fn note(&mut self, iteration: u32, sample: UsageSample) {
        if iteration != self.iteration {
            self.earlier_cpu_ms += self.latest.take().map_or(0, |latest| latest.cpu_ms);
            self.iteration = iteration;
        }
        self.latest = Some(sample);
        self.memory_peak_bytes = self.memory_peak_bytes.max(sample.memory_bytes);
    }

    /// Returns CPU time and peak memory. `None` before the first sample.
    pub fn total(&self) -> Option<UsageSample> {
        let latest = self.latest?;
        let cpu_ms = self.earlier_cpu_ms + latest.cpu_ms;
        Some(UsageSample { cpu_ms, memory_bytes: self.memory_peak_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_adds_up_and_memory_is_the_highest() {
        let mut meter = UsageMeter::default();
        assert_eq!(meter.total(), None);
        for (iteration, cpu_ms, memory_bytes) in [(1, 10, 5), (1, 30, 50), (1, 40, 20), (2, 5, 30), (2, 7, 1)]
        {
            meter.note(iteration, UsageSample { cpu_ms, memory_bytes });
        }
        assert_eq!(meter.total(), Some(UsageSample { cpu_ms: 47, memory_bytes: 50 }));
    }
}
