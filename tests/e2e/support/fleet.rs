//! One controller with two deployed nodes, shared by all tests that can share it, and clean machines for the others.

use std::ops::{Deref, DerefMut};

use tokio::sync::{Mutex, MutexGuard};

use super::{
    controller::{Controller, Setup},
    mcp::{Client, Era},
    testbed::{self, Host},
    work::{deployment_of, follow, id_of, statuses},
};

/// The machines have one user at a time.
static MACHINES: Mutex<Option<Fleet>> = Mutex::const_new(None);

pub const ONE: &str = "edge-one";
pub const TWO: &str = "edge-two";

pub struct Fleet {
    pub controller: Controller,
    pub hosts: [Host; 2],
}

/// A fleet lent to one test. A failed test discards the fleet.
pub struct Lent {
    machines: MutexGuard<'static, Option<Fleet>>,
    /// The fleet is not reused afterwards.
    alone: bool,
}

impl Deref for Lent {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        self.machines.as_ref().expect("there is one while it is lent")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Fleet {
        self.machines.as_mut().expect("there is one while it is lent")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.alone || std::thread::panicking() {
            *self.machines = None;
        }
    }
}

impl Lent {
    pub async fn client(&self) -> Client {
        Client::stdio(&self.controller, Era::Session, "fleet").await
    }

    pub fn host_of(&self, node_id: &str) -> &Host {
        match node_id {
            ONE => &self.hosts[0],
            TWO => &self.hosts[1],
            other => panic!("{other} is on no host"),
        }
    }
}

/// Returns the shared fleet: node `edge-one` with tags edge, one; `edge-two` with edge, two.
pub async fn fleet() -> Lent {
    let mut machines = MACHINES.lock().await;
    if machines.is_none() {
        *machines = Some(build(|_| ()).await);
    }
    let lent = Lent { machines, alone: false };
    let nodes = statuses(&mut lent.client().await).await;
    for node in [ONE, TWO] {
        let status = nodes.get(node).map(String::as_str);
        assert_eq!(status, Some("active"), "the test before left {node} behind like this");
    }
    lent
}

/// Like [`fleet`], with clean machines and a changed controller setup, for one test.
pub async fn fleet_of_its_own(change: impl FnOnce(&mut Setup)) -> Lent {
    let mut machines = MACHINES.lock().await;
    *machines = None;
    *machines = Some(build(change).await);
    Lent { machines, alone: true }
}

async fn build(change: impl FnOnce(&mut Setup)) -> Fleet {
    testbed::reset();
    let hosts = testbed::hosts();
    let mut setup = Setup::for_hosts(&hosts);
    change(&mut setup);
    let controller = Controller::start(&setup).await;
    let mut client = Client::stdio(&controller, Era::Session, "fleet").await;
    let mut started = Vec::new();
    for (host, node, tag) in [(&hosts[0], ONE, "one"), (&hosts[1], TWO, "two")] {
        controller.approve(host).await;
        let answer = client.call("deploy_edge_node", deployment_of(host, node, &["edge", tag])).await;
        started.push(id_of(&answer, "deployment_id"));
    }
    for id in started {
        let view = follow(&mut client, &id).await;
        assert_eq!(view["state"], "ready", "{view:#}");
    }
    Fleet { controller, hosts }
}

/// Clean machines for one test; the shared fleet ends.
pub struct Fresh {
    pub hosts: [Host; 2],
    pub _machines: MutexGuard<'static, Option<Fleet>>,
}

pub async fn fresh() -> Fresh {
    let mut machines = MACHINES.lock().await;
    *machines = None;
    testbed::reset();
    Fresh { hosts: testbed::hosts(), _machines: machines }
}
