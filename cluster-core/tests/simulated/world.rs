//! Simulated network with a controller and its nodes, and the actions of a test.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, mpsc::TryRecvError},
    time::Duration,
};

use cluster_core::{
    controller::{events::EventId, handle::TokenOrder},
    identity::KeyFile,
    rpc::{
        controller_client::{AdvertisedAddress, JoiningNode},
        known_controller::KnownController,
    },
    types::{
        ids::NodeId,
        node::{OnDeadline, PeerStatus, PeerView, Role},
        node_event::NodeEventKind,
    },
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use turmoil::Sim;

use crate::{
    home::{self, HOME, Home, Order, Running},
    node::{self, Diary, Machine, NODE_PORT},
    sqlite::Sqlite,
};

/// Limit for an answer of the controller's own process, and for all nodes to join, in simulated time.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);

/// Network between the hosts.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Latency of each message: at least the first value, seldom more than the second.
    pub latency_ms: (u64, u64),
    /// Step of the simulated time. Each request to SQLite takes one step.
    pub tick_ms: u64,
}

pub const NEAR: Network = Network { latency_ms: (1, 20), tick_ms: 40 };
/// Network for minutes in which little happens.
pub const COARSE: Network = Network { latency_ms: (1, 20), tick_ms: 100 };

pub struct World {
    pub sim: Sim<'static>,
    pub seed: u64,
    sqlite: Sqlite,
    machines: BTreeMap<&'static str, Arc<Machine>>,
    orders: mpsc::UnboundedSender<Order>,
    directory: TempDir,
}

impl World {
    /// Makes a controller and these nodes, all of which have joined.
    pub fn of(nodes: &[&'static str], network: Network) -> Self {
        let seed = seed();
        eprintln!("AEGIS_SIMULATION_SEED={seed}");
        let mut builder = turmoil::Builder::new();
        builder.rng_seed(seed).enable_random_order().tick_duration(Duration::from_millis(network.tick_ms));
        builder.min_message_latency(Duration::from_millis(network.latency_ms.0));
        builder.max_message_latency(Duration::from_millis(network.latency_ms.1));
        let mut sim = builder.build();
        let directory = directory();
        let (orders, ordered) = mpsc::unbounded_channel();
        let home = Arc::new(Home { data: directory.path().join(HOME), orders: ordered.into() });
        std::fs::create_dir(&home.data).unwrap();
        sim.host(HOME, move || home::run(home.clone()));
        let mut world =
            Self { sim, seed, sqlite: Sqlite::default(), machines: BTreeMap::new(), orders, directory };
        for name in nodes {
            world.add(name);
        }
        world.until("everybody has joined", ANSWER_LIMIT, |world| {
            world.machines.values().all(|machine| machine.diary().joined == 1)
        });
        world
    }

    fn add(&mut self, name: &'static str) {
        let node_id = NodeId::parse(name).unwrap();
        let bound = node_id.clone();
        let issued = self.ask(async move |home: Running| {
            let lifetime = Duration::from_secs(900);
            let order = TokenOrder { node_id: Some(bound), role: Role::Worker, lifetime, tags: None };
            home.controller.issue_enrolment_token(order, None).await.unwrap().0
        });
        let applicant = JoiningNode {
            node_id,
            role: Role::Worker,
            keys: Arc::new(key(self.directory.path(), name)),
            address: AdvertisedAddress::Fixed(format!("http://{name}:{NODE_PORT}")),
            known: Arc::new(known(self.directory.path(), name)),
            signs_bare_challenge: false,
        };
        let machine = Arc::new(Machine::new(applicant, issued.text.to_string()));
        self.machines.insert(name, machine.clone());
        self.sim.host(name, move || node::run(machine.clone()));
    }

    /// Runs one tick. Requests to SQLite in this tick are answered in the next, however long they really take.
    fn step(&mut self) {
        self.sim.step().unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        self.sqlite.settle();
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    /// Runs until the condition holds, and returns the time that it took.
    pub fn until(&mut self, what: &str, limit: Duration, so: impl Fn(&Self) -> bool) -> Duration {
        let start = self.sim.elapsed();
        while !so(self) {
            let took = self.sim.elapsed() - start;
            assert!(took < limit, "seed {}: not within {limit:?}: {what}; {:?}", self.seed, self.diaries());
            self.step();
        }
        self.sim.elapsed() - start
    }

    /// Like [`Self::until`], for a condition on the controller's state, checked once a second.
    pub fn until_home(
        &mut self,
        what: &str,
        limit: Duration,
        so: impl Fn(&BTreeMap<String, PeerView>) -> bool,
    ) -> Duration {
        let start = self.sim.elapsed();
        loop {
            let views = self.views();
            let took = self.sim.elapsed() - start;
            if so(&views) {
                return took;
            }
            assert!(took < limit, "seed {}: not within {limit:?}: {what}; {views:?}", self.seed);
            self.run_for(Duration::from_secs(1));
        }
    }

    /// Checks a condition for a duration, once a second.
    pub fn throughout(
        &mut self,
        what: &str,
        time: Duration,
        so: impl Fn(&BTreeMap<String, PeerView>) -> bool,
    ) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            let views = self.views();
            assert!(so(&views), "seed {}: {what}; {views:?}", self.seed);
            self.run_for(Duration::from_secs(1));
        }
    }

    /// Runs an action on the controller's host.
    pub fn ask<T, F, D>(&mut self, order: D) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
        D: FnOnce(Running) -> F + Send + 'static,
    {
        let (answer, answered) = std::sync::mpsc::channel();
        let order: Order = Box::new(move |running| {
            Box::pin(async move {
                let value = order(running).await;
                let _ = answer.send(value);
            })
        });
        self.orders.send(order).map_err(drop).unwrap();
        let end = self.sim.elapsed() + ANSWER_LIMIT;
        loop {
            match answered.try_recv() {
                Ok(value) => return value,
                Err(TryRecvError::Empty) if self.sim.elapsed() < end => self.step(),
                Err(error) => panic!("seed {}: the controller does not answer: {error}", self.seed),
            }
        }
    }

    pub fn views(&mut self) -> BTreeMap<String, PeerView> {
        let views = self.ask(async |home: Running| home.controller.views().await.unwrap());
        views.into_iter().map(|view| (view.node_id.to_string(), view)).collect()
    }

    /// Returns the events of a node in this life of the controller.
    pub fn events(&mut self, name: &str) -> Vec<NodeEventKind> {
        let start = EventId { epoch: 0, sequence: 0 };
        let all = self.ask(async move |home: Running| home.controller.events().after(start, 1_000).events);
        all.into_iter().filter(|event| event.node_id.as_str() == name).map(|event| event.kind).collect()
    }

    pub fn calls(&mut self, call: &'static str) -> BTreeMap<String, u64> {
        self.ask(async move |home: Running| home.calls(call))
    }

    pub fn drain(&mut self, name: &str) {
        let node_id = NodeId::parse(name).unwrap();
        self.ask(async move |home: Running| {
            let deadline = Duration::from_secs(3_600);
            home.controller.drain(node_id, deadline, OnDeadline::Cancel).await.map(drop)
        })
        .unwrap();
    }

    pub fn resume(&mut self, name: &str) {
        let node_id = NodeId::parse(name).unwrap();
        self.ask(async move |home: Running| home.controller.resume(node_id).await.map(drop)).unwrap();
    }

    /// Returns whether the node has acknowledged the last drain or resume.
    pub fn acknowledged(&mut self, name: &str) -> bool {
        let node_id = NodeId::parse(name).unwrap();
        self.ask(async move |home: Running| home.controller.drain_view(node_id).await).unwrap().acknowledged
    }

    pub fn diary(&self, name: &str) -> Diary {
        self.machines[name].diary().clone()
    }

    pub fn diaries(&self) -> BTreeMap<&'static str, Diary> {
        self.machines.iter().map(|(name, machine)| (*name, machine.diary().clone())).collect()
    }
}

pub fn all_are(views: &BTreeMap<String, PeerView>, status: PeerStatus) -> bool {
    views.values().all(|view| view.status == status)
}

fn seed() -> u64 {
    match std::env::var("AEGIS_SIMULATION_SEED") {
        Ok(seed) => seed.parse().expect("AEGIS_SIMULATION_SEED is a number"),
        Err(_) => uuid::Uuid::new_v4().as_u64_pair().0,
    }
}

/// Makes a directory, in memory if possible: the controller waits for the disk at each write, in simulated time.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("aegis-simulated").tempdir_in(memory);
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

fn known(directory: &Path, name: &str) -> KnownController {
    let data = directory.join(name);
    std::fs::create_dir(&data).unwrap();
    KnownController::open(&data, None).unwrap()
}

fn key(directory: &Path, name: &str) -> KeyFile {
    KeyFile::open(&directory.join(format!("{name}.pem"))).unwrap()
}
