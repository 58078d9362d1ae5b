//! `drain_node`: takes a node out of service.

use std::time::Duration;

use cluster_core::{
    core::{Core, DrainOrder},
    types::{
        error::Result,
        ids::{ExecutionId, NodeId},
        node::{DrainState, DrainView, OnDeadline},
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    arguments::{check_range, wait},
    disruption::running,
    progress::{Followed, whole},
};
use crate::{
    confirm::{Impact, Plan},
    text::time::DurationText,
    tools::tool::{Call, Hints, Tool},
};

pub const DEADLINE_SECONDS_DEFAULT: u64 = 300;
pub const DEADLINE_SECONDS_MAX: u64 = 86_400;
/// Number of executions that are named; the rest is counted.
const BLOCKERS_SHOWN_MAX: usize = 50;

pub struct DrainNode;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// From list_peers.
    node_id: NodeId,
    /// Seconds that running work may continue, 0-86400 (default 300). Repeating it sets a new deadline and needs
    /// a new confirmation.
    #[serde(default)]
    deadline_seconds: Option<u64>,
    /// Work still running at the deadline: leave (default) lets it finish; cancel stops it.
    #[serde(default)]
    on_deadline: Option<OnDeadline>,
    /// Seconds to wait for the node to become idle, 0-45 (default 0).
    #[serde(default)]
    wait_seconds: Option<u64>,
}

/// Value of a plan that needed no confirmation, since it changes nothing.
const LOOK: &str = "look";

impl Arguments {
    /// Checks the arguments without looking at the node. Returns the wait.
    fn check(&self) -> Result<Duration> {
        order(self.deadline_seconds, OnDeadline::default())?;
        wait(self.wait_seconds, 0)
    }

    fn order(&self, known: &DrainView) -> Result<Option<DrainOrder>> {
        change_of(known, self.deadline_seconds, self.on_deadline)
    }
}

/// Returns the order of a drain request; `None` if the node drains already and the drain is not to change. Omitted
/// arguments keep the drain as it is.
pub fn change_of(
    known: &DrainView,
    deadline_seconds: Option<u64>,
    on_deadline: Option<OnDeadline>,
) -> Result<Option<DrainOrder>> {
    let drains = matches!(known.state, DrainState::Draining | DrainState::Drained);
    if drains && deadline_seconds.is_none() && on_deadline.is_none() {
        return Ok(None);
    }
    let kept = if drains { known.on_deadline } else { OnDeadline::default() };
    let deadline = deadline_seconds.or(known.deadline_in_seconds.filter(|_| drains));
    order(deadline, on_deadline.unwrap_or(kept)).map(Some)
}

#[derive(Serialize, JsonSchema)]
pub struct Outcome {
    node_id: NodeId,
    /// draining while work runs, drained when all work has ended.
    state: DrainState,
    /// Executions that still run there.
    blockers: Vec<ExecutionId>,
    /// Total number of blockers.
    blockers_total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_in: Option<DurationText>,
    on_deadline: OnDeadline,
    /// Whether the node itself has acknowledged the order.
    acknowledged: bool,
    next_step: String,
}

/// Builds the order, for all interfaces.
pub fn order(deadline_seconds: Option<u64>, on_deadline: OnDeadline) -> Result<DrainOrder> {
    let seconds = check_range(
        "deadline_seconds",
        deadline_seconds.unwrap_or(DEADLINE_SECONDS_DEFAULT),
        0..=DEADLINE_SECONDS_MAX,
    )?;
    Ok(DrainOrder { deadline: Duration::from_secs(seconds), on_deadline })
}

impl Followed for DrainView {
    async fn change(&self, core: &Core, wait: Duration) -> Result<Self> {
        core.await_drain(&self.node_id, wait).await
    }

    fn describe(&self) -> String {
        match self.state {
            DrainState::Drained => format!("{} is drained", self.node_id),
            DrainState::Schedulable => format!("{} takes work again", self.node_id),
            DrainState::Removed => format!("{} is removed", self.node_id),
            DrainState::Draining => format!("{} drains: {} still run", self.node_id, self.blockers.len()),
        }
    }
}

fn next_step(view: &DrainView) -> String {
    let id = &view.node_id;
    match view.state {
        DrainState::Drained => format!(
            "Node {id} is empty: the machine may be rebooted or switched off now. It stays drained until resume_node."
        ),
        DrainState::Draining
            if view.deadline_in_seconds.is_none() && view.on_deadline == OnDeadline::Leave =>
        {
            format!(
                "The deadline has passed and the executions in blockers were left running. Call drain_node again \
                 with node_id {id} and wait_seconds to wait for them, or cancel_execution to stop one."
            )
        }
        DrainState::Draining => format!(
            "Node {id} gets no new work. Call drain_node again with only node_id {id} and wait_seconds to wait \
             until it is empty, cancel_execution to stop one of blockers, or resume_node to undo the drain."
        ),
        DrainState::Schedulable => format!("Node {id} was resumed meanwhile and receives work."),
        DrainState::Removed => {
            format!("Node {id} is no longer a member; deploy_edge_node makes it one again.")
        }
    }
}

impl From<DrainView> for Outcome {
    fn from(mut view: DrainView) -> Self {
        let next_step = next_step(&view);
        let blockers_total = view.blockers.len();
        view.blockers.truncate(BLOCKERS_SHOWN_MAX);
        Self {
            node_id: view.node_id,
            state: view.state,
            blockers: view.blockers,
            blockers_total,
            deadline_in: view
                .deadline_in_seconds
                .filter(|_| view.state == DrainState::Draining)
                .map(DurationText::of_seconds),
            on_deadline: view.on_deadline,
            acknowledged: view.acknowledged,
            next_step,
        }
    }
}

impl Tool for DrainNode {
    const NAME: &'static str = "drain_node";
    const TITLE: &'static str = "Drain a node";
    const DESCRIPTION: &'static str = "Stop giving a node new work, for maintenance. Running executions may \
finish; those still running at the deadline are left running, or stopped if on_deadline is cancel. Returns \
needs_confirmation first. To check on a drain, call again with only node_id and wait_seconds until state is \
drained. Undo with resume_node.";
    const HINTS: Hints = Hints { read_only: false, destructive: true, idempotent: true, open_world: false };
    const MAY_DISRUPT: bool = true;
    type Arguments = Arguments;
    type Outcome = Outcome;

    fn command(arguments: &Arguments) -> String {
        let on_deadline = match arguments.on_deadline.unwrap_or_default() {
            OnDeadline::Leave => "leave",
            OnDeadline::Cancel => "cancel",
        };
        let seconds = arguments.deadline_seconds.unwrap_or(DEADLINE_SECONDS_DEFAULT);
        format!("aegis node drain {} --deadline {seconds}s --on-deadline {on_deadline}", arguments.node_id)
    }

    async fn plan(arguments: Arguments, call: &mut Call) -> Result<Plan> {
        arguments.check()?;
        let command = Self::command(&arguments);
        let view = call.core.drain_status(&arguments.node_id).await?;
        // Asking for the state of a drain disrupts nothing; another deadline may.
        let order = arguments.order(&view)?.filter(|_| view.state != DrainState::Drained);
        let Some(order) = order else {
            return Ok(Plan { carries: Some(LOOK.to_owned()), ..Plan::nothing() });
        };
        let node_id = view.node_id;
        let mut facts = vec![format!("{node_id} gets no new work until resume_node {node_id}")];
        let then = match order.on_deadline {
            OnDeadline::Cancel => "cancelled",
            OnDeadline::Leave => "left running",
        };
        if let Some(running) = running(&view.blockers) {
            facts.push(running);
            facts.push(format!("executions still running after {} s are {then}", order.deadline.as_secs()));
        }
        Ok(Plan {
            weight: Impact::Disruptive,
            summary: format!("drain {node_id}"),
            facts,
            carries: None,
            command,
        })
    }

    async fn call(arguments: Arguments, call: &mut Call) -> Result<Outcome> {
        let wait = arguments.check()?;
        let core = call.core.clone();
        let known = core.drain_status(&arguments.node_id).await?;
        // The node may have been resumed since the plan.
        let only_looks = call.confirmed.as_deref() == Some(LOOK);
        let started = match arguments.order(&known)?.filter(|_| !only_looks) {
            Some(order) => {
                let (core, node_id) = (core.clone(), arguments.node_id);
                whole(async move { core.drain(&node_id, order).await }).await?
            }
            None => known,
        };
        let view =
            call.progress.follow(&core, started, wait, |view| view.state != DrainState::Draining).await?;
        Ok(view.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_left_out_keep_the_drain_as_it_is() {
        let asked = |deadline_seconds, on_deadline| Arguments {
            node_id: NodeId::parse("n").unwrap(),
            deadline_seconds,
            on_deadline,
            wait_seconds: None,
        };
        let known = |state| DrainView {
            node_id: NodeId::parse("n").unwrap(),
            state,
            blockers: Vec::new(),
            deadline_in_seconds: Some(60),
            on_deadline: OnDeadline::Leave,
            acknowledged: true,
        };
        let draining = known(DrainState::Draining);
        assert!(asked(None, None).order(&draining).unwrap().is_none());
        let sooner = asked(Some(5), None).order(&draining).unwrap().unwrap();
        assert_eq!((sooner.deadline, sooner.on_deadline), (Duration::from_secs(5), OnDeadline::Leave));
        let harsher = asked(None, Some(OnDeadline::Cancel)).order(&draining).unwrap().unwrap();
        assert_eq!((harsher.deadline, harsher.on_deadline), (Duration::from_secs(60), OnDeadline::Cancel));
        let first = asked(None, None).order(&known(DrainState::Schedulable)).unwrap().unwrap();
        assert_eq!((first.deadline, first.on_deadline), (Duration::from_secs(300), OnDeadline::Leave));
    }

    #[test]
    fn next_step_says_when_the_machine_may_be_switched_off() {
        let view = |state, deadline_in_seconds| DrainView {
            node_id: NodeId::parse("n").unwrap(),
            state,
            blockers: Vec::new(),
            deadline_in_seconds,
            on_deadline: OnDeadline::Leave,
            acknowledged: true,
        };
        let drained = Outcome::from(view(DrainState::Drained, Some(200)));
        assert!(drained.next_step.contains("switched off") && drained.deadline_in.is_none());
        let overdue = Outcome::from(view(DrainState::Draining, None));
        assert!(overdue.next_step.contains("left running"), "{}", overdue.next_step);
    }

    #[test]
    fn the_deadline_has_a_range() {
        assert_eq!(order(None, OnDeadline::Cancel).unwrap().deadline, Duration::from_secs(300));
        assert!(order(Some(86_401), OnDeadline::Leave).is_err());
    }
}
