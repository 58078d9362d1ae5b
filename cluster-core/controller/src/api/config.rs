//! Configuration calls of nodes: `SyncConfig`.

use aegis_config::layers::MergedConfig;
use aegis_proto::aegis::cluster::v1 as pb;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};

use crate::handle::Controller;

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
