//! Watches resources through the core's own watches, without polling.

use std::time::Duration;

use cluster_core::{
    core::{Core, PeerFilter},
    deploy::DeploymentView,
    types::{error::Result, execution::view::ExecutionView, node::PeerView, resources::Amounts},
};
use tokio::sync::watch;

use super::uri::ResourceUri;

/// Minimum interval of checks of the nodes, since the membership may change many times a second.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// Follows one resource from the moment it was opened.
#[derive(Debug)]
pub enum Watch {
    Peers { version: watch::Receiver<u64>, known: Vec<PeerView> },
    Deployment(watch::Receiver<DeploymentView>),
    Execution { view: watch::Receiver<ExecutionView>, known: Box<ExecutionView> },
    Output { view: watch::Receiver<ExecutionView>, sequence: u64 },
}

impl Watch {
    /// Starts to watch. All changes after the return are reported. An unknown id is `NotFound`.
    pub async fn open(core: &Core, uri: &ResourceUri) -> Result<Self> {
        Ok(match uri {
            ResourceUri::Peers => {
                let mut version = core.watch_membership()?;
                version.mark_unchanged();
                Self::Peers { version, known: standing(core).await? }
            }
            ResourceUri::Deployment(id) => {
                let mut view = core.watch_deployment(id).await?;
                view.mark_unchanged();
                Self::Deployment(view)
            }
            ResourceUri::Execution(id) => {
                let mut view = core.watch_execution(id).await?;
                let known = Box::new(state_of(&view.borrow_and_update()));
                Self::Execution { view, known }
            }
            ResourceUri::Output { execution, .. } => {
                let mut view = core.watch_execution(execution).await?;
                let sequence = view.borrow_and_update().last_sequence;
                Self::Output { view, sequence }
            }
        })
    }

    /// Waits for the next change. Returns `false` if the resource has ended and cannot change any more.
    pub async fn changed(&mut self, core: &Core) -> bool {
        match self {
            Self::Peers { version, known } => loop {
                if version.changed().await.is_err() {
                    return false;
                }
                // An error means that the controller is stopping.
                let Ok(now) = standing(core).await else { return false };
                if *known != now {
                    *known = now;
                    return true;
                }
                tokio::time::sleep(LOOK_INTERVAL_MIN).await;
            },
            Self::Deployment(view) => view.changed().await.is_ok(),
            Self::Execution { view, known } => loop {
                if view.changed().await.is_err() {
                    return false;
                }
                let now = state_of(&view.borrow_and_update());
                if **known != now {
                    **known = now;
                    return true;
                }
            },
            Self::Output { view, sequence } => loop {
                if view.changed().await.is_err() {
                    return false;
                }
                let last = view.borrow_and_update().last_sequence;
                if *sequence < last {
                    *sequence = last;
                    return true;
                }
            },
        }
    }
}

/// Returns the nodes without the fields that every heartbeat and execution changes, which clients can read.
async fn standing(core: &Core) -> Result<Vec<PeerView>> {
    let mut peers = core.peers(PeerFilter::default()).await?;
    for peer in &mut peers {
        peer.last_heartbeat_age_ms = None;
        peer.running = 0;
        peer.free = Amounts::default();
        peer.gpu_devices.iter_mut().for_each(|gpu| gpu.in_use = false);
    }
    Ok(peers)
}

/// Returns an execution without the number of its events, for which its output is watched.
fn state_of(view: &ExecutionView) -> ExecutionView {
    ExecutionView { last_sequence: 0, ..view.clone() }
}
