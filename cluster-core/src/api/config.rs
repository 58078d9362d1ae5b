//! Configuration on the wire: `SyncConfig` on the controller, `PushConfig` on a worker.

use aegis_config::layers::MergedConfig;
use aegis_proto::aegis::cluster::v1 as pb;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};

use crate::cluster::{applied::AppliedConfig, controller::Controller};

/// A node asks for its own configuration, and gets no other.
pub(super) async fn sync(
    controller: &Controller,
    node_id: &NodeId,
    inner: pb::SyncConfigInner,
) -> Result<pb::SyncConfigResponse> {
    if let Some(tenant) = inner.tenant_id.filter(|tenant| !tenant.is_empty()) {
        let own = controller.tenant_of(node_id).await?;
        if own.as_ref().map(aegis_types::ids::TenantSlug::as_str) != Some(tenant.as_str()) {
            return Err(Error::new(ErrorCode::NotYours, format!("{node_id} is not of that tenant")));
        }
    }
    let MergedConfig { json, version } = controller.merged_config(node_id).await?;
    let up_to_date = version == inner.current_config_version;
    Ok(pb::SyncConfigResponse {
        up_to_date,
        latest_version: version,
        config_delta: if up_to_date { Vec::new() } else { json.to_string().into_bytes() },
    })
}

/// The controller pushes: false where this node keeps what it has.
pub(super) fn push(
    applied: &AppliedConfig,
    own_id: &NodeId,
    inner: &pb::PushConfigInner,
) -> Result<pb::PushConfigResponse> {
    if inner.target_node_id != own_id.as_str() {
        return Err(Error::new(ErrorCode::NotYours, "the configuration is for another node"));
    }
    let accepted = applied.apply(&inner.config_version, &inner.config_payload).is_ok();
    Ok(pb::PushConfigResponse { accepted })
}
