//! CPU time and memory of a running container.

use std::time::Duration;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::usage::UsageSample,
};
use bollard::{models::ContainerStatsResponse, query_parameters::StatsOptionsBuilder};
use futures::StreamExt as _;

use super::{Engine, refused, status};

/// An engine that takes longer has other work to do.
const STATS_TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// Samples a container. `None` where it does not run.
    pub async fn sample(&self, name: &str) -> Result<Option<UsageSample>> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let mut stats = std::pin::pin!(self.docker.stats(name, Some(options)));
        match tokio::time::timeout(STATS_TIMEOUT, stats.next()).await {
            Ok(Some(Ok(stats))) => Ok(sample(&stats)),
            Ok(Some(Err(e))) if matches!(status(&e), Some(404 | 409)) => Ok(None),
            Ok(Some(Err(e))) => Err(refused("tell what a container uses", e)),
            Ok(None) => Ok(None),
            Err(_) => Err(Error::new(ErrorCode::Engine, "the engine does not tell what a container uses")),
        }
    }
}

/// With cgroup v1 the kernel keeps the peak. With v2 the engine tells the memory of the moment, with the page cache,
/// whose inactive part is not counted, as `docker stats` does not count it.
fn sample(stats: &ContainerStatsResponse) -> Option<UsageSample> {
    let cpu_ns = stats.cpu_stats.as_ref()?.cpu_usage.as_ref()?.total_usage?;
    let memory = stats.memory_stats.as_ref()?;
    let usage = memory.usage?;
    let inactive = memory.stats.as_ref().and_then(|stats| stats.get("inactive_file")).copied();
    let now = usage.saturating_sub(inactive.unwrap_or(0));
    let memory_bytes = memory.max_usage.map_or(now, |peak| peak.max(now));
    Some(UsageSample { cpu_ms: cpu_ns / 1_000_000, memory_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_the_kernels_where_it_has_one() {
        let read = |memory: &str| {
            let text = format!(
                r#"{{"cpu_stats":{{"cpu_usage":{{"total_usage":2500000000}}}},"memory_stats":{memory}}}"#
            );
            sample(&serde_json::from_str(&text).unwrap())
        };
        let cgroup_1 = read(r#"{"usage":900,"max_usage":5000,"stats":{"inactive_file":100}}"#).unwrap();
        assert_eq!(cgroup_1, UsageSample { cpu_ms: 2500, memory_bytes: 5000 });
        let cgroup_2 = read(r#"{"usage":900,"stats":{"inactive_file":100}}"#).unwrap();
        assert_eq!(cgroup_2.memory_bytes, 800);
        assert_eq!(read("{}"), None, "a container that has ended");
    }
}
