//! Which of a node's GPUs an execution gets. Pure.
//!
//! Docker counts its own devices from 0 each time it is asked for a number of them, so that two executions
//! would share the first: the worker names the devices itself, by UUID where it knows them.

use aegis_engine::nvidia_smi::FoundGpu;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    gpu::{self, GpuId, share_mb},
    resources::Amounts,
};

use crate::capacity::NodeGpus;

/// The GPUs of an execution that its worker has not been told to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub gpus: Vec<GpuId>,
    pub has_ended: bool,
}

/// A GPU that may be given.
struct Free {
    id: GpuId,
    memory_mb: u32,
    /// An execution that has ended has it still: its controller hands it out again before it says so here.
    is_given_back: bool,
}

/// Chooses the smallest devices that are large enough, lowest first. Among equals, those that nothing has come before
/// those of executions that have ended.
pub(super) fn choose(need: Amounts, node: &NodeGpus, held: &[Held]) -> Result<Vec<GpuId>> {
    let mut free: Vec<Free> = match node {
        NodeGpus::Devices(devices) => devices.iter().filter_map(|gpu| free_device(gpu, held)).collect(),
        NodeGpus::Counted { count, vram_gb } => free_indices(*count, *vram_gb, held),
    };
    let count = free.len();
    // Stable: the order of the devices stays.
    free.sort_by_key(|free| free.is_given_back);
    let mut chosen = gpu::choose(free.into_iter(), need.gpus, share_mb(need), |free| free.memory_mb);
    if chosen.len() < need.gpus as usize {
        let (wanted, on_node, share_mb) = (need.gpus, node.count(), share_mb(need));
        let large_enough = match chosen.len() {
            fitting if fitting < count => format!(", {fitting} of them with {share_mb} MiB"),
            _ => String::new(),
        };
        let message =
            format!("needs {wanted} of this node's {on_node} GPUs, and {count} are free{large_enough}");
        return Err(Error::new(ErrorCode::ResourceExhausted, message)
            .remedy("wait until an execution that has one has ended, or set spec.node.resources.gpu_count"));
    }
    // As the driver counts them, which is the order in which a program sees them.
    let place = |id: &GpuId| match (id, node) {
        (GpuId::Uuid(uuid), NodeGpus::Devices(devices)) => {
            devices.iter().position(|gpu| gpu.device.uuid == *uuid).unwrap_or(usize::MAX)
        }
        (GpuId::Index(index), _) => *index as usize,
        (GpuId::Uuid(_), NodeGpus::Counted { .. }) => usize::MAX,
    };
    chosen.sort_by_key(|free| place(&free.id));
    Ok(chosen.into_iter().map(|free| free.id).collect())
}

/// Returns a device unless a running execution has it. One may have its GPU by number, from before the node knew its
/// devices.
fn free_device(found: &FoundGpu, held: &[Held]) -> Option<Free> {
    let FoundGpu { index, device } = found;
    let id = GpuId::Uuid(device.uuid.clone());
    let has = |held: &Held| held.gpus.contains(&id) || held.gpus.contains(&GpuId::Index(*index));
    let is_given_back = given_back(held, has)?;
    Some(Free { id, memory_mb: device.memory_mb, is_given_back })
}

/// Returns the free GPUs of a node that knows only their number. No GPU counts as free while an execution holds one by
/// UUID, since its index is unknown.
fn free_indices(count: u32, vram_gb: u32, held: &[Held]) -> Vec<Free> {
    let is_by_uuid = |gpu: &GpuId| matches!(gpu, GpuId::Uuid(_));
    if held.iter().any(|held| !held.has_ended && held.gpus.iter().any(is_by_uuid)) {
        return Vec::new();
    }
    let memory_mb = vram_gb.checked_div(count).unwrap_or(0).saturating_mul(1024);
    let free = |index| {
        let id = GpuId::Index(index);
        let is_given_back = given_back(held, |held| held.gpus.contains(&id))?;
        Some(Free { id, memory_mb, is_given_back })
    };
    (0..count).filter_map(free).collect()
}

/// `None` for a GPU that a running execution has, else whether one that has ended has it.
fn given_back(held: &[Held], has: impl Fn(&Held) -> bool) -> Option<bool> {
    let holders = || held.iter().filter(|held| has(held));
    holders().all(|held| held.has_ended).then(|| holders().next().is_some())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use aegis_types::{gpu::GpuDevice, ids::GpuUuid};

    fn uuid(number: u32) -> GpuUuid {
        GpuUuid::parse(format!("GPU-{number}")).unwrap()
    }

    fn devices(memory_mb: &[u32]) -> NodeGpus {
        let gpu = |(index, memory_mb): (u32, &u32)| FoundGpu {
            index,
            device: GpuDevice { uuid: uuid(index), name: "NVIDIA A10".into(), memory_mb: *memory_mb },
        };
        NodeGpus::Devices((0..).zip(memory_mb).map(gpu).collect())
    }

    fn counted(count: u32) -> NodeGpus {
        NodeGpus::Counted { count, vram_gb: 0 }
    }

    fn need(gpus: u32, vram_gb: u32) -> Amounts {
        Amounts { gpus, vram_gb, ..Amounts::default() }
    }

    fn indices(gpus: &[u32]) -> Vec<GpuId> {
        gpus.iter().copied().map(GpuId::Index).collect()
    }

    fn uuids(gpus: &[u32]) -> Vec<GpuId> {
        gpus.iter().copied().map(|number| GpuId::Uuid(uuid(number))).collect()
    }

    fn running(gpus: Vec<GpuId>) -> Held {
        Held { gpus, has_ended: false }
    }

    fn ended(gpus: Vec<GpuId>) -> Held {
        Held { gpus, has_ended: true }
    }

    #[test]
    fn lowest_free_gpu_comes_before_those_given_back() {
        let chosen = |gpus, on_node, held: &[Held]| choose(need(gpus, 0), &counted(on_node), held);
        assert_eq!(chosen(2, 4, &[]).unwrap(), indices(&[0, 1]));
        let two = [running(indices(&[0])), running(indices(&[2]))];
        assert_eq!(chosen(2, 4, &two).unwrap(), indices(&[1, 3]));
        assert_eq!(chosen(1, 2, &[ended(indices(&[0]))]).unwrap(), indices(&[1]));
        assert_eq!(chosen(2, 2, &[ended(indices(&[0]))]).unwrap(), indices(&[0, 1]));
        assert_eq!(chosen(0, 0, &[]).unwrap(), []);
        // Its node was given fewer since: what it has no more is free for no other.
        assert!(chosen(1, 1, &[running(indices(&[0, 3]))]).is_err());
    }

    #[test]
    fn smallest_device_with_enough_memory_is_chosen() {
        let node = devices(&[40_960, 16_384, 24_576, 24_576]);
        let chosen = |gpus, vram_gb, held: &[Held]| choose(need(gpus, vram_gb), &node, held);
        assert_eq!(chosen(1, 0, &[]).unwrap(), uuids(&[1]));
        assert_eq!(chosen(1, 24, &[]).unwrap(), uuids(&[2]));
        assert_eq!(chosen(1, 24, &[ended(uuids(&[2]))]).unwrap(), uuids(&[3]));
        assert_eq!(chosen(3, 72, &[]).unwrap(), uuids(&[0, 2, 3]), "as the driver counts them");
        let error = chosen(1, 24, &[running(uuids(&[0, 2, 3]))]).unwrap_err();
        assert_eq!(
            error.message(),
            "needs 1 of this node's 4 GPUs, and 1 are free, 0 of them with 24576 MiB"
        );
    }

    #[test]
    fn gpu_held_by_number_is_not_given_by_uuid() {
        let node = devices(&[8_000, 8_000]);
        assert_eq!(choose(need(1, 0), &node, &[running(indices(&[0]))]).unwrap(), uuids(&[1]));
        // And the other way round nothing is known.
        assert!(choose(need(1, 0), &counted(2), &[running(uuids(&[0]))]).is_err());
        assert_eq!(choose(need(1, 0), &counted(2), &[ended(uuids(&[0]))]).unwrap(), indices(&[0]));
    }

    #[test]
    fn too_few_gpus_are_refused_with_the_count() {
        let error = choose(need(2, 0), &counted(2), &[running(indices(&[1]))]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert_eq!(error.message(), "needs 2 of this node's 2 GPUs, and 1 are free");
    }

    #[test]
    fn journal_keeps_numbers_and_uuids_apart() {
        let gpus: Vec<GpuId> = [indices(&[3]), uuids(&[1])].concat();
        let json = serde_json::to_string(&gpus).unwrap();
        assert_eq!(json, r#"[3,"GPU-1"]"#);
        assert_eq!(serde_json::from_str::<Vec<GpuId>>(&json).unwrap(), gpus);
    }

    fn node() -> impl Strategy<Value = NodeGpus> {
        prop_oneof![
            (0u32..6).prop_map(|count| NodeGpus::Counted { count, vram_gb: count * 16 }),
            vec(0u32..50_000, 0..6).prop_map(|memory_mb| devices(&memory_mb)),
        ]
    }

    fn memory_mb(node: &NodeGpus, id: &GpuId) -> u32 {
        match (node, id) {
            (NodeGpus::Devices(devices), GpuId::Uuid(uuid)) => {
                devices.iter().find(|gpu| gpu.device.uuid == *uuid).unwrap().device.memory_mb
            }
            (NodeGpus::Counted { count, .. }, GpuId::Index(index)) if index < count => 16 * 1024,
            odd => panic!("{odd:?} is not of the node"),
        }
    }

    proptest! {
        /// Begun, ended and forgotten in any order, no two that run ever have the same one, and each given device has
        /// its share of the memory.
        #[test]
        fn running_executions_share_no_gpu(
            node in node(),
            steps in vec((0u32..4, 0u32..100, any::<bool>(), any::<prop::sample::Index>()), 1..60),
        ) {
            let mut all: Vec<Held> = Vec::new();
            for (wanted, vram_gb, forget, index) in steps {
                if wanted == 0 {
                    if let Some(one) = (!all.is_empty()).then(|| index.index(all.len())) {
                        if forget { all.remove(one); } else { all[one].has_ended = true; }
                    }
                    continue;
                }
                let need = need(wanted, vram_gb);
                let running: Vec<GpuId> =
                    all.iter().filter(|held| !held.has_ended).flat_map(|held| held.gpus.clone()).collect();
                match choose(need, &node, &all) {
                    Ok(gpus) => {
                        prop_assert_eq!(gpus.len() as u32, wanted);
                        prop_assert!(gpus.iter().enumerate().all(|(place, gpu)| !gpus[..place].contains(gpu)));
                        prop_assert!(!running.iter().any(|gpu| gpus.contains(gpu)));
                        prop_assert!(gpus.iter().all(|gpu| memory_mb(&node, gpu) >= share_mb(need)));
                        all.push(Held { gpus, has_ended: false });
                    }
                    Err(_) => {
                        let all: Vec<GpuId> = match &node {
                            NodeGpus::Devices(devices) => uuids(&(0..devices.len() as u32).collect::<Vec<_>>()),
                            NodeGpus::Counted { count, .. } => indices(&(0..*count).collect::<Vec<_>>()),
                        };
                        let could = all.iter().filter(|gpu| {
                            !running.contains(gpu) && memory_mb(&node, gpu) >= share_mb(need)
                        });
                        prop_assert!(could.count() < wanted as usize, "refused with room");
                    }
                }
            }
        }
    }
}
