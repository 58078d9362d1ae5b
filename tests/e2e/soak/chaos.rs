//! Faults of a soak at random times: `kill -9` of the controller and of workers, and containers removed while their
//! worker is killed.

use std::time::Duration;

use cluster_core::types::ids::ExecutionId;
use fastrand::Rng;

use crate::support::{
    fleet::{Fleet, ONE, TWO},
    testbed::Host,
};

/// The controller's own node, which runs executions too and dies with the controller.
pub const HOME: &str = "home";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kill {
    Controller {
        down_for: Duration,
    },
    Worker {
        host: usize,
    },
    /// Kills the worker and its containers, like a restart of its machine.
    Machine {
        host: usize,
    },
    Everything {
        down_for: Duration,
    },
}

impl Kill {
    pub fn random(rng: &mut Rng) -> Self {
        let (host, down_for) = (rng.usize(0..2), Duration::from_millis(rng.u64(0..5_000)));
        match rng.u32(0..10) {
            0..4 => Kill::Controller { down_for },
            4..7 => Kill::Worker { host },
            7..9 => Kill::Machine { host },
            _ => Kill::Everything { down_for },
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kill::Controller { .. } => "controller",
            Kill::Worker { .. } => "worker",
            Kill::Machine { .. } => "worker with its containers",
            Kill::Everything { .. } => "controller and both workers",
        }
    }

    /// Returns the affected nodes.
    pub fn nodes(self) -> &'static [&'static str] {
        match self {
            Kill::Controller { .. } => &[HOME],
            Kill::Worker { host: 0 } | Kill::Machine { host: 0 } => &[ONE],
            Kill::Worker { .. } | Kill::Machine { .. } => &[TWO],
            Kill::Everything { .. } => &[HOME, ONE, TWO],
        }
    }

    /// Returns once the controller is ready again; workers are restarted by their engines. The result lists the
    /// executions whose running containers were removed.
    pub async fn inflict(self, fleet: &mut Fleet) -> Vec<ExecutionId> {
        match self {
            Kill::Controller { down_for } => {
                fleet.controller.kill();
                tokio::time::sleep(down_for).await;
                fleet.controller.start_again().await;
            }
            Kill::Worker { host } => kill_worker(&fleet.hosts[host]),
            Kill::Machine { host } => return rob(&fleet.hosts[host]),
            Kill::Everything { down_for } => {
                fleet.controller.kill();
                fleet.hosts.iter().for_each(kill_worker);
                tokio::time::sleep(down_for).await;
                fleet.controller.start_again().await;
            }
        }
        Vec::new()
    }
}

/// Kills a worker. A worker that is down stays so until its engine starts it.
fn kill_worker(host: &Host) {
    host.sh("pid=$(pgrep -x aegis) && kill -KILL $pid; true");
}

fn rob(host: &Host) -> Vec<ExecutionId> {
    let executions = host.sh("pid=$(pgrep -x aegis) && kill -KILL $pid; \
         all=$(docker ps -q --filter label=aegis.execution_id); [ -n \"$all\" ] || exit 0; \
         docker inspect --format '{{index .Config.Labels \"aegis.execution_id\"}}' $all; \
         docker rm --force $all >/dev/null");
    executions.split_whitespace().map(|id| ExecutionId::parse(id).expect("a label of ours")).collect()
}
