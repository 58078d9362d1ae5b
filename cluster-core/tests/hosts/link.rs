//! Standing connection under faults. A cut is noticed soon, and the link reconnects by itself. It takes over its end on
//! the host from a stale session.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use cluster_core::{
    deploy::link_settings,
    ssh::{LinkHandle, LinkSettings, LinkState, SshStream},
    types::{ids::NodeId, link::LinkPorts},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};

use crate::{
    sshd::inside,
    support::{Host, LIMIT, host, run},
};

pub const BASE: &str = "/tmp/aegis-test-link";
/// Time within which a silently cut connection is noticed.
const NOTICED: Duration = Duration::from_secs(20);
/// The longest pause between attempts, one failed attempt, and one successful attempt.
const HEALED: Duration = Duration::from_secs(60);
const PORTS: LinkPorts = LinkPorts { controller: 29_150, node: 29_150 };
pub const BOTH: [Option<LinkPorts>; 2] = [None, Some(PORTS)];

/// Settings in which the controller's end also stands for the node, so that outgoing channels come back here.
pub fn settings(ports: Option<LinkPorts>) -> LinkSettings {
    let settings = link_settings(&NodeId::parse("edge-test").unwrap(), BASE, "test", ports);
    LinkSettings { node_end: settings.controller_end.clone(), ..settings }
}

pub struct Link {
    pub handle: LinkHandle,
    pub streams: mpsc::Receiver<(NodeId, SshStream)>,
    pub host: Host,
}

pub async fn prepare(host: &Host) {
    run(&host.connect().await, r#"rm -rf "$1"; mkdir -p -m 700 "$1/run""#, &[BASE]).await;
}

impl Link {
    fn start(host: &Host, ports: Option<LinkPorts>) -> Self {
        let (sender, streams) = mpsc::channel(1);
        Self {
            handle: LinkHandle::start(settings(ports), host.dialer(), None, sender),
            streams,
            host: host.clone(),
        }
    }

    pub async fn up(&mut self) {
        let mut state = self.handle.state();
        let up = state.wait_for(|state| matches!(state, LinkState::Up { .. }));
        let up = timeout(HEALED, up).await.map(|up| up.is_ok());
        assert_eq!(up, Ok(true), "{:?}", *self.handle.state().borrow());
    }

    pub async fn down(&mut self) -> String {
        let mut state = self.handle.state();
        let down = state.wait_for(|state| matches!(state, LinkState::Down { .. }));
        let down = timeout(NOTICED, down).await.expect("noticed in time").unwrap().clone();
        let LinkState::Down { failure, .. } = down else { unreachable!() };
        failure.message
    }

    /// Sends a message there and back.
    pub async fn carries(&mut self) {
        let mut out = self.handle.connect_node().await.unwrap();
        let (node, mut back) = timeout(LIMIT, self.streams.recv()).await.unwrap().unwrap();
        out.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        timeout(LIMIT, back.read_exact(&mut five)).await.unwrap().unwrap();
        assert_eq!((&five, node.as_str()), (b"hello", "edge-test"));
    }

    pub async fn end(self) {
        self.handle.stop().await;
        run(&self.host.connect().await, r#"rm -rf "$1""#, &[BASE]).await;
    }
}

/// Drops SSH packets in both directions while it lives.
struct CutOff<'a>(&'a Host);

const DROP: [&str; 2] = ["INPUT -p tcp --dport 22 -j DROP", "OUTPUT -p tcp --sport 22 -j DROP"];

impl<'a> CutOff<'a> {
    fn new(host: &'a Host) -> Self {
        for rule in DROP {
            assert!(inside(&host.container, &format!("iptables -I {rule}"), &[]));
        }
        Self(host)
    }
}

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        for rule in DROP {
            inside(&self.0.container, &format!("iptables -D {rule}"), &[]);
        }
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_silent_network_is_noticed_and_healed() {
    for ports in BOTH {
        let host = host(1);
        prepare(&host).await;
        let mut link = Link::start(&host, ports);
        link.up().await;
        link.carries().await;
        let (cut, begun) = (CutOff::new(&host), Instant::now());
        let reason = link.down().await;
        println!("{ports:?}: noticed after {:?}: {reason}", begun.elapsed());
        assert!(link.handle.connect_node().await.is_err());
        // The host has noticed nothing: its session still holds the end.
        drop(cut);
        link.up().await;
        println!("{ports:?}: back after {:?}", begun.elapsed());
        link.carries().await;
        link.end().await;
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_killed_session_and_a_restarted_sshd_are_noticed_at_once() {
    for ports in BOTH {
        let host = host(1);
        prepare(&host).await;
        let mut link = Link::start(&host, ports);
        link.up().await;
        for what in [
            r#"read -r pid _ < "$1/run/link.session" && kill -9 "$pid""#,
            r#"kill "$(cat /run/sshd.pid)"; pkill -KILL -x sshd-session"#,
        ] {
            let begun = Instant::now();
            assert!(inside(&host.container, what, &[BASE]), "{what}");
            link.down().await;
            let noticed = begun.elapsed();
            link.up().await;
            println!("{ports:?}: noticed after {noticed:?}, back after {:?}", begun.elapsed());
            assert!(noticed < Duration::from_secs(5), "{noticed:?}");
            link.carries().await;
        }
        link.end().await;
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_rebooted_host_is_reached_again() {
    let host = host(1);
    for ports in BOTH {
        prepare(&host).await;
        let mut link = Link::start(&host, ports);
        link.up().await;
        let begun = Instant::now();
        let rebooted = Command::new("docker").args(["restart", "-t", "1", &host.container]).status().unwrap();
        assert!(rebooted.success());
        link.down().await;
        link.up().await;
        println!("{ports:?}: back after {:?}", begun.elapsed());
        link.carries().await;
        link.end().await;
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn restarted_controller_takes_over_its_stale_session() {
    for ports in BOTH {
        let host = host(1);
        prepare(&host).await;
        // As left by a controller that died with its machine: a session that sshd still serves.
        let mut stale = Link::start(&host, ports);
        stale.up().await;
        let mut link = Link::start(&host, ports);
        link.up().await;
        stale.down().await;
        stale.handle.stop().await;
        link.up().await;
        link.carries().await;
        assert!(stale.streams.try_recv().is_err());

        // A foreign session is left alone: our link reports why it is down.
        let (sender, _streams) = mpsc::channel(1);
        let other = LinkSettings { owner: "another".into(), ..settings(ports) };
        if ports.is_some() {
            let other = LinkHandle::start(other, host.dialer(), None, sender);
            let mut state = other.state();
            let down = state.wait_for(|state| matches!(state, LinkState::Down { .. }));
            let down = timeout(LIMIT, down).await.unwrap().unwrap().clone();
            assert!(format!("{down:?}").contains("it is taken"), "{down:?}");
            other.stop().await;
            link.carries().await;
        }
        link.end().await;
    }
}
