//! Drives nodes and a controller through joins, silence, drains, removals, lost answers and crashes of both, in random
//! order. The invariants hold after every step.
//!
//! The controller's disk is a map, to which the changes of a decision are written together. A crash comes before or after
//! the write, and the controller restarts from the disk. A node consists of its key, whether it is cut off, and the
//! command that it obeyed last. A failing sequence is shrunk and printed, so that it can be replayed.

use std::collections::BTreeMap;

use aegis_identity::{NodeKey, PublicKey};
use aegis_types::{execution::manifest::PlacementRequest, node::Role};
use proptest::prelude::*;

use super::*;

const NODES: usize = 5;
const STALENESS: Staleness = Staleness { threshold: Duration::from_millis(90_000), is_set: false };
const CAPACITY: Amounts = Amounts { cpu_millicores: 2_000, memory_mb: 1_024, gpus: 0, vram_gb: 0 };

#[derive(Debug, Clone)]
enum Step {
    /// With a new key of its own, by a token.
    Enrol(usize),
    Register(usize),
    /// The answer may be lost on its way back.
    Beat {
        node: usize,
        answer_lost: bool,
    },
    Goodbye(usize),
    /// Nothing gets through, either way, until it is healed.
    Cut(usize),
    Heal(usize),
    Drain(usize),
    Resume(usize),
    Remove {
        node: usize,
        force: bool,
    },
    Place,
    Finish,
    /// Time goes by, and the controller looks around.
    Wait {
        ms: i64,
    },
    /// Crashes the controller in its next decision, before or after the changes are stored. No caller is answered.
    Crash {
        stored: bool,
    },
    /// The worker's process: what it obeyed is kept, or is not.
    RestartNode {
        node: usize,
        forgets: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    prop_oneof![
        2 => node.clone().prop_map(Step::Enrol),
        3 => node.clone().prop_map(Step::Register),
        8 => (node.clone(), any::<bool>()).prop_map(|(node, answer_lost)| Step::Beat { node, answer_lost }),
        1 => node.clone().prop_map(Step::Goodbye),
        1 => node.clone().prop_map(Step::Cut),
        2 => node.clone().prop_map(Step::Heal),
        2 => node.clone().prop_map(Step::Drain),
        2 => node.clone().prop_map(Step::Resume),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, force)| Step::Remove { node, force }),
        4 => Just(Step::Place),
        3 => Just(Step::Finish),
        4 => (1_000..200_000_i64).prop_map(|ms| Step::Wait { ms }),
        2 => any::<bool>().prop_map(|stored| Step::Crash { stored }),
        1 => (node, any::<bool>()).prop_map(|(node, forgets)| Step::RestartNode { node, forgets }),
    ]
}

/// Content of the controller's disk.
#[derive(Default, Clone)]
struct Disk {
    records: BTreeMap<NodeId, NodeRecord>,
    commands: Vec<(NodeId, CommandId, Command)>,
}

impl Disk {
    fn write(&mut self, change: &Change) {
        match change.clone() {
            Change::Put(record) | Change::Enrol { record, .. } => {
                drop(self.records.insert(record.node_id.clone(), *record))
            }
            Change::Observed { node_id, observed, last_heartbeat_ms } => {
                let record = self.records.get_mut(&node_id).unwrap();
                record.observed = observed;
                record.last_heartbeat_ms = last_heartbeat_ms.or(record.last_heartbeat_ms);
            }
            Change::Desired { node_id, desired, deadline_ms, on_deadline } => {
                let record = self.records.get_mut(&node_id).unwrap();
                (record.desired, record.drain_deadline_ms, record.on_deadline) =
                    (desired, deadline_ms, on_deadline);
            }
            Change::Remove { node_id } => {
                let record = self.records.get_mut(&node_id).unwrap();
                record.desired = Desired::Removed;
                record.observed = Observed::Offline;
                (record.public_key, record.site, record.drain_deadline_ms) = (None, None, None);
                self.commands.retain(|(owner, ..)| *owner != node_id);
            }
            Change::Queue { node_id, command_id, command } => {
                self.commands.push((node_id, command_id, command));
            }
            Change::Acknowledge { node_id, command_ids } => {
                self.commands.retain(|(owner, id, _)| *owner != node_id || !command_ids.contains(id));
            }
        }
    }
}

struct Machine {
    id: NodeId,
    key: Option<PublicKey>,
    cut: bool,
    draining: bool,
    to_acknowledge: Vec<CommandId>,
}

struct World {
    now_ms: i64,
    membership: Membership,
    disk: Disk,
    machines: Vec<Machine>,
    /// Running executions and their nodes, from which reservations are rebuilt after a crash.
    running: BTreeMap<ExecutionId, NodeId>,
    /// Whether what is decided next is stored before the controller crashes.
    crash: Option<bool>,
    /// Desired state that was last requested and confirmed. Absent after a crash in between.
    wished: BTreeMap<NodeId, Desired>,
}

impl World {
    fn new() -> Self {
        let machine = |number| Machine {
            id: NodeId::parse(format!("n{number}")).unwrap(),
            key: None,
            cut: false,
            draining: false,
            to_acknowledge: Vec::new(),
        };
        Self {
            now_ms: 1_000_000,
            membership: Membership::default(),
            disk: Disk::default(),
            machines: (0..NODES).map(machine).collect(),
            running: BTreeMap::new(),
            crash: None,
            wished: BTreeMap::new(),
        }
    }

    /// Stores changes together and then applies them, as the owner does. Returns `false` after a crash.
    fn commit(&mut self, changes: Vec<Change>) -> bool {
        let crash = self.crash.take();
        if crash != Some(false) {
            changes.iter().for_each(|change| self.disk.write(change));
        }
        if crash.is_some() {
            self.restart();
            return false;
        }
        changes.into_iter().for_each(|change| self.membership.apply(change, self.now_ms));
        true
    }

    fn restart(&mut self) {
        let records = self.disk.records.values().cloned().collect();
        let reserved = |(id, node): (&ExecutionId, &NodeId)| (id.clone(), node.clone(), demand().amounts);
        let assignments = self.running.iter().map(reserved).collect();
        let commands = self.disk.commands.clone();
        self.membership =
            Membership::restore(records, commands, assignments, RevokedKeys::default(), self.now_ms);
        self.resume_links();
    }

    fn resume_links(&mut self) {
        for machine in &self.machines {
            self.membership.set_link(&machine.id, !machine.cut);
        }
    }

    /// Returns whether the controller accepts calls with the machine's key.
    fn speaks(&self, number: usize) -> bool {
        let machine = &self.machines[number];
        let pinned = self.membership.record(&machine.id).and_then(|record| record.public_key);
        !machine.cut && pinned.is_some() && pinned == machine.key.map(|key| *key.as_bytes())
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Enrol(number) => {
                if self.machines[number].cut {
                    return;
                }
                let id = self.machines[number].id.clone();
                let key = NodeKey::generate().unwrap().public();
                self.membership.check_key(&id, &key, Enrolment::Bound).unwrap();
                let record = self.membership.enrol(&id, Role::Worker, &key, true);
                if self.commit(vec![Change::Put(Box::new(record))]) {
                    self.machines[number].key = Some(key);
                }
                // It admits a removed node anew, as schedulable.
                if self.wished.get(&id) == Some(&Desired::Removed) {
                    self.wished.remove(&id);
                }
                self.resume_links();
            }
            Step::Register(number) if self.speaks(number) => {
                let capabilities =
                    Capabilities { total: CAPACITY, engine: "docker".into(), ..Default::default() };
                let registration = Registration { capabilities, address: String::new(), interval: None };
                let id = self.machines[number].id.clone();
                let changes = self.membership.register(&id, registration, self.now_ms).unwrap();
                self.commit(changes);
            }
            Step::Beat { node, answer_lost } if self.speaks(node) => self.beat(node, answer_lost),
            Step::Goodbye(number) if self.speaks(number) => {
                let id = self.machines[number].id.clone();
                let changes = self.membership.goodbye(&id, self.now_ms).unwrap();
                self.commit(changes);
            }
            Step::Register(_) | Step::Beat { .. } | Step::Goodbye(_) => {}
            Step::Cut(number) | Step::Heal(number) => {
                self.machines[number].cut = matches!(step, Step::Cut(_));
                self.resume_links();
            }
            Step::Drain(number) => {
                let id = self.machines[number].id.clone();
                let decided = self.membership.drain(&id, self.now_ms + 60_000, OnDeadline::Cancel);
                self.wish(id, Desired::Draining, decided);
            }
            Step::Resume(number) => {
                let id = self.machines[number].id.clone();
                let decided = self.membership.resume(&id);
                self.wish(id, Desired::Schedulable, decided);
            }
            Step::Remove { node, force } => {
                let id = self.machines[node].id.clone();
                let decided = self.membership.remove(&id, self.now_ms + 60_000, force);
                self.wish(id, Desired::Removed, decided);
                self.finish_removals();
            }
            Step::Place => {
                let execution_id = ExecutionId::mint();
                if let Ok(node_id) = self.membership.place(&execution_id, &demand()) {
                    let machine = self.machines.iter().find(|machine| machine.id == node_id).unwrap();
                    assert!(!machine.cut, "work for a node that is cut off");
                    let record = self.membership.record(&node_id).unwrap();
                    assert_eq!(record.desired, Desired::Schedulable);
                    assert_eq!(record.observed, Observed::Active);
                    self.running.insert(execution_id, node_id);
                }
            }
            Step::Finish => {
                if let Some((execution_id, _)) = self.running.pop_first() {
                    self.membership.release(&execution_id);
                }
                self.finish_removals();
            }
            Step::Wait { ms } => {
                self.now_ms += ms;
                for execution_id in self.membership.overdue(self.now_ms) {
                    self.running.remove(&execution_id);
                    self.membership.release(&execution_id);
                }
                self.finish_removals();
                let changes = self.membership.sweep(STALENESS, self.now_ms);
                self.commit(changes);
            }
            Step::Crash { stored } => self.crash = Some(stored),
            Step::RestartNode { node, forgets } => {
                // What it had still to acknowledge comes again.
                self.machines[node].to_acknowledge.clear();
                self.machines[node].draining &= !forgets;
            }
        }
    }

    fn beat(&mut self, number: usize, answer_lost: bool) {
        let id = self.machines[number].id.clone();
        let acknowledged = self.machines[number].to_acknowledge.clone();
        let draining = Some(self.machines[number].draining);
        let report = Report { acknowledged, draining, ..Default::default() };
        let (changes, commands) = self.membership.heartbeat(&id, report, self.now_ms).unwrap();
        if !self.commit(changes) || answer_lost {
            return;
        }
        assert_eq!(self.membership.record(&id).unwrap().observed, Observed::Active, "a heartbeat heals");
        let machine = &mut self.machines[number];
        machine.to_acknowledge.clear();
        for (command_id, command) in commands {
            match command {
                Command::Drain => machine.draining = true,
                Command::Resume => machine.draining = false,
                Command::Shutdown | Command::PushConfig { .. } => {}
            }
            machine.to_acknowledge.push(command_id);
        }
    }

    fn wish(&mut self, id: NodeId, desired: Desired, decided: Result<Vec<Change>>) {
        let Ok(changes) = decided else { return };
        match self.commit(changes) {
            true => drop(self.wished.insert(id, desired)),
            false => drop(self.wished.remove(&id)),
        }
    }

    fn finish_removals(&mut self) {
        let changes = self.membership.finished_removals();
        self.commit(changes);
    }

    fn check(&mut self) {
        for record in self.membership.records() {
            let stored = &self.disk.records[&record.node_id];
            assert_eq!((record.desired, record.observed), (stored.desired, stored.observed));
            assert_eq!(record.public_key, stored.public_key, "memory and disk know the same key");
            if record.desired == Desired::Removed {
                assert!(record.public_key.is_none(), "a removed node has no key");
                self.running.retain(|_, node_id| *node_id != record.node_id);
            }
        }
        for (node_id, wish) in &self.wished {
            let desired = self.disk.records[node_id].desired;
            let kept = match wish {
                Desired::Removed | Desired::Removing => {
                    matches!(desired, Desired::Removed | Desired::Removing)
                }
                wish => desired == *wish,
            };
            assert!(kept, "{node_id} was wished {wish:?} and is {desired:?}");
        }
        let mut used: BTreeMap<&NodeId, u32> = BTreeMap::new();
        for node_id in self.running.values() {
            *used.entry(node_id).or_default() += demand().amounts.cpu_millicores;
        }
        assert!(used.values().all(|cpu| *cpu <= CAPACITY.cpu_millicores), "more is placed than there is");
    }

    /// When everything is healed, every node does what is wished.
    fn settle(&mut self) {
        self.crash = None;
        for number in 0..NODES {
            self.machines[number].cut = false;
        }
        self.resume_links();
        for _ in 0..3 {
            for number in 0..NODES {
                if self.speaks(number) {
                    self.beat(number, false);
                }
            }
        }
        for number in 0..NODES {
            if !self.speaks(number) {
                continue;
            }
            let machine = &self.machines[number];
            let record = self.membership.record(&machine.id).unwrap();
            let wanted = matches!(record.desired, Desired::Draining | Desired::Removing);
            assert_eq!(machine.draining, wanted, "{} does not do what is wished", machine.id);
            let open = self.disk.commands.iter().filter(|(owner, ..)| *owner == machine.id).count();
            assert_eq!(open, 0, "{} has commands left that it obeyed", machine.id);
        }
    }
}

fn demand() -> PlacementRequest {
    PlacementRequest {
        tags: vec![],
        preferred_tags: Vec::new(),
        node_id: None,
        amounts: Amounts { cpu_millicores: 1_000, ..Default::default() },
        wait_seconds: None,
        priority: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_must_hold_holds(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
        world.settle();
    }
}
