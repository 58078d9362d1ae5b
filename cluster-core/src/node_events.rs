//! Follows node events: counts them, and closes the connection and the sessions of a removed node.
//!
//! One task, which ends with the controller. It may be slow: a removed node is refused by its record as soon as the
//! removal is stored.

use aegis_controller::{events::EventId, handle::Controller, nodes::NodeConnections};
use aegis_metrics::Metrics;
use aegis_rpc::tls::Credentials;
use aegis_types::node_event::NodeEventKind;
use tokio_util::sync::CancellationToken;

const BATCH_MAX: usize = 256;

pub fn spawn(
    controller: Controller,
    nodes: NodeConnections,
    credentials: Option<Credentials>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let mut seen = EventId { epoch: controller.epoch(), sequence: 0 };
        while stop.run_until_cancelled(controller.events().wait(seen)).await.is_some() {
            let batch = controller.events().after(seen, BATCH_MAX).events;
            for event in &batch {
                metrics.event(event.kind);
                if event.kind == NodeEventKind::NodeRemoved {
                    controller.sessions().forget(&event.node_id);
                    nodes.detach(&event.node_id);
                    if let Some(credentials) = &credentials {
                        credentials.cut(&event.node_id);
                    }
                }
            }
            // Ids of ours read back.
            seen = batch.last().and_then(|event| event.id.parse().ok()).unwrap_or(seen);
        }
    });
}
