//! Chooses the node of an execution, or says why no node fits. Pure.
//!
//! Candidates are ranked by the number of preferred tags, then by the strategy, then by turns. [`Order`] keeps the nodes
//! sorted, so that the first is found at once.

mod index;

use std::fmt;

use aegis_types::{
    error::{Error, ErrorCode},
    execution::manifest::PlacementRequest,
    gpu::share_mb,
    ids::{NodeId, Tag},
    placement::PlacementStrategy,
    resources::Amounts,
};

pub use index::{Order, Position};

/// Nodes named in a reason; the rest is counted.
const REASONS_SHOWN_MAX: usize = 10;

/// Returns the rank of a node under a strategy. A lower rank comes first.
pub fn rank(strategy: PlacementStrategy, node: &Candidate<'_>) -> u64 {
    match strategy {
        PlacementStrategy::RoundRobin => 0,
        PlacementStrategy::LeastLoaded => load(node),
        PlacementStrategy::BinPack => LOAD_FULL.saturating_sub(load(node)),
        PlacementStrategy::Spread => node.executions as u64,
    }
}

const LOAD_FULL: u64 = 1 << 20;

/// How much of the resource that is taken most is taken, of [`LOAD_FULL`].
fn load(node: &Candidate<'_>) -> u64 {
    let part = |total: u32, free: u32| match total {
        0 => 0,
        _ => u64::from(total.saturating_sub(free)) * LOAD_FULL / u64::from(total),
    };
    let (total, free) = (&node.total, &node.free);
    part(total.cpu_millicores, free.cpu_millicores)
        .max(part(total.memory_mb, free.memory_mb))
        .max(part(total.gpus, free.gpus))
        .max(part(total.vram_gb, free.vram_gb))
}

/// Executions on one node. Each has a stream of events on the controller's connection to its node, which carries 1,024
/// streams, and other calls need some, too.
const EXECUTIONS_MAX: usize = 900;

/// A node as placement sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub node_id: &'a NodeId,
    pub tags: &'a [Tag],
    /// Why it takes no work at all just now.
    pub blocked: Option<&'a str>,
    pub total: Amounts,
    pub free: Amounts,
    /// Memory of its GPUs, and of those that are free, in MiB, largest first. Empty for a node that states the sum.
    pub gpus_mb: &'a [u32],
    pub free_gpus_mb: &'a [u32],
    /// How many run there or are to.
    pub executions: usize,
}

/// Why one node does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub node_id: NodeId,
    pub why: String,
    pub until: Until,
}

/// Change that is needed before a node fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Waiting does not help: its tags, its size, the pin or its refusal rule it out.
    Never,
    /// It takes no work at all just now.
    Unblocked,
    /// It takes work, and what it has is in use.
    Free,
}

/// No node fits now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementError(pub Vec<Rejection>);

impl PlacementError {
    /// Whether some node could take it later, as it is now.
    pub fn may_change(&self) -> bool {
        self.0.iter().any(|unfit| unfit.until != Until::Never)
    }

    pub fn into_error(self) -> Error {
        Error::new(ErrorCode::NoNodeFits, format!("no node fits: {self}")).remedy(
            "see list_peers for tags and free resources; deploy, resume or free a node, or ask for less",
        )
    }
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there is no node that runs executions");
        }
        for (index, unfit) in self.0.iter().take(REASONS_SHOWN_MAX).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", unfit.node_id, unfit.why)?;
        }
        match self.0.len().checked_sub(REASONS_SHOWN_MAX) {
            Some(more) if more > 0 => write!(f, "; and {more} more"),
            _ => Ok(()),
        }
    }
}

/// Returns what each candidate lacks, for a demand that fits no node.
pub fn reasons<'a>(
    demand: &PlacementRequest,
    candidates: impl Iterator<Item = Candidate<'a>>,
) -> PlacementError {
    let unfit = |candidate: Candidate<'a>| {
        let (why, until) = why_not(demand, &candidate)?;
        Some(Rejection { node_id: candidate.node_id.clone(), why, until })
    };
    PlacementError(candidates.filter_map(unfit).collect())
}

/// Whether it fits now. It makes no words: it is asked of many nodes for a placement.
pub fn fits(demand: &PlacementRequest, node: &Candidate<'_>) -> bool {
    demand.node_id.as_ref().is_none_or(|pin| pin == node.node_id)
        && node.blocked.is_none()
        && node.executions < EXECUTIONS_MAX
        && short(demand.amounts, node.free).is_none()
        && short_on_each_gpu(demand.amounts, node).is_none()
        && short_of_devices(demand.amounts, node.free_gpus_mb, node).is_none()
        && demand.tags.iter().all(|tag| node.tags.contains(tag))
}

/// Returns why a node does not fit, and until when.
pub fn why_not(demand: &PlacementRequest, node: &Candidate<'_>) -> Option<(String, Until)> {
    if demand.node_id.as_ref().is_some_and(|pin| pin != node.node_id) {
        return Some(("another node is asked for".into(), Until::Never));
    }
    let missing = demand.tags.iter().filter(|tag| !node.tags.contains(tag)).collect::<Vec<_>>();
    if !missing.is_empty() {
        let names = missing.iter().map(|tag| tag.as_str()).collect::<Vec<_>>().join(", ");
        return Some((format!("needs tag {names}"), Until::Never));
    }
    if let Some((what, need, has)) = short(demand.amounts, node.total) {
        // A node that never reported has no size yet.
        let until = if node.total == Amounts::default() { Until::Unblocked } else { Until::Never };
        return Some((format!("needs {need} {what}, has {has} in all"), until));
    }
    if let Some((need, has)) = short_on_each_gpu(demand.amounts, node) {
        return Some((format!("needs {need} GiB vram on each GPU, has {has}"), Until::Never));
    }
    if let Some((need, has)) = short_of_devices(demand.amounts, node.gpus_mb, node) {
        return Some((format!("{need}, has {has} in all"), Until::Never));
    }
    if let Some(why) = node.blocked {
        return Some((why.into(), Until::Unblocked));
    }
    if node.executions >= EXECUTIONS_MAX {
        return Some((format!("has {} executions, and takes no more", node.executions), Until::Free));
    }
    if let Some((what, need, has)) = short(demand.amounts, node.free) {
        return Some((format!("needs {need} {what}, {has} free"), Until::Free));
    }
    short_of_devices(demand.amounts, node.free_gpus_mb, node)
        .map(|(need, has)| (format!("{need}, {has} free"), Until::Free))
}

/// Compares the memory of each device that a demand needs with that of these devices of a node.
fn short_of_devices(need: Amounts, devices_mb: &[u32], node: &Candidate<'_>) -> Option<(String, usize)> {
    if need.gpus == 0 || node.gpus_mb.is_empty() {
        return None;
    }
    let share_mb = share_mb(need);
    let large_enough = devices_mb.partition_point(|memory_mb| *memory_mb >= share_mb);
    let wanted = usize::try_from(need.gpus).unwrap_or(usize::MAX);
    let words = || format!("needs {wanted} GPUs with {share_mb} MiB vram each");
    (large_enough < wanted).then(|| (words(), large_enough))
}

/// An execution has whole GPUs, and its memory is that of these devices. The GPUs of a node that states the sum count
/// as alike.
fn short_on_each_gpu(need: Amounts, node: &Candidate<'_>) -> Option<(u32, u32)> {
    let total = node.total;
    if need.gpus == 0 || total.gpus == 0 || !node.gpus_mb.is_empty() {
        return None;
    }
    let (need, has) = (need.vram_gb.div_ceil(need.gpus), total.vram_gb / total.gpus);
    (need > has).then_some((need, has))
}

fn short(need: Amounts, has: Amounts) -> Option<(&'static str, u32, u32)> {
    [
        ("cpu millicores", need.cpu_millicores, has.cpu_millicores),
        ("MiB memory", need.memory_mb, has.memory_mb),
        ("gpus", need.gpus, has.gpus),
        ("GiB vram", need.vram_gb, has.vram_gb),
    ]
    .into_iter()
    .find(|(_, need, has)| need > has)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        id: NodeId,
        tags: Vec<Tag>,
        blocked: Option<&'static str>,
        total: Amounts,
        free: Amounts,
        gpus_mb: Vec<u32>,
        free_gpus_mb: Vec<u32>,
        executions: usize,
    }

    impl Node {
        fn candidate(&self) -> Candidate<'_> {
            Candidate {
                node_id: &self.id,
                tags: &self.tags,
                blocked: self.blocked,
                total: self.total,
                free: self.free,
                gpus_mb: &self.gpus_mb,
                free_gpus_mb: &self.free_gpus_mb,
                executions: self.executions,
            }
        }
    }

    fn node(id: &str, tags: &[&str]) -> Node {
        let amounts = Amounts { cpu_millicores: 2_000, memory_mb: 1_024, gpus: 0, vram_gb: 0 };
        Node {
            id: NodeId::parse(id).unwrap(),
            tags: tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect(),
            blocked: None,
            total: amounts,
            free: amounts,
            gpus_mb: Vec::new(),
            free_gpus_mb: Vec::new(),
            executions: 0,
        }
    }

    fn demand(tags: &[&str], cpu_millicores: u32) -> PlacementRequest {
        PlacementRequest {
            tags: tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect(),
            preferred_tags: Vec::new(),
            node_id: None,
            amounts: Amounts { cpu_millicores, ..Default::default() },
            wait_seconds: None,
            priority: 0,
        }
    }

    fn run(
        demand: &PlacementRequest,
        nodes: &[Node],
        last: Option<&NodeId>,
    ) -> Result<NodeId, PlacementError> {
        by(PlacementStrategy::RoundRobin, demand, nodes, last)
    }

    fn by(
        strategy: PlacementStrategy,
        demand: &PlacementRequest,
        nodes: &[Node],
        last: Option<&NodeId>,
    ) -> Result<NodeId, PlacementError> {
        let mut order = Order::default();
        for node in nodes {
            let position = Position { tags: node.tags.clone(), rank: rank(strategy, &node.candidate()) };
            order.insert(&node.id, &position);
        }
        let fitting = |id: &NodeId| {
            nodes.iter().find(|node| node.id == *id).is_some_and(|node| fits(demand, &node.candidate()))
        };
        let chosen = order.first(demand, last, fitting).cloned();
        let candidates = || nodes.iter().map(Node::candidate);
        let unfit = reasons(demand, candidates());
        // Both say the same: whoever has no reason fits.
        assert_eq!(chosen.is_none(), unfit.0.len() == nodes.len());
        chosen.ok_or(unfit)
    }

    #[test]
    fn vram_is_that_of_each_gpu() {
        let gpus = |gpus, vram_gb| Amounts { gpus, vram_gb, ..Default::default() };
        let fit = |node_has: Amounts, used: Amounts, need: Amounts| {
            let mut node = node("a", &[]);
            node.total = Amounts { cpu_millicores: 1, ..node_has };
            node.free = node.total.minus(used);
            run(&PlacementRequest { amounts: need, ..demand(&[], 0) }, &[node], None)
        };
        let none = Amounts::default();
        fit(gpus(1, 40), none, gpus(1, 24)).unwrap();
        assert!(fit(gpus(1, 40), gpus(1, 24), gpus(1, 24)).unwrap_err().may_change(), "one GPU, two jobs");
        let no_fit = fit(gpus(2, 40), none, gpus(1, 24)).unwrap_err();
        assert!(!no_fit.may_change());
        assert_eq!(no_fit.to_string(), "a: needs 24 GiB vram on each GPU, has 20");
        fit(gpus(2, 40), none, gpus(2, 40)).unwrap();
        fit(gpus(2, 40), gpus(1, 20), gpus(1, 20)).unwrap();
    }

    #[test]
    fn node_takes_a_bounded_number_of_executions() {
        let mut node = node("a", &[]);
        node.executions = EXECUTIONS_MAX - 1;
        run(&demand(&[], 1), std::slice::from_ref(&node), None).unwrap();
        node.executions = EXECUTIONS_MAX;
        let no_fit = run(&demand(&[], 1), &[node], None).unwrap_err();
        assert!(no_fit.may_change(), "{no_fit}");
    }

    #[test]
    fn devices_are_compared_one_by_one() {
        let mut node = node("a", &[]);
        node.total = Amounts { cpu_millicores: 1, gpus: 2, vram_gb: 56, ..Default::default() };
        node.gpus_mb = vec![40_960, 16_384];
        let mut fit = |gpus, vram_gb, free: &[u32]| {
            node.free_gpus_mb = free.to_vec();
            node.free =
                Amounts { gpus: free.len() as u32, vram_gb: free.iter().sum::<u32>() / 1024, ..node.total };
            let amounts = Amounts { gpus, vram_gb, ..Default::default() };
            let outcome =
                run(&PlacementRequest { amounts, ..demand(&[], 0) }, std::slice::from_ref(&node), None);
            outcome.map(drop).map_err(|no_fit| (no_fit.may_change(), no_fit.to_string()))
        };
        fit(1, 40, &[40_960, 16_384]).unwrap();
        fit(2, 32, &[40_960, 16_384]).unwrap();
        fit(1, 0, &[16_384]).unwrap();
        let never = (false, "a: needs 2 GPUs with 24576 MiB vram each, has 1 in all".to_owned());
        assert_eq!(fit(2, 48, &[40_960, 16_384]), Err(never));
        // The large one is taken.
        let later = (true, "a: needs 24 GiB vram, 16 free".to_owned());
        assert_eq!(fit(1, 24, &[16_384]), Err(later));
    }

    #[test]
    fn equals_take_turns() {
        let nodes = [node("a", &[]), node("b", &[]), node("c", &[])];
        let mut last = None;
        let mut order = String::new();
        for _ in 0..7 {
            let chosen = run(&demand(&[], 100), &nodes, last.as_ref()).unwrap();
            order.push_str(chosen.as_str());
            last = Some(chosen);
        }
        assert_eq!(order, "abcabca");
    }

    #[test]
    fn every_node_that_does_not_fit_says_why() {
        let mut nodes = [node("a", &["gpu"]), node("b", &[]), node("c", &["gpu"]), node("d", &["gpu"])];
        nodes[0].blocked = Some("draining");
        nodes[2].free.cpu_millicores = 100;
        nodes[3].total.cpu_millicores = 200;
        nodes[3].free = nodes[3].total;
        let no_fit = run(&demand(&["gpu"], 500), &nodes, None).unwrap_err();
        assert!(no_fit.may_change());
        assert_eq!(
            no_fit.to_string(),
            "a: draining; b: needs tag gpu; c: needs 500 cpu millicores, 100 free; \
             d: needs 500 cpu millicores, has 200 in all"
        );
        assert!(!run(&demand(&["gpu"], 500), &nodes[1..2], None).unwrap_err().may_change());
        assert!(!run(&demand(&[], 1), &[], None).unwrap_err().may_change());
    }

    #[test]
    fn preferred_tags_come_before_the_strategy_and_the_turn() {
        let mut nodes = [node("a", &[]), node("b", &["ssd"]), node("c", &["ssd", "eu"]), node("d", &["eu"])];
        nodes[2].executions = 9;
        nodes[2].free.cpu_millicores = 500;
        let preferring = |tags: &[&str]| PlacementRequest {
            preferred_tags: tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect(),
            ..demand(&[], 100)
        };
        for strategy in
            [PlacementStrategy::RoundRobin, PlacementStrategy::LeastLoaded, PlacementStrategy::Spread]
        {
            assert_eq!(by(strategy, &preferring(&["ssd", "eu"]), &nodes, None).unwrap().as_str(), "c");
            nodes[2].blocked = Some("draining");
            // Equal in tags: by turn, which is d's after b.
            let last = nodes[1].id.clone();
            let chosen = by(strategy, &preferring(&["ssd", "eu"]), &nodes, Some(&last)).unwrap();
            assert_eq!(chosen.as_str(), "d", "{strategy:?}");
            nodes[2].blocked = None;
            assert_eq!(by(strategy, &preferring(&["moon"]), &nodes, None).unwrap().as_str(), "a");
        }
    }

    #[test]
    fn each_strategy_chooses_its_own() {
        let mut nodes = [node("a", &[]), node("b", &[]), node("c", &[])];
        // a: 10 % of cpu, 60 % of memory; b: half of both in one execution; c: 20 % in three.
        nodes[0].free = Amounts { cpu_millicores: 1_800, memory_mb: 410, ..nodes[0].total };
        nodes[1].free = Amounts { cpu_millicores: 1_000, memory_mb: 512, ..nodes[1].total };
        nodes[2].free = Amounts { cpu_millicores: 1_600, memory_mb: 820, ..nodes[2].total };
        (nodes[0].executions, nodes[1].executions, nodes[2].executions) = (2, 1, 3);
        for (strategy, expected) in [
            (PlacementStrategy::RoundRobin, "a"),
            (PlacementStrategy::LeastLoaded, "c"),
            (PlacementStrategy::BinPack, "a"),
            (PlacementStrategy::Spread, "b"),
        ] {
            assert_eq!(
                by(strategy, &demand(&[], 100), &nodes, None).unwrap().as_str(),
                expected,
                "{strategy:?}"
            );
        }
        // The fullest that fits, not the fullest.
        assert_eq!(by(PlacementStrategy::BinPack, &demand(&[], 1_700), &nodes, None).unwrap().as_str(), "a");
        assert_eq!(
            by(PlacementStrategy::BinPack, &demand(&[], 1_500), &nodes[1..], None).unwrap().as_str(),
            "c"
        );
    }

    #[test]
    fn equals_take_turns_under_every_strategy() {
        let nodes = [node("a", &[]), node("b", &[]), node("c", &[])];
        for strategy in
            [PlacementStrategy::LeastLoaded, PlacementStrategy::BinPack, PlacementStrategy::Spread]
        {
            let last = nodes[0].id.clone();
            assert_eq!(by(strategy, &demand(&[], 1), &nodes, Some(&last)).unwrap().as_str(), "b");
        }
    }

    #[test]
    fn a_pin_is_kept() {
        let nodes = [node("a", &[]), node("b", &[])];
        let pinned = PlacementRequest { node_id: Some(nodes[1].id.clone()), ..demand(&[], 1) };
        assert_eq!(run(&pinned, &nodes, None).unwrap(), nodes[1].id);
        assert!(!run(&pinned, &nodes[..1], None).unwrap_err().may_change());
    }
}
