//! Interfaces that a deployment needs from the rest of the program: the cluster and a journal.

use std::time::Duration;

use aegis_ssh::{Connection, HostAddress, SshTarget};
use aegis_types::{
    error::Result,
    ids::{DeploymentId, NodeId},
    link::NodeLink,
    resources::Amounts,
    secret::{Secret, SecretName},
};
use futures::future::BoxFuture;

use crate::{
    ApprovedHost, Deployed, DeploymentFilter,
    model::{record::DeploymentRecord, spec::DeploymentSpec},
};

/// The cluster, as a deployment sees it.
pub trait Membership: Send + Sync {
    /// Checks that the identity is free. An identity pinned to another host is a `Conflict` that names both.
    fn check_identity<'a>(&'a self, node: &'a NodeId, target: &'a SshTarget) -> BoxFuture<'a, Result<()>>;

    /// Pins the key that was read from the host over the verified connection. Idempotent. The node may claim at most
    /// `size`; `None` keeps an earlier bound.
    fn admit<'a>(
        &'a self,
        node: &'a NodeId,
        public_key: [u8; 32],
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        size: Option<Amounts>,
    ) -> BoxFuture<'a, Result<()>>;

    /// Returns the thumbprints of keys that were revoked when the node was removed.
    fn revoked_keys<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Vec<String>>>;

    /// Starts or replaces the standing link of the node over this connection. Idempotent.
    fn attach_link<'a>(
        &'a self,
        node: &'a NodeId,
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        connection: Connection,
    ) -> BoxFuture<'a, Result<()>>;

    /// Returns once the node is Active, or a `Timeout` that names its current state.
    fn await_active<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<()>>;

    /// Runs a container of this image, which is on the node, and returns the evidence.
    fn prove<'a>(&'a self, node: &'a NodeId, image: &'a str) -> BoxFuture<'a, Result<String>>;

    /// Removes the link's own key from the host, if the node's record says that it may be there. Idempotent. Called
    /// while that record exists.
    fn remove_link_key<'a>(
        &'a self,
        node: &'a NodeId,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<()>>;

    /// Undoes `admit` and `attach_link` after a first deployment failed and while the host is cleaned.
    fn withdraw<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    /// Returns the place of a deployed node. Returns an error if the node is unknown or joined by hand.
    fn deployed<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Deployed>>;

    /// Stops new work on the node and waits for running work, which is cancelled after `limit`. Idempotent.
    fn drain<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<String>>;

    /// Returns a drained node to service.
    fn resume<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    /// Revokes the node's key and ends its link, so that it is no longer a member. Idempotent.
    fn forget<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>>;

    fn controller_public_key(&self) -> [u8; 32];
}

/// The store, as a deployment sees it. A change that returned `Ok` is durable.
pub trait Journal: Send + Sync {
    fn put<'a>(&'a self, record: &'a DeploymentRecord) -> BoxFuture<'a, Result<()>>;
    fn get<'a>(&'a self, id: &'a DeploymentId) -> BoxFuture<'a, Result<Option<DeploymentRecord>>>;
    fn by_idempotency_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<DeploymentRecord>>>;
    /// Returns a page of deployments, newest first, and the total number.
    fn list<'a>(
        &'a self,
        filter: &'a DeploymentFilter,
    ) -> BoxFuture<'a, Result<(Vec<DeploymentRecord>, usize)>>;
    /// Returns the deployments whose state is not final.
    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DeploymentRecord>>>;

    fn put_host<'a>(&'a self, host: &'a ApprovedHost) -> BoxFuture<'a, Result<()>>;
    fn host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<Option<ApprovedHost>>>;
    fn hosts(&self) -> BoxFuture<'_, Result<Vec<ApprovedHost>>>;
    /// Forgets a host. Returns whether it was known.
    fn forget_host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<bool>>;

    /// Opens an operator's secret and records its purpose. Returns `NotFound`, without naming other secrets, if absent.
    fn use_secret<'a>(&'a self, name: &'a SecretName, purpose: &'a str) -> BoxFuture<'a, Result<Secret>>;
}
