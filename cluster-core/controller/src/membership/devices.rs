//! Which of a node's GPUs each execution has, as far as the controller knows.
//!
//! A node that reports its devices chooses among them itself, by the rule of [`choose`]. The controller follows the
//! same rule when it reserves, and takes the node's word for what runs there: each heartbeat names the devices of
//! running executions.

use aegis_types::{
    gpu::{GpuDevice, choose, memory_gb, share_mb},
    ids::{ExecutionId, GpuUuid, NodeId},
    node::GpuView,
    resources::Amounts,
};

use super::{Membership, Node};

/// Share of a node that an execution has reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reservation {
    pub amounts: Amounts,
    /// Its devices, on a node that reports devices.
    pub gpus: Vec<GpuUuid>,
}

/// Memory of a node's devices in MiB, largest first. Kept, since every placement looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Devices {
    pub all_mb: Vec<u32>,
    pub free_mb: Vec<u32>,
    free_gb: u32,
}

impl Devices {
    /// Returns what is free of a node, with GPUs as its devices say: a device is taken as a whole.
    pub fn of_free(&self, free: Amounts) -> Amounts {
        if self.all_mb.is_empty() {
            return free;
        }
        let gpus = u32::try_from(self.free_mb.len()).unwrap_or(u32::MAX);
        Amounts { gpus, vram_gb: self.free_gb, ..free }
    }
}

impl Membership {
    /// Notes the devices that an execution has, as its node tells. An execution that was thought to have one of them
    /// gets another. Returns whether something was new.
    pub fn note_gpus(&mut self, node_id: &NodeId, execution_id: &ExecutionId, gpus: &[GpuUuid]) -> bool {
        let Some(node) = self.nodes.get_mut(node_id) else { return false };
        let Some(reservation) = node.reserved.get(execution_id) else { return false };
        let wanted = usize::try_from(reservation.amounts.gpus).unwrap_or(usize::MAX);
        let known = |uuid: &&GpuUuid| node.record.capabilities.gpus.iter().any(|gpu| gpu.uuid == **uuid);
        let told: Vec<GpuUuid> = gpus.iter().filter(known).take(wanted).cloned().collect();
        if told.is_empty() || reservation.gpus == told {
            return false;
        }
        for (other, reservation) in &mut node.reserved {
            if other == execution_id {
                reservation.gpus = told.clone();
            } else if reservation.gpus.iter().any(|uuid| told.contains(uuid)) {
                reservation.gpus.clear();
            }
        }
        node.settle_gpus();
        self.reorder(node_id);
        true
    }
}

impl Node {
    /// Gives devices to reservations that lack some, and counts what is free. To be called after each change of the
    /// devices or the reservations.
    pub(super) fn settle_gpus(&mut self) {
        let devices = &self.record.capabilities.gpus;
        if devices.is_empty() {
            self.gpus = Devices::default();
            return;
        }
        for reservation in self.reserved.values_mut() {
            reservation.gpus.retain(|uuid| devices.iter().any(|device| device.uuid == *uuid));
        }
        let lacking: Vec<ExecutionId> = self
            .reserved
            .iter()
            .filter(|(_, reservation)| reservation.gpus.len() < reservation.amounts.gpus as usize)
            .map(|(execution_id, _)| execution_id.clone())
            .collect();
        for execution_id in lacking {
            self.give_gpus(&execution_id);
        }
        let descending = |devices: &mut dyn Iterator<Item = &GpuDevice>| {
            let mut memory: Vec<u32> = devices.map(|device| device.memory_mb).collect();
            memory.sort_unstable_by(|a, b| b.cmp(a));
            memory
        };
        let all_mb = descending(&mut devices_of(self));
        let free_mb = descending(&mut self.free_gpus());
        let free_gb = memory_gb(self.free_gpus());
        self.gpus = Devices { all_mb, free_mb, free_gb };
    }

    /// Fills up the devices of one reservation. What was placed before the node reported devices may have found no
    /// device that is large enough: it has some device all the same.
    fn give_gpus(&mut self, execution_id: &ExecutionId) {
        let Some(reservation) = self.reserved.get(execution_id) else { return };
        let Reservation { amounts, gpus } = reservation;
        let missing = amounts.gpus.saturating_sub(u32::try_from(gpus.len()).unwrap_or(u32::MAX));
        let fitting = |share_mb| {
            let chosen = choose(self.free_gpus(), missing, share_mb, |device| device.memory_mb);
            chosen.into_iter().map(|device| device.uuid.clone()).collect::<Vec<_>>()
        };
        let mut chosen = fitting(share_mb(*amounts));
        if chosen.len() < missing as usize {
            chosen = fitting(0);
        }
        if let Some(reservation) = self.reserved.get_mut(execution_id) {
            reservation.gpus.extend(chosen);
        }
    }

    fn free_gpus(&self) -> impl Iterator<Item = &GpuDevice> {
        devices_of(self).filter(|device| !self.has_gpu_in_use(&device.uuid))
    }

    fn has_gpu_in_use(&self, uuid: &GpuUuid) -> bool {
        self.reserved.values().any(|reservation| reservation.gpus.contains(uuid))
    }

    pub(super) fn gpu_views(&self) -> Vec<GpuView> {
        let view = |device: &GpuDevice| GpuView {
            uuid: device.uuid.clone(),
            name: device.name.clone(),
            memory_mb: device.memory_mb,
            in_use: self.has_gpu_in_use(&device.uuid),
        };
        devices_of(self).map(view).collect()
    }
}

fn devices_of(node: &Node) -> impl Iterator<Item = &GpuDevice> {
    node.record.capabilities.gpus.iter()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;
    use crate::membership::{Change, RevokedKeys};
    use aegis_types::node::NodeRecord;
    use aegis_types::{
        execution::manifest::PlacementRequest,
        node::{Capabilities, LinkKind, Observed, Role},
    };

    #[derive(Debug, Clone)]
    enum Step {
        Place {
            gpus: u32,
            vram_gb: u32,
        },
        Release(Index),
        /// Its node chose other devices than the controller thought.
        Tell(Index, Index),
        /// The node reports other devices: one was taken out, or its memory is another.
        Report(Vec<u32>),
        /// The controller begins with what is stored.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u32..4, 0u32..100).prop_map(|(gpus, vram_gb)| {
                Step::Place { gpus, vram_gb: if gpus == 0 { 0 } else { vram_gb } }
            }),
            3 => any::<Index>().prop_map(Step::Release),
            2 => any::<(Index, Index)>().prop_map(|(execution, first)| Step::Tell(execution, first)),
            1 => memory().prop_map(Step::Report),
            1 => Just(Step::Restart),
        ]
    }

    fn memory() -> impl Strategy<Value = Vec<u32>> {
        vec(prop::sample::select(vec![0, 8_192, 16_384, 24_576, 40_960]), 1..7)
    }

    fn node_id() -> NodeId {
        NodeId::parse("n").unwrap()
    }

    fn record(memory_mb: &[u32]) -> NodeRecord {
        let gpus: Vec<GpuDevice> = memory_mb
            .iter()
            .enumerate()
            .map(|(number, memory_mb)| GpuDevice {
                uuid: GpuUuid::parse(format!("GPU-{number}")).unwrap(),
                name: "NVIDIA A10".into(),
                memory_mb: *memory_mb,
            })
            .collect();
        let mut record = NodeRecord::expected(node_id(), Role::Worker, [1; 32], LinkKind::Direct);
        record.observed = Observed::Active;
        record.capabilities = Capabilities {
            total: Amounts {
                cpu_millicores: 64_000,
                memory_mb: 64_000,
                gpus: gpus.len() as u32,
                vram_gb: memory_gb(gpus.iter()),
            },
            gpus,
            engine: "docker".into(),
            ..Default::default()
        };
        record
    }

    fn demand(gpus: u32, vram_gb: u32) -> PlacementRequest {
        PlacementRequest {
            tags: Vec::new(),
            preferred_tags: Vec::new(),
            node_id: None,
            amounts: Amounts { gpus, vram_gb, ..Default::default() },
            wait_seconds: None,
            priority: 0,
        }
    }

    fn with_node(memory_mb: &[u32]) -> Membership {
        let mut membership = Membership::default();
        membership.apply(Change::Put(Box::new(record(memory_mb))), 0);
        membership.set_link(&node_id(), true);
        membership
    }

    fn has(membership: &Membership, execution_id: &ExecutionId) -> Vec<String> {
        let gpus = &membership.nodes[&node_id()].reserved[execution_id].gpus;
        gpus.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn two_jobs_of_24_gb_do_not_fit_one_gpu_of_40_gb() {
        let mut membership = with_node(&[40_960, 16_384]);
        let first = ExecutionId::mint();
        membership.place(&first, &demand(1, 24)).unwrap();
        assert_eq!(has(&membership, &first), ["GPU-0"]);
        let second = membership.place(&ExecutionId::mint(), &demand(1, 24)).unwrap_err();
        assert!(second.may_change(), "once the first has ended");
        // A small one has the other device, and nothing is left.
        membership.place(&ExecutionId::mint(), &demand(1, 0)).unwrap();
        assert!(membership.place(&ExecutionId::mint(), &demand(1, 0)).is_err());
        let view = membership.view(&node_id(), 0).unwrap();
        assert_eq!((view.free.gpus, view.free.vram_gb, view.gpu_devices.len()), (0, 0, 2));
        membership.release(&first);
        let view = membership.view(&node_id(), 0).unwrap();
        assert_eq!((view.free.gpus, view.free.vram_gb), (1, 40));
        assert_eq!(view.gpu_devices.iter().map(|gpu| gpu.in_use).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn node_tells_which_devices_an_execution_has() {
        let mut membership = with_node(&[16_384, 16_384, 40_960]);
        let (first, second) = (ExecutionId::mint(), ExecutionId::mint());
        membership.place(&first, &demand(1, 0)).unwrap();
        membership.place(&second, &demand(1, 0)).unwrap();
        assert_eq!(
            (has(&membership, &first), has(&membership, &second)),
            (vec!["GPU-0".into()], vec!["GPU-1".into()])
        );
        let told = |uuid: &str| [GpuUuid::parse(uuid).unwrap()];
        assert!(membership.note_gpus(&node_id(), &first, &told("GPU-1")));
        assert_eq!(
            (has(&membership, &first), has(&membership, &second)),
            (vec!["GPU-1".into()], vec!["GPU-0".into()])
        );
        assert!(!membership.note_gpus(&node_id(), &first, &told("GPU-1")), "nothing new");
        // No device of this node, and an execution that is not there.
        assert!(!membership.note_gpus(&node_id(), &first, &told("GPU-7")));
        assert!(!membership.note_gpus(&node_id(), &ExecutionId::mint(), &told("GPU-0")));
        assert_eq!(membership.nodes[&node_id()].gpus.free_mb, [40_960]);
    }

    /// Checks the invariants of a node and its controller after each step.
    fn check(membership: &Membership) -> std::result::Result<(), TestCaseError> {
        let node = &membership.nodes[&node_id()];
        let given: Vec<&GpuUuid> = node.reserved.values().flat_map(|reservation| &reservation.gpus).collect();
        for (place, uuid) in given.iter().enumerate() {
            prop_assert!(!given[..place].contains(uuid), "{uuid} is given twice");
            prop_assert!(devices_of(node).any(|device| device.uuid == **uuid));
        }
        let mut free: Vec<u32> = devices_of(node)
            .filter(|device| !given.contains(&&device.uuid))
            .map(|device| device.memory_mb)
            .collect();
        free.sort_unstable_by(|a, b| b.cmp(a));
        prop_assert_eq!(&node.gpus.free_mb, &free);
        prop_assert_eq!(node.free().gpus as usize, free.len());
        Ok(())
    }

    proptest! {
        /// However placements, ends, reports and restarts follow each other, no device is given to two executions, and
        /// each device that is given has its share of the memory.
        #[test]
        fn no_device_is_given_twice_or_is_too_small(mut devices in memory(), steps in vec(step(), 1..60)) {
            let mut membership = with_node(&devices);
            let mut running: BTreeMap<ExecutionId, Amounts> = BTreeMap::new();
            for step in steps {
                let one = |index: Index| {
                    (!running.is_empty()).then(|| running.keys().nth(index.index(running.len())).unwrap().clone())
                };
                match step {
                    Step::Place { gpus, vram_gb } => {
                        let demand = demand(gpus, vram_gb);
                        let share_mb = share_mb(demand.amounts);
                        let free = membership.nodes[&node_id()].gpus.free_mb.clone();
                        let fits = free.iter().filter(|memory_mb| **memory_mb >= share_mb).count() >= gpus as usize;
                        let execution_id = ExecutionId::mint();
                        let placed = membership.place(&execution_id, &demand);
                        prop_assert_eq!(placed.is_ok(), fits, "{:?}", placed);
                        if placed.is_ok() {
                            let node = &membership.nodes[&node_id()];
                            let given = &node.reserved[&execution_id].gpus;
                            prop_assert_eq!(given.len(), gpus as usize);
                            let is_large = |device: &GpuDevice| device.memory_mb >= share_mb;
                            prop_assert!(
                                devices_of(node).filter(|device| given.contains(&device.uuid)).all(is_large)
                            );
                            running.insert(execution_id, demand.amounts);
                        }
                    }
                    Step::Release(index) => {
                        if let Some(execution_id) = one(index) {
                            membership.release(&execution_id);
                            running.remove(&execution_id);
                        }
                    }
                    Step::Tell(index, first) => {
                        if let Some(execution_id) = one(index) {
                            let first = first.index(devices.len());
                            let uuid = |number: usize| GpuUuid::parse(format!("GPU-{number}")).unwrap();
                            let gpus: Vec<_> = (first..first + 3).map(uuid).collect();
                            membership.note_gpus(&node_id(), &execution_id, &gpus);
                        }
                    }
                    Step::Report(memory_mb) => {
                        devices = memory_mb;
                        membership.apply(Change::Put(Box::new(record(&devices))), 0);
                    }
                    Step::Restart => {
                        let assignments = running.iter().map(|(id, amounts)| (id.clone(), node_id(), *amounts));
                        membership = Membership::restore(
                            vec![record(&devices)], Vec::new(), assignments.collect(), RevokedKeys::default(), 0,
                        );
                        membership.set_link(&node_id(), true);
                    }
                }
                check(&membership)?;
            }
        }
    }
}
