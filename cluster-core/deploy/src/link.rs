//! Link between a deployed node and its controller. The choice depends on the specification and the facts. It is
//! written to the node's configuration and stored next to it, so that a redeployment finds the same ports.

use std::{collections::BTreeSet, time::Duration};

use aegis_ssh::{ForwardEndpoint, LinkSettings};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
    link::{LinkPorts, NodeLink},
};

use crate::{
    host::{HostSession, scripts},
    model::facts::HostFacts,
};

/// File of a release that names the link, unless it is the default.
pub const FILE: &str = "link.json";
/// Ports below Linux's range for outgoing connections, and not assigned by IANA.
const PORTS_FIRST: u16 = 29_050;
const PAIRS: u16 = 100;

/// Chooses the link inside SSH. Sockets are preferred, since no other user of the host can reach them.
pub fn choose_link(facts: &HostFacts) -> Result<NodeLink> {
    if facts.sockets_error.is_none() {
        return Ok(NodeLink::Sockets);
    }
    let known = match facts.link {
        Some(NodeLink::Ports(ports)) => Some(ports),
        Some(NodeLink::Sockets | NodeLink::Direct { .. }) | None => None,
    };
    // The controller's port may be taken by the current link, and the node's port only by the node.
    let ours = |ports: &LinkPorts| facts.look.any_runs() || !facts.listening.contains(&ports.node);
    match known.filter(ours).or_else(|| free_pair(&facts.listening)) {
        Some(ports) => Ok(NodeLink::Ports(ports)),
        None => Err(Error::new(
            ErrorCode::HostCheckFailed,
            format!("no two ports are free on the host from {PORTS_FIRST} on, which the link needs"),
        )
        .remedy("see who listens there: ss -ltnp")),
    }
}

/// Content of [`FILE`]; `None` for the default link, which needs no file.
pub fn link_note(link: &NodeLink) -> Result<Option<Vec<u8>>> {
    match link {
        NodeLink::Sockets => Ok(None),
        NodeLink::Ports(_) | NodeLink::Direct { .. } => serde_json::to_vec(link)
            .map(Some)
            .map_err(|error| Error::internal("a link cannot be written").source(error)),
    }
}

impl HostSession<'_> {
    /// Returns the link of the current release.
    pub(super) async fn current_link(&self) -> Result<NodeLink> {
        let output = self.connection.script(scripts::READ_LINK, &[self.base, FILE], READ_LIMIT).await?;
        match output.stdout.trim() {
            "" => Ok(NodeLink::default()),
            text => serde_json::from_str(text).map_err(|error| {
                Error::new(ErrorCode::DeploymentFailed, "the link of the previous release cannot be read")
                    .source(error)
            }),
        }
    }
}

const READ_LIMIT: Duration = Duration::from_secs(30);

fn free_pair(listening: &BTreeSet<u16>) -> Option<LinkPorts> {
    (0..PAIRS)
        .map(|pair| LinkPorts { controller: PORTS_FIRST + 2 * pair, node: PORTS_FIRST + 2 * pair + 1 })
        .find(|ports| !listening.contains(&ports.controller) && !listening.contains(&ports.node))
}

/// Returns the ends of a node's SSH link, seen from the host. `owner` names this controller.
pub fn link_settings(node: &NodeId, base_dir: &str, owner: &str, ports: Option<LinkPorts>) -> LinkSettings {
    let run = format!("{base_dir}/run");
    let (controller_end, node_end) = match ports {
        None => (
            ForwardEndpoint::Socket(format!("{run}/controller.sock")),
            ForwardEndpoint::Socket(format!("{run}/node.sock")),
        ),
        Some(ports) => (ForwardEndpoint::Port(ports.controller), ForwardEndpoint::Port(ports.node)),
    };
    LinkSettings {
        node: node.clone(),
        controller_end,
        node_end,
        session_note: format!("{run}/link.session"),
        owner: owner.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::health::StackSnapshot, *};

    const FIRST: LinkPorts = LinkPorts { controller: PORTS_FIRST, node: PORTS_FIRST + 1 };
    const SECOND: LinkPorts = LinkPorts { controller: PORTS_FIRST + 2, node: PORTS_FIRST + 3 };

    fn without_sockets(change: impl FnOnce(&mut HostFacts)) -> NodeLink {
        let mut facts = HostFacts { sockets_error: Some("no".into()), ..Default::default() };
        change(&mut facts);
        choose_link(&facts).unwrap()
    }

    #[test]
    fn sockets_where_they_go_and_else_two_free_ports() {
        assert_eq!(choose_link(&HostFacts::default()).unwrap(), NodeLink::Sockets);
        assert_eq!(without_sockets(|_| {}), NodeLink::Ports(FIRST));
        assert_eq!(without_sockets(|facts| facts.listening = [FIRST.node].into()), NodeLink::Ports(SECOND));
        let all = (PORTS_FIRST..PORTS_FIRST + 2 * PAIRS).collect();
        let facts = HostFacts { sockets_error: Some("no".into()), listening: all, ..Default::default() };
        assert_eq!(choose_link(&facts).unwrap_err().code(), ErrorCode::HostCheckFailed);
    }

    const RUNNING: &str = concat!(
        r#"{"id":"x","service":"node","status":"running","health":"healthy","exit_code":0,"#,
        r#""oom_killed":false,"restarts":0,"started_at":"","policy":"always","image":"i"}"#
    );

    #[test]
    fn the_ports_stay_while_they_are_ours() {
        let deployed = |facts: &mut HostFacts| {
            facts.link = Some(NodeLink::Ports(SECOND));
            facts.listening = [SECOND.controller, SECOND.node].into();
        };
        let running = |facts: &mut HostFacts| {
            deployed(facts);
            facts.look = StackSnapshot::parse(RUNNING);
        };
        assert_eq!(without_sockets(running), NodeLink::Ports(SECOND));
        // The stack is down, and another process has the node's port.
        assert_eq!(without_sockets(deployed), NodeLink::Ports(FIRST));
        let down = |facts: &mut HostFacts| {
            facts.link = Some(NodeLink::Ports(SECOND));
            facts.listening = [SECOND.controller].into();
        };
        assert_eq!(without_sockets(down), NodeLink::Ports(SECOND), "our link may still be up");
    }
}
