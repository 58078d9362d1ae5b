//! Admission, registration, heartbeats and deregistration of nodes.

use std::time::Duration;

use aegis_identity::PublicKey;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    heartbeat::{Command, OpenCommands},
    ids::{CommandId, NodeId, Tag},
    node::{Capabilities, Desired, LinkKind, NodeHost, NodeRecord, Observed, Role},
    resources::Amounts,
};

use super::{Change, Contradiction, Enrolment, Membership, Node, Registration, Report, removed, unknown};

/// Before a node is corrected a second time; the pause doubles with each correction.
const CORRECTION_PAUSE_MS: i64 = 30_000;
const CORRECTION_PAUSE_MS_MAX: i64 = 3_600_000;
/// One correction may be a lost memory, a second a restart at the wrong moment.
pub(super) const CONTRADICTIONS_SHOWN: u32 = 3;
/// A steady heartbeat is stored this often, so that a restarted controller knows how long a node has been
/// silent.
const STORED_EVERY_MS: i64 = 600_000;

/// Remedy where a machine that joins has a revoked key. A worker with a token makes a new one by itself.
const KEY_TO_REPLACE: &str = "on that machine, stop its node, delete node-keypair.pem in its data directory, and \
                              start it again with a new token";
/// Remedies where a machine has another node's key. They act on the copy, never on the node that is well.
const COPY_THAT_JOINS: &str = "on the machine that is the copy, stop its node, delete node-keypair.pem in its \
                               data directory, and start it again";
const DEPLOY_AGAIN: &str = "deploy it again: its node then makes a new key";
const COPY_THAT_IS_DEPLOYED: &str = "on the host that is the copy, run: docker volume rm \
                                     aitheros-edge_node_data; then deploy it again";

/// Claims that a deployment allows its node.
#[derive(Debug, Clone, Default)]
pub struct Given {
    pub tags: Vec<Tag>,
    /// Size of the host. `None` if the host was not measured; an earlier bound stays then.
    pub size: Option<Amounts>,
}

impl Membership {
    /// Whether a node of this name and key may be admitted. Another key for a known id is refused
    /// until an operator issues a token for that id.
    pub fn check_key(&self, node_id: &NodeId, public_key: &PublicKey, enrolment: Enrolment) -> Result<()> {
        self.check_unshared(node_id, public_key, COPY_THAT_JOINS)?;
        if enrolment != Enrolment::None {
            self.revoked.check(public_key, KEY_TO_REPLACE)?;
        }
        let Some(node) = self.nodes.get(node_id) else {
            return match enrolment {
                Enrolment::Anybody | Enrolment::Bound => Ok(()),
                Enrolment::None => Err(Error::new(
                    ErrorCode::EnrolmentInvalid,
                    format!("node {node_id} is not known and brings no enrolment token"),
                )
                .remedy(format!("create one with `aegis node token create --node-id {node_id}`"))),
            };
        };
        if node.record.desired == Desired::Removed {
            return match enrolment {
                Enrolment::Anybody | Enrolment::Bound => Ok(()),
                Enrolment::None => Err(removed(node_id)),
            };
        }
        let pinned = node.record.public_key.as_ref() == Some(public_key.as_bytes());
        // A token for whoever comes must not hand a member's name to somebody else.
        if pinned || enrolment == Enrolment::Bound {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::KeyMismatch,
            format!("node {node_id} is known by another key than {}", &public_key.thumbprint()[..16]),
        )
        .remedy(format!(
            "if its key was lost, run `aegis node token create --node-id {node_id}`; \
             if not, somebody else uses its name"
        )))
    }

    /// Refuses a key that is pinned to another node. Two machines have one key where one is a copy of the
    /// other, or was given its volume.
    fn check_unshared(&self, node_id: &NodeId, public_key: &PublicKey, remedy: &str) -> Result<()> {
        let key = Some(public_key.as_bytes());
        let own = self.nodes.get(node_id).and_then(|node| node.record.public_key.as_ref());
        if own == key {
            return Ok(());
        }
        let mut others = self.nodes.values().filter(|node| node.record.public_key.as_ref() == key);
        let Some(other) = others.next().map(|node| &node.record.node_id) else { return Ok(()) };
        Err(Error::new(
            ErrorCode::KeyMismatch,
            format!("node {node_id} has the key of node {other}: its machine is a copy, or has the volume of that node"),
        )
        .remedy(format!("{}; leave {other} as it is", remedy)))
    }

    /// Whether a deployment may give this id to that host.
    pub fn check_identity(&self, node_id: &NodeId, site: &NodeHost) -> Result<()> {
        let Some(node) = self.nodes.get(node_id) else { return Ok(()) };
        let elsewhere = match &node.record.site {
            _ if node.record.desired == Desired::Removed => return Ok(()),
            Some(known) if known.host == site.host && known.port == site.port => return Ok(()),
            Some(known) => format!("host {} port {}", known.host, known.port),
            None if node.record.link == LinkKind::Local => "this controller itself".to_owned(),
            None => "a node that joined by itself".to_owned(),
        };
        Err(Error::new(
            ErrorCode::Conflict,
            format!(
                "identity {node_id} belongs to {elsewhere}, not to host {} port {}",
                site.host, site.port
            ),
        )
        .remedy(format!(
            "if it is the same machine under another address, run: aegis host approve {}, and deploy again (its \
             host key must be the one that is pinned, and the node must not answer at its old address); \
             otherwise choose another identity, or remove the node: aegis node remove {node_id}",
            site.host
        )))
    }

    /// The record of a node whose host has another address now.
    pub fn relocate(&self, node_id: &NodeId, host: String, port: u16) -> Result<Vec<Change>> {
        let record = self.nodes.get(node_id).map(|node| node.record.clone());
        let mut record = record.ok_or_else(|| Error::not_found("node", node_id.as_str()))?;
        let Some(site) = &mut record.site else {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("node {node_id} was not deployed from here"),
            ));
        };
        (site.host, site.port) = (host, port);
        Ok(vec![Change::Put(Box::new(record))])
    }

    /// The record that admits a node whose key a deployment read over the verified connection.
    pub fn admit(&self, node_id: &NodeId, public_key: &PublicKey, site: NodeHost) -> Result<Vec<Change>> {
        self.check_identity(node_id, &site)?;
        self.check_unshared(node_id, public_key, COPY_THAT_IS_DEPLOYED)?;
        self.revoked.check(public_key, DEPLOY_AGAIN)?;
        let mut record = match self.nodes.get(node_id) {
            Some(node) => node.record.clone(),
            None => {
                NodeRecord::expected(node_id.clone(), Role::Worker, *public_key.as_bytes(), LinkKind::Ssh)
            }
        };
        // The operator's own deployment is what re-enrols a host whose key was lost.
        record.public_key = Some(*public_key.as_bytes());
        let moved = record.site.as_ref().is_some_and(|known| known.link != site.link);
        record.link = if site.link.is_direct() { LinkKind::Direct } else { LinkKind::Ssh };
        record.site = Some(site);
        if moved {
            // What it was seen to be was seen over the other link.
            record.observed = Observed::Expected;
        }
        reinstate(&mut record);
        Ok(vec![Change::Put(Box::new(record))])
    }

    /// Returns the thumbprints of a node's keys that were revoked when it was removed.
    pub fn revoked_keys(&self, node_id: &NodeId) -> Vec<String> {
        self.revoked.thumbprints(node_id)
    }

    /// Admits a node as [`Self::admit`] does, and allows what its deployment gives it. Tags of earlier deployments stay
    /// allowed, since a rollback restores an earlier configuration.
    pub fn admit_deployed(
        &self,
        node_id: &NodeId,
        public_key: &PublicKey,
        site: NodeHost,
        given: &Given,
    ) -> Result<Vec<Change>> {
        let Given { tags, size } = given;
        let mut changes = self.admit(node_id, public_key, site)?;
        let node = self.nodes.get(node_id);
        let claimed = node.map(|node| node.overclaimed.as_slice()).unwrap_or_default();
        let was_removed = node.is_some_and(|node| node.record.desired == Desired::Removed);
        for change in &mut changes {
            let Change::Put(record) = change else { continue };
            let known = &mut record.capabilities.tags;
            if was_removed {
                known.clear();
            }
            // Tags from before there was a bound are taken for those of earlier deployments.
            let mut bound = record.bound_tags.take().unwrap_or_else(|| known.clone());
            let new: Vec<_> = tags.iter().filter(|tag| !bound.contains(tag)).cloned().collect();
            bound.extend(new);
            // The node may have registered with new tags already, before they were allowed.
            let allowed = claimed.iter().filter(|tag| bound.contains(tag) && !known.contains(tag));
            let allowed: Vec<_> = allowed.cloned().collect();
            known.extend(allowed);
            record.bound_tags = Some(bound);
            record.bound_size = size.or(record.bound_size);
            if let Some(bound) = record.bound_size {
                let claim = node.and_then(|node| node.oversized).unwrap_or(record.capabilities.total);
                set_total(&mut record.capabilities, claim.at_most(bound));
            }
        }
        Ok(changes)
    }

    /// The record that a spent token admits.
    pub fn enrol(&self, node_id: &NodeId, role: Role, public_key: &PublicKey, sealed: bool) -> NodeRecord {
        let mut record = match self.nodes.get(node_id) {
            Some(node) => {
                let mut record = node.record.clone();
                record.public_key = Some(*public_key.as_bytes());
                record.role = role;
                record.bound_size = None;
                if record.desired == Desired::Removed {
                    record.link = LinkKind::Direct;
                }
                reinstate(&mut record);
                record
            }
            None => NodeRecord::expected(node_id.clone(), role, *public_key.as_bytes(), LinkKind::Direct),
        };
        record.sealed = sealed;
        record
    }

    /// Notes how a member has attested. A node that has sealed its calls once never stops: a caller that
    /// leaves the seal out is another, or was persuaded. Only an operator's new token undoes that.
    pub fn attested(&self, node_id: &NodeId, sealed: bool, version: &str) -> Result<Vec<Change>> {
        let record = &self.node(node_id)?.record;
        if record.sealed && !sealed {
            return Err(Error::new(
                ErrorCode::UnsealedContext,
                format!("node {node_id} has sealed its calls before"),
            )
            .remedy(format!(
                "to admit another implementation under this id, run `aegis node token create --node-id {node_id}`"
            )));
        }
        if record.sealed == sealed && record.version == version {
            return Ok(Vec::new());
        }
        let version = version.to_owned();
        Ok(vec![Change::Put(Box::new(NodeRecord { sealed, version, ..record.clone() }))])
    }

    /// The record with another key, which its old one signed for.
    ///
    /// Only the pinned key may do that: one that was changed already is good for calls under way, not for
    /// taking the node back.
    pub fn rotate_key(
        &self,
        node_id: &NodeId,
        old: &PublicKey,
        public_key: &PublicKey,
    ) -> Result<Vec<Change>> {
        let mut record = self.node(node_id)?.record.clone();
        if record.public_key.as_ref() != Some(old.as_bytes()) {
            return Err(Error::new(
                ErrorCode::KeyMismatch,
                format!("the key of {node_id} was changed already"),
            )
            .remedy("attest again with the key that is pinned now"));
        }
        self.check_unshared(node_id, public_key, COPY_THAT_JOINS)?;
        self.revoked.check(public_key, KEY_TO_REPLACE)?;
        record.public_key = Some(*public_key.as_bytes());
        Ok(vec![Change::Put(Box::new(record))])
    }

    pub fn register(&self, node_id: &NodeId, registration: Registration, now_ms: i64) -> Result<Vec<Change>> {
        let mut record = self.node(node_id)?.record.clone();
        record.capabilities = within_bounds(registration.capabilities, &record);
        record.address = registration.address;
        record.observed = Observed::Active;
        record.registered_at_ms = Some(now_ms);
        record.last_heartbeat_ms = Some(now_ms);
        Ok(vec![Change::Put(Box::new(record))])
    }

    /// The node speaks now, and says how often it will.
    pub fn heard(&mut self, node_id: &NodeId, interval: Option<Duration>, now_ms: i64) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            (node.heard_ms, node.spoke) = (now_ms, true);
            node.interval = interval.or(node.interval);
        }
    }

    /// Notes what the node claims beyond what its token or its deployment allows.
    pub fn note_claims(&mut self, node_id: &NodeId, capabilities: &Capabilities) {
        if let Some(node) = self.nodes.get_mut(node_id) {
            let claimed = capabilities.tags.iter();
            let allowed = node.record.bound_tags.as_ref();
            let beyond = |tag: &&Tag| allowed.is_some_and(|allowed| !allowed.contains(tag));
            node.overclaimed = claimed.filter(beyond).cloned().collect();
            let total = capabilities.total;
            node.oversized = node.record.bound_size.filter(|bound| total.exceeds(*bound)).map(|_| total);
        }
    }

    /// A good heartbeat, answered with the commands that are still open after it. A steady one changes
    /// nothing that is stored.
    pub fn heartbeat(
        &mut self,
        node_id: &NodeId,
        report: Report,
        now_ms: i64,
    ) -> Result<(Vec<Change>, OpenCommands)> {
        self.heard(node_id, report.interval, now_ms);
        if let Some(capabilities) = &report.capabilities {
            self.note_claims(node_id, capabilities);
        }
        let node = self.nodes.get_mut(node_id).ok_or_else(|| unknown(node_id))?;
        node.config = report.config.or(node.config.take());
        let mut changes = Vec::new();
        let known = report
            .acknowledged
            .into_iter()
            .filter(|id| node.commands.iter().any(|(open, _)| open == id))
            .collect::<Vec<_>>();
        let mut open: OpenCommands =
            node.commands.iter().filter(|(id, _)| !known.contains(id)).cloned().collect();
        if let Some(command) = node.correction(report.draining, &open, now_ms) {
            let command_id = CommandId::mint();
            open.push((command_id.clone(), command.clone()));
            changes.push(Change::Queue { node_id: node_id.clone(), command_id, command });
        }
        if !known.is_empty() {
            changes.push(Change::Acknowledge { node_id: node_id.clone(), command_ids: known });
        }
        if let Some(capabilities) = report.capabilities {
            let capabilities = within_bounds(capabilities, &node.record);
            // Free memory moves all the time and is not worth a write.
            node.record.capabilities.memory_mb_free = capabilities.memory_mb_free;
            if capabilities != node.record.capabilities {
                let mut record = node.record.clone();
                record.capabilities = capabilities;
                record.observed = Observed::Active;
                record.last_heartbeat_ms = Some(now_ms);
                changes.push(Change::Put(Box::new(record)));
                return Ok((changes, open));
            }
        }
        let stored = node.record.last_heartbeat_ms.unwrap_or(0);
        if node.record.observed != Observed::Active || now_ms.saturating_sub(stored) > STORED_EVERY_MS {
            changes.push(Change::Observed {
                node_id: node_id.clone(),
                observed: Observed::Active,
                last_heartbeat_ms: Some(now_ms),
            });
        }
        Ok((changes, open))
    }

    /// "Going away": the node stays a member and comes back by its key alone.
    pub fn goodbye(&self, node_id: &NodeId, now_ms: i64) -> Result<Vec<Change>> {
        self.node(node_id)?;
        Ok(vec![Change::Observed {
            node_id: node_id.clone(),
            observed: Observed::Offline,
            last_heartbeat_ms: Some(now_ms),
        }])
    }
}

impl Node {
    /// Returns the command for a node whose state differs from the desired one: it may have lost its memory, or kept that
    /// of an earlier membership. Returns no command while one is under way. A node that contradicts what it has
    /// acknowledged is commanded again after growing pauses.
    fn correction(
        &mut self,
        draining: Option<bool>,
        open: &[(CommandId, Command)],
        now_ms: i64,
    ) -> Option<Command> {
        let wanted = matches!(self.record.desired, Desired::Draining | Desired::Removing);
        let draining = draining?;
        if draining == wanted {
            self.contradiction = Contradiction::default();
            return None;
        }
        let under_way = open.iter().any(|(_, command)| matches!(command, Command::Drain | Command::Resume));
        let Contradiction { corrections, since_ms } = self.contradiction;
        let pause_ms = match corrections {
            0 => 0,
            sent => (CORRECTION_PAUSE_MS << (sent - 1).min(16)).min(CORRECTION_PAUSE_MS_MAX),
        };
        if under_way || now_ms.saturating_sub(since_ms) < pause_ms {
            return None;
        }
        self.contradiction = Contradiction { corrections: corrections.saturating_add(1), since_ms: now_ms };
        Some(if wanted { Command::Drain } else { Command::Resume })
    }
}

/// Cuts what the node says of itself to the tags and amounts that its token or its deployment allows.
fn within_bounds(mut capabilities: Capabilities, record: &NodeRecord) -> Capabilities {
    if let Some(allowed) = &record.bound_tags {
        capabilities.tags.retain(|tag| allowed.contains(tag));
    }
    if let Some(bound) = record.bound_size {
        let total = capabilities.total.at_most(bound);
        set_total(&mut capabilities, total);
    }
    capabilities
}

/// Sets the amounts of a node. Devices that are not of these amounts are dropped: its GPUs count as alike then.
fn set_total(capabilities: &mut Capabilities, total: Amounts) {
    let before = capabilities.total;
    if (before.gpus, before.vram_gb) != (total.gpus, total.vram_gb) {
        capabilities.gpus.clear();
    }
    capabilities.total = total;
}

/// Resets a removed node that is admitted again.
fn reinstate(record: &mut NodeRecord) {
    if record.desired == Desired::Removed {
        (record.bound_tags, record.bound_size) = (None, None);
        record.desired = Desired::Schedulable;
        record.observed = Observed::Expected;
        record.registered_at_ms = None;
    }
}
