//! Cluster operations of a removal: the node is drained, its executions are ended, and it is removed.

use std::time::Duration;

use aegis_controller::{handle::Controller, nodes::NodeConnections};
use aegis_deploy::Deployed;
use aegis_ssh::{HostAddress, SshTarget};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    node::{Desired, DrainState, DrainView, OnDeadline},
};

/// Time after the deadline for cancelled executions to end, and for their ends to arrive.
const CANCEL_GRACE: Duration = Duration::from_secs(60);

/// Returns the host of a deployed node.
pub async fn deployed(controller: &Controller, node_id: &NodeId, allow_loopback: bool) -> Result<Deployed> {
    let record = controller.record(node_id).await?.filter(|record| record.desired != Desired::Removed);
    let record = record.ok_or_else(|| Error::not_found("node", node_id.as_str()))?;
    let site = record.site.ok_or_else(|| {
        Error::new(ErrorCode::FailedPrecondition, format!("node {node_id} was not deployed from here"))
            .remedy("it joined by hand: act on its own machine, or run `aegis node remove` to unmember it")
    })?;
    let target = SshTarget {
        host: HostAddress::parse(&site.host, allow_loopback)?,
        port: site.port,
        user: site.user,
        key_path: site.key_path,
    };
    Ok(Deployed {
        target,
        base_dir: site.base_dir,
        drained: record.desired != Desired::Schedulable,
        join: true,
    })
}

/// Waits until nothing runs there; what does not end in time goes with the node.
pub async fn drain(
    controller: &Controller,
    nodes: &NodeConnections,
    node_id: &NodeId,
    limit: Duration,
) -> Result<String> {
    let mut version = controller.version();
    let mut view = match controller.drain(node_id.clone(), limit, OnDeadline::Cancel).await {
        Ok(view) => view,
        Err(error) if error.code() == ErrorCode::NodeRemoved => {
            return Ok("it is no member any more".to_owned());
        }
        Err(error) => return Err(error),
    };
    nodes.nudge(node_id);
    let drained = async {
        while view.state == DrainState::Draining {
            version.mark_unchanged();
            view = controller.drain_view(node_id.clone()).await?;
            if view.state == DrainState::Draining && version.changed().await.is_err() {
                return Err(Error::new(ErrorCode::Unavailable, "the controller is stopping"));
            }
        }
        Ok(view)
    };
    let view: DrainView = match tokio::time::timeout(limit + CANCEL_GRACE, drained).await {
        Ok(view) => view?,
        Err(_) => controller.drain_view(node_id.clone()).await?,
    };
    match view.state {
        DrainState::Drained | DrainState::Removed => Ok("nothing runs there any more".to_owned()),
        DrainState::Draining => {
            Ok(format!("{} executions did not end and are lost with the node", view.blockers.len()))
        }
        DrainState::Schedulable => {
            Err(Error::new(ErrorCode::Cancelled, format!("{node_id} was resumed meanwhile")))
        }
    }
}

/// Revokes the node's key; its link ends with that.
pub async fn forget(controller: &Controller, node_id: &NodeId) -> Result<()> {
    match controller.remove(node_id.clone(), Duration::ZERO, true).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
