//! The guard's own work: it puts the rules into its network namespace, says so, and waits for its end.

use std::{io::Write as _, path::Path};

use aegis_types::error::{Error, ErrorCode, Result};
use ipnet::IpNet;
use rtnetlink::{
    Handle,
    packet_route::{
        IpProtocol,
        rule::{RuleAction, RuleAttribute, RulePortRange},
    },
};
use tokio::signal::unix::{SignalKind, signal};

use super::{DNS_PORT, Rule};

/// Printed when the rules are in force.
pub const READY: &str = "the network is guarded";

/// Installs the rules, prints [`READY`] and holds the namespace until SIGTERM.
pub async fn run(rules: &[Rule]) -> Result<()> {
    let failed = |error: std::io::Error| Error::internal("the guard cannot wait for signals").source(error);
    let mut end = signal(SignalKind::terminate()).map_err(failed)?;
    install(rules).await?;
    writeln!(std::io::stdout(), "{READY}").map_err(|error| Error::internal("no output").source(error))?;
    end.recv().await;
    Ok(())
}

async fn install(rules: &[Rule]) -> Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| Error::new(ErrorCode::Engine, "there is no netlink socket").source(error))?;
    let served = tokio::spawn(connection);
    let with_v6 = has_ipv6();
    for rule in rules.iter().filter(|rule| with_v6 || !rule.is_v6()) {
        add(&handle, *rule).await.map_err(|error| {
            Error::new(ErrorCode::Engine, format!("the kernel takes no rule for {rule:?}"))
                .remedy("use a kernel from 4.17 on with policy routing (CONFIG_IP_MULTIPLE_TABLES)")
                .source(error)
        })?;
    }
    served.abort();
    Ok(())
}

/// A namespace without IPv6 sends no packet of it, and takes no rule for it.
fn has_ipv6() -> bool {
    let disabled = Path::new("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    std::fs::read_to_string(disabled).is_ok_and(|text| text.trim() == "0")
}

async fn add(handle: &Handle, rule: Rule) -> std::result::Result<(), rtnetlink::Error> {
    let request = handle.rule().add().priority(rule.priority());
    let action = match rule {
        Rule::Names { .. } | Rule::Service(_) | Rule::Open(_) => RuleAction::ToTable,
        Rule::Closed(_) => RuleAction::Prohibit,
    };
    let net = match rule {
        Rule::Names { .. } => None,
        Rule::Service(address) => Some(IpNet::from(address.ip())),
        Rule::Open(net) | Rule::Closed(net) => Some(net),
    };
    let mut extra = Vec::new();
    let port = match rule {
        Rule::Names { tcp, .. } => Some((tcp, DNS_PORT)),
        Rule::Service(address) => Some((true, address.port())),
        Rule::Open(_) | Rule::Closed(_) => None,
    };
    if let Some((tcp, port)) = port {
        extra.push(RuleAttribute::IpProtocol(if tcp { IpProtocol::Tcp } else { IpProtocol::Udp }));
        extra.push(RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }));
    }
    match (net, rule.is_v6()) {
        (Some(IpNet::V4(net)), _) => {
            let mut request = request.action(action).v4().destination_prefix(net.addr(), net.prefix_len());
            request.message_mut().attributes.extend(extra);
            request.execute().await
        }
        (Some(IpNet::V6(net)), _) => {
            let mut request = request.action(action).v6().destination_prefix(net.addr(), net.prefix_len());
            request.message_mut().attributes.extend(extra);
            request.execute().await
        }
        (None, false) => {
            let mut request = request.action(action).v4();
            request.message_mut().attributes.extend(extra);
            request.execute().await
        }
        (None, true) => {
            let mut request = request.action(action).v6();
            request.message_mut().attributes.extend(extra);
            request.execute().await
        }
    }
}
