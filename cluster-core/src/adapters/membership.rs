//! Cluster operations of a deployment: a free name, a pinned key, a link, and a member that is active and has run a
//! container.

use std::time::Duration;

use aegis_controller::{
    executions::Executions, handle::Controller, membership::Given, nodes::NodeConnections,
};
use aegis_deploy as deploy;
use aegis_deploy::{DeploymentSpec, HostAccess, host::link_key};
use aegis_identity::PublicKey;
use aegis_ssh::{Connection, HostAddress, LinkSettings, SshTarget};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::lifecycle::State,
    ids::NodeId,
    link::NodeLink,
    node::{Desired, NodeHost, NodeRecord, PeerStatus},
    principal::Origin,
    resources::Amounts,
};
use futures::future::BoxFuture;

use crate::{adapters::removal, smoke_test};

#[derive(Debug, Clone)]
pub struct ClusterMembership {
    pub controller: Controller,
    pub nodes: NodeConnections,
    pub executions: Executions,
    pub hosts: HostAccess,
}

fn site(spec: &DeploymentSpec, link: &NodeLink) -> NodeHost {
    NodeHost {
        link: link.clone(),
        base_dir: spec.base_dir.clone(),
        by_person: spec.origin == Origin::Person,
        ..bare_site(&spec.target)
    }
}

fn bare_site(target: &SshTarget) -> NodeHost {
    NodeHost {
        host: target.host.to_string(),
        port: target.port,
        user: target.user.clone(),
        key_path: target.key_path.clone(),
        base_dir: String::new(),
        link: NodeLink::default(),
        by_person: false,
        link_key: None,
    }
}

impl ClusterMembership {
    /// Connects to a node that was deployed in an earlier life of the controller.
    pub fn restore_link(&self, record: &NodeRecord, allow_loopback: bool) -> Result<()> {
        let Some(site) = &record.site else { return Ok(()) };
        if record.desired == Desired::Removed || site.link.is_direct() {
            return Ok(());
        }
        let target = SshTarget {
            host: HostAddress::parse(&site.host, allow_loopback)?,
            port: site.port,
            user: site.user.clone(),
            key_path: site.key_path.clone(),
        };
        let origin = if site.by_person { Origin::Person } else { Origin::Assistant };
        let settings = self.link_settings(&record.node_id, site);
        self.nodes.attach_link(settings, self.hosts.dialer(target, origin), None);
        Ok(())
    }

    fn link_settings(&self, node_id: &NodeId, site: &NodeHost) -> LinkSettings {
        let owner = self.controller.cluster_id().as_str();
        deploy::link_settings(node_id, &site.base_dir, owner, site.link.ports())
    }

    async fn site(&self, node_id: &NodeId) -> Result<Option<NodeHost>> {
        Ok(self.controller.record(node_id).await?.and_then(|record| record.site))
    }

    /// Whether the host of a node has another address now: the same host key is pinned there, and the node
    /// does not answer at the old one. A copy of the machine has the key too, while the original answers.
    async fn has_moved(&self, node: &NodeId, target: &SshTarget) -> Result<bool> {
        let Some(site) = self.site(node).await? else { return Ok(false) };
        let allow_loopback = self.hosts.settings().allow_loopback;
        let Ok(old) = HostAddress::parse(&site.host, allow_loopback) else { return Ok(false) };
        let (old, new) = ((&old, site.port), (&target.host, target.port));
        if !self.hosts.have_one_key(old, new).await? {
            return Ok(false);
        }
        Ok(!self.controller.view(node.clone()).await?.link_up)
    }

    /// Whether the link's own key may be on the host once a node with this link is attached: it is about to
    /// be installed, or was there before. `None` means that no record says.
    fn may_have_link_key(&self, before: Option<&NodeHost>, link: &NodeLink) -> Option<bool> {
        let installs = self.hosts.settings().link_key.is_some() && !link.is_direct();
        match before {
            _ if installs => Some(true),
            Some(site) => site.link_key,
            None => Some(false),
        }
    }

    /// Removes the link's own key from a host that may have it, and records that it is gone.
    async fn clear_link_key(&self, node: &NodeId, connection: &Connection) -> Result<()> {
        let Some(record) = self.controller.record(node).await? else { return Ok(()) };
        let Some(site) = record.site.filter(|site| site.link_key != Some(false)) else { return Ok(()) };
        link_key::uninstall(connection, self.controller.cluster_id().as_str(), node).await?;
        let Some(public_key) = record.public_key else { return Ok(()) };
        let site = NodeHost { link_key: Some(false), ..site };
        self.controller.admit(node.clone(), PublicKey::parse(&public_key)?, site, None).await
    }

    async fn wait_until_active(&self, node_id: &NodeId) -> Result<()> {
        let mut version = self.controller.version();
        loop {
            version.mark_unchanged();
            let view = self.controller.view(node_id.clone()).await?;
            if view.link_up && matches!(view.status, PeerStatus::Active | PeerStatus::Draining) {
                return Ok(());
            }
            version
                .changed()
                .await
                .map_err(|_| Error::new(ErrorCode::Unavailable, "the controller is stopping"))?;
        }
    }

    async fn run_proof(&self, node_id: &NodeId, image: &str) -> Result<String> {
        let view = self.controller.view(node_id.clone()).await?;
        if view.desired == Desired::Draining {
            return Ok("the node is draining and takes no work, so no container was run".to_owned());
        }
        let ended = smoke_test::run_version(&self.executions, node_id, image).await?;
        let id = ended.execution_id;
        if ended.state == State::Succeeded {
            let took_ms = ended.ended_at_ms.unwrap_or(0) - ended.created_at_ms;
            return Ok(format!("{id} ran a container of {image} and exited with 0 after {took_ms} ms"));
        }
        let why = ended.failure.map(|failure| failure.message).or(ended.waiting).unwrap_or_default();
        let _ = self.executions.cancel(&id, "the proof took too long").await;
        Err(Error::new(
            ErrorCode::DeploymentFailed,
            format!("the node could not run a container: {} {why}", ended.state.name()),
        )
        .remedy("see the node's log: docker compose logs node"))
    }
}

impl deploy::Membership for ClusterMembership {
    fn check_identity<'a>(&'a self, node: &'a NodeId, target: &'a SshTarget) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match self.controller.check_identity(node.clone(), bare_site(target)).await {
                Err(error) if error.code() == ErrorCode::Conflict && self.has_moved(node, target).await? => {
                    Ok(())
                }
                answer => answer,
            }
        })
    }

    fn admit<'a>(
        &'a self,
        node: &'a NodeId,
        public_key: [u8; 32],
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        size: Option<Amounts>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let before = self.site(node).await?;
            let elsewhere =
                |site: &NodeHost| site.host != spec.target.host.to_string() || site.port != spec.target.port;
            if before.as_ref().is_some_and(elsewhere) && self.has_moved(node, &spec.target).await? {
                let host = spec.target.host.to_string();
                self.controller.relocate(node.clone(), host, spec.target.port).await?;
            }
            let may_have = self.may_have_link_key(before.as_ref(), link);
            let site = NodeHost { link_key: may_have, ..site(spec, link) };
            let (key, given) = (PublicKey::parse(&public_key)?, Given { tags: spec.tags.clone(), size });
            self.controller.admit(node.clone(), key, site, Some(given)).await
        })
    }

    fn revoked_keys<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(self.controller.revoked_keys(node.clone()))
    }

    fn attach_link<'a>(
        &'a self,
        node: &'a NodeId,
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        connection: Connection,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let settings = self.link_settings(node, &site(spec, link));
            if link.is_direct() {
                self.clear_link_key(node, &connection).await?;
                return self.nodes.detach_link(node).await;
            }
            let adopted = match &self.hosts.settings().link_key {
                // The standing connection is another one, which may do less.
                Some(key) => {
                    link_key::install(&connection, key, &settings).await?;
                    None
                }
                None => {
                    self.clear_link_key(node, &connection).await?;
                    Some(connection)
                }
            };
            let dialer = self.hosts.dialer(spec.target.clone(), spec.origin);
            self.nodes.attach_link(settings, dialer, adopted);
            Ok(())
        })
    }

    fn await_active<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if let Ok(active) = tokio::time::timeout(limit, self.wait_until_active(node)).await {
                return active;
            }
            let view = self.controller.view(node.clone()).await?;
            let why = view.problem.map(|problem| problem.message).unwrap_or_default();
            Err(Error::new(
                ErrorCode::Timeout,
                format!("node {node} is {:?} and not Active after {} s: {why}", view.status, limit.as_secs()),
            )
            .remedy("see the node's log: docker compose logs node"))
        })
    }

    fn prove<'a>(&'a self, node: &'a NodeId, image: &'a str) -> BoxFuture<'a, Result<String>> {
        Box::pin(self.run_proof(node, image))
    }

    fn remove_link_key<'a>(
        &'a self,
        node: &'a NodeId,
        connection: &'a Connection,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let site = self.site(node).await?;
            // Without a record, a join that broke off may have installed it.
            let recorded = site
                .as_ref()
                .map_or(self.hosts.settings().link_key.is_some(), |site| site.link_key != Some(false));
            if !recorded {
                return Ok(());
            }
            link_key::uninstall(connection, self.controller.cluster_id().as_str(), node).await
        })
    }

    fn withdraw<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.nodes.detach(node);
            self.controller.withdraw(node.clone()).await
        })
    }

    fn deployed<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<deploy::Deployed>> {
        let allow_loopback = self.hosts.settings().allow_loopback;
        Box::pin(removal::deployed(&self.controller, node, allow_loopback))
    }

    fn drain<'a>(&'a self, node: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<String>> {
        Box::pin(removal::drain(&self.controller, &self.nodes, node, limit))
    }

    fn resume<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.controller.resume(node.clone()).await?;
            self.nodes.nudge(node);
            Ok(())
        })
    }

    fn forget<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        Box::pin(removal::forget(&self.controller, node))
    }

    fn controller_public_key(&self) -> [u8; 32] {
        *self.controller.public_key().as_bytes()
    }
}
