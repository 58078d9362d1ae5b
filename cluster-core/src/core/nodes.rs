//! The core's verbs on nodes: who is there, drains and removals, enrolment, and this node's own membership.

use std::time::Duration;

use aegis_controller::{
    events::{Batch, EventId},
    handle::TokenView,
    membership::PeerPage,
};
use aegis_types::{
    clock::rfc3339,
    error::{Error, ErrorCode, Result},
    ids::{EnrolmentTokenId, NodeId},
    node::{DrainState, DrainView, OnDeadline, PeerView, Role},
};
use aegis_worker::membership::Member;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Core, Part};

#[derive(Debug, Clone, Copy)]
pub struct DrainOrder {
    pub deadline: Duration,
    pub on_deadline: OnDeadline,
}

#[derive(Debug, Clone, Copy)]
pub struct RemovalOrder {
    /// How long what runs there may go on.
    pub deadline: Duration,
    /// At once: what runs there is told as lost.
    pub force: bool,
}

/// Nodes that are asked for.
pub use aegis_controller::membership::PeerFilter;

/// Nodes that an enrolment token admits.
pub use aegis_controller::handle::TokenOrder as EnrolmentOrder;

/// An enrolment token for its bearer: shown once.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolmentGrant {
    pub token: String,
    /// To revoke it by.
    pub token_id: EnrolmentTokenId,
    pub role: Role,
    /// Address of this controller, for the bearer.
    pub controller_endpoint: String,
    /// RFC 3339.
    pub expires_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<NodeId>,
}

impl Core {
    /// All matching peers, in the order of their ids; removed ones only when asked for.
    pub async fn peers(&self, filter: PeerFilter) -> Result<Vec<PeerView>> {
        Ok(self.peers_page(filter, None, usize::MAX).await?.peers)
    }

    /// At most `limit` matching peers, after one that may have gone.
    pub async fn peers_page(
        &self,
        filter: PeerFilter,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<PeerPage> {
        self.controller()?.controller.page(filter, after, limit).await
    }

    /// Changes whenever a node, its state or its link did, or what was reserved became free.
    pub fn watch_membership(&self) -> Result<watch::Receiver<u64>> {
        Ok(self.controller()?.controller.version())
    }

    pub async fn drain(&self, node_id: &NodeId, order: DrainOrder) -> Result<DrainView> {
        let part = self.controller()?;
        let view = part.controller.drain(node_id.clone(), order.deadline, order.on_deadline).await?;
        part.nodes.nudge(node_id);
        Ok(view)
    }

    pub async fn drain_status(&self, node_id: &NodeId) -> Result<DrainView> {
        self.controller()?.controller.drain_view(node_id.clone()).await
    }

    /// Waits until the drain is done or the time is over, then says how it stands.
    pub async fn await_drain(&self, node_id: &NodeId, wait: Duration) -> Result<DrainView> {
        let controller = &self.controller()?.controller;
        let mut version = controller.version();
        let drained = async {
            loop {
                version.mark_unchanged();
                let view = controller.drain_view(node_id.clone()).await?;
                if view.state != DrainState::Draining || version.changed().await.is_err() {
                    return Ok(view);
                }
            }
        };
        match tokio::time::timeout(wait, drained).await {
            Ok(view) => view,
            Err(_) => self.drain_status(node_id).await,
        }
    }

    pub async fn resume(&self, node_id: &NodeId) -> Result<PeerView> {
        let part = self.controller()?;
        let view = part.controller.resume(node_id.clone()).await?;
        part.nodes.nudge(node_id);
        Ok(view)
    }

    /// Drains the node and removes it; what still runs at the deadline is cancelled.
    pub async fn remove(&self, node_id: &NodeId, order: RemovalOrder) -> Result<DrainView> {
        let part = self.controller()?;
        let view = part.controller.remove(node_id.clone(), order.deadline, order.force).await?;
        part.nodes.nudge(node_id);
        Ok(view)
    }

    /// Has the node end its process once nothing runs there.
    pub async fn shut_down_node(&self, node_id: &NodeId) -> Result<()> {
        let part = self.controller()?;
        part.controller.shut_down(node_id.clone()).await?;
        part.nodes.nudge(node_id);
        Ok(())
    }

    /// Returns node events after a position, at most `limit`.
    pub fn node_events(&self, after: EventId, limit: usize) -> Result<Batch> {
        Ok(self.controller()?.controller.events().after(after, limit))
    }

    /// Waits until something happened after this event, or the time is over.
    pub async fn await_node_event(&self, after: EventId, wait: Duration) -> Result<()> {
        let events = self.controller()?.controller.events().clone();
        // At the end of the time the reader looks again, whatever there is.
        let _ = tokio::time::timeout(wait, events.wait(after)).await;
        Ok(())
    }

    /// Returns the address of this controller, for nodes.
    pub fn controller_endpoint(&self) -> Result<String> {
        Ok(self.controller()?.endpoint.clone())
    }

    // --- enrolment -------------------------------------------------------------------------

    pub async fn create_enrolment_token(&self, order: EnrolmentOrder) -> Result<EnrolmentGrant> {
        const LIFETIME_MAX: Duration = Duration::from_secs(86_400);
        if order.lifetime < Duration::from_secs(1) || order.lifetime > LIFETIME_MAX {
            return Err(Error::invalid("the token's lifetime is out of range 1s to 24h"));
        }
        let part = self.controller()?;
        let ca = part.tls.authority.as_ref().map(|authority| authority.fingerprint());
        let (issued, expires_at_ms) = part.controller.issue_enrolment_token(order.clone(), ca).await?;
        Ok(EnrolmentGrant {
            token: issued.text.to_string(),
            token_id: issued.id,
            expires_at: rfc3339(expires_at_ms),
            node_id: order.node_id,
            role: order.role,
            controller_endpoint: part.endpoint.clone(),
        })
    }

    /// Newest first; never the secrets.
    pub async fn enrolment_tokens(&self) -> Result<Vec<TokenView>> {
        self.controller()?.controller.enrolment_tokens().await
    }

    pub async fn revoke_enrolment_token(&self, token_id: &EnrolmentTokenId) -> Result<TokenView> {
        self.controller()?.controller.revoke_enrolment_token(token_id).await
    }

    // --- this node's own membership --------------------------------------------------------

    /// Asks the controller to remove this node: true once that is done, and then the process ends.
    pub async fn leave(&self) -> Result<bool> {
        self.member()?.leave().await
    }

    /// Changes this node's key, with the controller's knowledge.
    pub async fn rotate_key(&self) -> Result<()> {
        self.member()?.rotate_key().await
    }

    fn member(&self) -> Result<&Member> {
        match &self.0.part {
            Part::Worker(part) => Ok(&part.member),
            Part::Controller(_) => Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("{} is the controller: it has joined nobody", self.0.node_id),
            )
            .remedy("run this on the machine of the worker")),
        }
    }
}
