//! The calls of members: each may write only itself, and read what its role allows.

use aegis_identity::PublicKey;
use aegis_proto::aegis::cluster::v1 as pb;
use aegis_rpc::convert::{
    address, capabilities_from_wire, command_to_wire, config_from_wire, held_from_wire, interval_from_wire,
    peer_to_wire, role_to_wire, status_to_wire,
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::manifest::PlacementRequest,
    ids::{CommandId, Tag},
    text::shown,
};

use super::{Caller, ControllerApi};
use crate::membership::{Registration, Report};

/// A worker holds at most as many.
const RUNNING_MAX: usize = 4_096;

/// Proof that a node holds the key that it changes to.
pub(super) struct NewKeyProof {
    pub key: Vec<u8>,
    pub signature: Vec<u8>,
    /// The bytes that both keys signed.
    pub payload: Vec<u8>,
}

impl ControllerApi {
    pub(super) async fn register(
        &self,
        caller: Caller,
        inner: pb::RegisterNodeInner,
        is_near: bool,
    ) -> Result<pb::RegisterNodeResponse> {
        let node_id = caller.node_id;
        let capabilities = capabilities_from_wire(inner.capabilities.unwrap_or_default())?;
        let address = address(inner.grpc_address)?;
        // A node that cannot be reached would take work and never run it.
        self.0.nodes.probe(&node_id, &address, is_near).await?;
        let interval = interval_from_wire(inner.heartbeat_interval_secs);
        let registration = Registration { capabilities, address, interval };
        self.0.controller.register(node_id.clone(), registration).await?;
        tracing::info!(%node_id, "registered");
        Ok(pb::RegisterNodeResponse {
            accepted: true,
            cluster_id: self.0.controller.cluster_id().to_string(),
            message: String::new(),
        })
    }

    pub(super) async fn beat(
        &self,
        caller: Caller,
        inner: pb::NodeHeartbeatInner,
    ) -> Result<pb::NodeHeartbeatResponse> {
        let acknowledged =
            inner.acknowledged_command_ids.into_iter().map(CommandId::parse).collect::<Result<Vec<_>>>()?;
        let capabilities = inner.capabilities.map(capabilities_from_wire).transpose()?;
        if inner.running.len() > RUNNING_MAX {
            return Err(Error::invalid(format!(
                "the heartbeat names {} executions; at most {RUNNING_MAX} are taken",
                inner.running.len()
            )));
        }
        let held = inner.running.into_iter().map(held_from_wire).collect::<Result<Vec<_>>>()?;
        let draining = match pb::NodeStatus::try_from(inner.status) {
            Ok(pb::NodeStatus::Draining) => Some(true),
            Ok(pb::NodeStatus::Active) => Some(false),
            Ok(pb::NodeStatus::Unhealthy | pb::NodeStatus::Unspecified) | Err(_) => None,
        };
        let config = config_from_wire(inner.config_version, &inner.config_error);
        let interval = interval_from_wire(inner.heartbeat_interval_secs);
        let report = Report { capabilities, acknowledged, draining, config, interval };
        let node_id = caller.node_id;
        let commands = self.0.controller.heartbeat(node_id.clone(), report).await?;
        let commands = self.0.controller.with_bodies(&node_id, commands).await?;
        self.0.nodes.report_held(node_id, held);
        let pending_commands =
            commands.into_iter().map(|(id, command)| command_to_wire(id, command)).collect();
        Ok(pb::NodeHeartbeatResponse { pending_commands })
    }

    /// Going away, or leaving for good.
    pub(super) async fn deregister(
        &self,
        caller: Caller,
        inner: pb::DeregisterNodeInner,
    ) -> Result<pb::DeregisterNodeResponse> {
        let node_id = caller.node_id;
        let reason = shown(&inner.reason);
        if !inner.leave {
            tracing::info!(%node_id, reason, "said goodbye");
            self.0.controller.goodbye(node_id).await?;
            return Ok(pb::DeregisterNodeResponse { accepted: true });
        }
        tracing::info!(%node_id, reason, "wants to leave");
        let accepted = self.0.controller.leave(node_id).await?;
        Ok(pb::DeregisterNodeResponse { accepted })
    }

    /// All nodes for a controller or hybrid; a worker sees itself alone.
    pub(super) async fn peers(
        &self,
        caller: Caller,
        inner: pb::ListPeersInner,
    ) -> Result<pb::ListPeersResponse> {
        let controller = &self.0.controller;
        let members = controller.members().await?;
        let sees_all = caller.role.is_controller();
        let nodes = members
            .iter()
            .filter(|(view, _)| sees_all || view.node_id == caller.node_id)
            .filter(|(view, _)| {
                let (status, role) = (status_to_wire(view.status).into(), i32::from(role_to_wire(view.role)));
                (inner.filter_status.is_empty() || inner.filter_status.contains(&status))
                    && (inner.filter_role.is_empty() || inner.filter_role.contains(&role))
            })
            .map(|(view, record)| peer_to_wire(view, record))
            .collect();
        Ok(pb::ListPeersResponse { nodes, cluster_id: controller.cluster_id().to_string() })
    }

    /// Which node would take an execution now. Nothing is reserved: who wants it run submits it.
    pub(super) async fn route(
        &self,
        caller: Caller,
        inner: pb::RouteExecutionInner,
    ) -> Result<pb::RouteExecutionResponse> {
        if !caller.role.is_controller() {
            return Err(Error::new(
                ErrorCode::NotYours,
                format!("{} is a worker: it does not route executions", caller.node_id),
            ));
        }
        let needed = capabilities_from_wire(inner.required_capabilities.unwrap_or_default())?;
        let preferred = inner.preferred_tags.into_iter().map(Tag::parse).collect::<Result<Vec<_>>>()?;
        let (tags, amounts) = (needed.tags, needed.total);
        let demand = PlacementRequest {
            tags,
            preferred_tags: preferred,
            node_id: None,
            amounts,
            wait_seconds: None,
            priority: 0,
        };
        let chosen = self.0.controller.with_placement(move |membership| {
            let chosen = membership.fit(&demand)?;
            let address = membership.record(&chosen).map(|record| record.address.clone());
            Ok((chosen, address.unwrap_or_default()))
        });
        let (node_id, worker_grpc_address) =
            chosen.await?.map_err(|no_fit: crate::placement::PlacementError| {
                Error::new(ErrorCode::NoNodeFits, format!("no node fits: {no_fit}"))
                    .remedy("wait, or ask for less")
            })?;
        Ok(pb::RouteExecutionResponse { target_node_id: node_id.to_string(), worker_grpc_address })
    }

    /// A node changes its key, which the old one asks for and the new one shows that it has.
    pub(super) async fn rotate_key(
        &self,
        caller: Caller,
        inner: pb::RotateEdgeKeyInner,
        proof: NewKeyProof,
    ) -> Result<pb::RotateEdgeKeyResponse> {
        if inner.new_public_key != proof.key {
            return Err(Error::new(
                ErrorCode::InvalidSignature,
                "the new key in the request is not the one that the node signed for",
            ));
        }
        let key = PublicKey::parse(&proof.key)?;
        key.verify(&proof.payload, &proof.signature)?;
        let rotation = self.0.controller.rotate_key(caller.node_id, caller.role, caller.key, key).await?;
        Ok(pb::RotateEdgeKeyResponse {
            node_security_token: rotation.token,
            expires_at: Some(prost_types::Timestamp { seconds: rotation.expires_at_secs, nanos: 0 }),
            overlap_until: Some(prost_types::Timestamp {
                seconds: rotation.overlap_until_ms / 1000,
                nanos: 0,
            }),
        })
    }
}
