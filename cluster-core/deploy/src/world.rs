//! What a deployment needs of the rest of the program: the cluster it joins, and a place to record.

use std::time::Duration;

use aegis_ssh::{Connection, HostAddress, HostKey, SshTarget};
use aegis_types::{
    error::Result,
    ids::{DeploymentId, NodeId},
    link::NodeLink,
    resources::Amounts,
    secret::{Secret, SecretName},
};
use futures::future::BoxFuture;

use super::{operation::Action, spec::DeploymentSpec, view::DeploymentView};

/// The cluster, as a deployment sees it.
pub trait Membership: Send + Sync {
    /// An identity that is pinned to another host is a `Conflict` that names both.
    fn check_identity<'a>(&'a self, node: &'a NodeId, target: &'a SshTarget) -> BoxFuture<'a, Result<()>>;

    /// Pins the key that was read from the host over the verified connection. Idempotent. The node may claim
    /// `size` at most; without one, an earlier bound stays.
    fn admit<'a>(
        &'a self,
        node: &'a NodeId,
        public_key: [u8; 32],
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        size: Option<Amounts>,
    ) -> BoxFuture<'a, Result<()>>;

    /// Returns the thumbprints of the node's keys that were revoked when it was removed.
    fn revoked_keys<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Vec<String>>>;

    /// Starts (or replaces) the standing link of the node, over this connection. Idempotent.
    fn attach_link<'a>(
        &'a self,
        node: &'a NodeId,
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        connection: Connection,
    ) -> BoxFuture<'a, Result<()>>;

    /// Returns once the node is Active, or with a `Timeout` that says what it is instead.
    fn await_active<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<()>>;

    /// Has the node run a container of this image, which lies on it; the answer is the evidence.
    fn prove<'a>(&'a self, node: &'a NodeId, image: &'a str) -> BoxFuture<'a, Result<String>>;

    /// Removes the link's own key from the host, where the node's record says that it may be there.
    /// Idempotent; called while that record exists.
    fn remove_link_key<'a>(
        &'a self,
        node: &'a NodeId,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<()>>;

    /// A first deployment failed and the host is being cleaned: undo `admit` and `attach_link`.
    fn withdraw<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    /// Where the node was deployed; an error when it is unknown or joined by hand.
    fn deployed<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Deployed>>;

    /// Gives the node no new work and waits for the rest, which is cancelled after `limit`. Idempotent.
    fn drain<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<String>>;

    /// Takes a drained node back into service.
    fn resume<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    /// Revokes the node's key and ends its link: it is no member any more. Idempotent.
    fn forget<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    fn controller_public_key(&self) -> [u8; 32];
}

/// A deployment as it is stored: without secrets, and enough to resume it.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct DeploymentRecord {
    pub view: DeploymentView,
    #[serde(default)]
    pub action: Action,
    pub spec: DeploymentSpec,
    /// What ran there before; none until the host was looked at, and then something may be changed.
    #[serde(default)]
    pub before: Option<Before>,
    /// The node was a member before: a failure does not take that away.
    #[serde(default)]
    pub was_member: bool,
    /// Images that the host did not have and got for this deployment.
    #[serde(default)]
    pub fetched: Vec<String>,
    pub idempotency_key: Option<String>,
    pub request_digest: String,
}

/// What a deployment found on its host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    Nothing,
    /// Containers of the project, and no release that accounts for them.
    Stack,
    Release(DeploymentId),
}

/// Where a node lies that was deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    pub target: SshTarget,
    pub base_dir: String,
    /// It is out of service already.
    pub drained: bool,
    /// Whether a node of ours runs there; otherwise it is a stack alone.
    pub join: bool,
}

/// A host that a person (or the configuration) admitted, with the key that is pinned.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct ApprovedHost {
    pub host: HostAddress,
    pub port: u16,
    pub key: HostKey,
    /// `host approve`, `deploy`, `configuration`, `jump host`.
    pub approved_by: String,
    pub approved_at_ms: i64,
}

/// Pinned on the way to another host.
pub(super) const JUMP_HOST: &str = "jump host";

impl ApprovedHost {
    /// Whether it may be deployed to, or only passed through.
    pub fn is_target(&self) -> bool {
        self.approved_by != JUMP_HOST
    }
}

#[derive(Debug, Clone, Default)]
pub struct DeploymentFilter {
    pub state: Option<super::view::DeploymentState>,
    pub host: Option<String>,
    pub limit: usize,
    pub offset: usize,
}

/// The store, as a deployment sees it. What returned `Ok` is durable.
pub trait Journal: Send + Sync {
    fn put<'a>(&'a self, record: &'a DeploymentRecord) -> BoxFuture<'a, Result<()>>;
    fn get<'a>(&'a self, id: &'a DeploymentId) -> BoxFuture<'a, Result<Option<DeploymentRecord>>>;
    fn by_idempotency_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<DeploymentRecord>>>;
    /// Newest first, and how many there are in all.
    fn list<'a>(
        &'a self,
        filter: &'a DeploymentFilter,
    ) -> BoxFuture<'a, Result<(Vec<DeploymentRecord>, usize)>>;
    /// Those whose state is not final.
    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DeploymentRecord>>>;

    fn put_host<'a>(&'a self, host: &'a ApprovedHost) -> BoxFuture<'a, Result<()>>;
    fn host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<Option<ApprovedHost>>>;
    fn hosts(&self) -> BoxFuture<'_, Result<Vec<ApprovedHost>>>;
    /// Whether there was one.
    fn forget_host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<bool>>;

    /// Opens one of the operator's own secrets, and notes what it was used for; `NotFound` names no other.
    fn use_secret<'a>(&'a self, name: &'a SecretName, purpose: &'a str) -> BoxFuture<'a, Result<Secret>>;
}
