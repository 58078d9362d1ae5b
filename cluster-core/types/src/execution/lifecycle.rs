//! The life of an execution: its states, and every transition in [`Lifecycle::next`]. Pure.
//!
//! States move forward only, within one attempt. An attempt that is given up ends in [`State::Pending`]
//! again with one more lost attempt, so that the pair (lost attempts, state) only ever grows. The attempt
//! number fences: what an older attempt shows changes nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted and stored; no node has room yet.
    Pending,
    /// A node is chosen and stored; it may not know of it yet.
    Assigned,
    /// The node has taken it: image, container.
    Starting,
    /// The container runs.
    Running,
    /// The container exited with 0.
    Succeeded,
    /// Any other end; the failure says which.
    Failed,
    Cancelled,
    /// The node is gone and what became of it is not known.
    Lost,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Pending,
        State::Assigned,
        State::Starting,
        State::Running,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
        State::Lost,
    ];

    pub const fn is_final(self) -> bool {
        match self {
            State::Pending | State::Assigned | State::Starting | State::Running | State::Lost => false,
            State::Succeeded | State::Failed | State::Cancelled => true,
        }
    }

    /// Whether a node has it, and it has not ended.
    pub const fn is_on_a_node(self) -> bool {
        matches!(self, State::Assigned | State::Starting | State::Running)
    }

    /// A reader who waits for the end stops here. `Lost` may still be corrected by the node's return.
    pub const fn is_settled(self) -> bool {
        self.is_final() || matches!(self, State::Lost)
    }

    const fn rank(self) -> u8 {
        match self {
            State::Pending => 0,
            State::Assigned => 1,
            State::Starting => 2,
            State::Running => 3,
            State::Lost => 4,
            State::Succeeded | State::Failed | State::Cancelled => 5,
        }
    }

    const fn may_become(self, next: State) -> bool {
        match (self, next) {
            // Nothing ran, so there is no exit code and nothing to lose.
            (State::Pending, State::Succeeded | State::Lost) => false,
            (from, to) => !from.is_final() && to.rank() > from.rank(),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Assigned => "assigned",
            State::Starting => "starting",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Lost => "lost",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Facts of an execution that decide its next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifecycle {
    pub state: State,
    /// Number of the latest assignment; 0 before the first.
    pub attempt: u32,
    /// Attempts that may have run in all.
    pub max_attempts: u32,
    /// Attempts that were given up.
    pub lost_attempts: u32,
    /// Retries of a failed program that its caller still allows.
    pub retries_left: u32,
    /// A caller asked for its end, so that it is not started again.
    pub is_cancelled: bool,
}

/// Cause of an end that a node reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The engine or the machine of the node.
    Node,
    /// The program, with an exit code that its caller wants to be retried.
    RetriedExit,
    /// Anything else: the program, a timeout, a cancel.
    Other,
}

/// Something that the controller learns about an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A node was chosen. The attempt is new even if the previous node rejected the execution.
    Assigned,
    /// State that the node of an attempt reports.
    Shown { attempt: u32, state: State, cause: Cause },
    /// The node of an attempt will not run it or cannot get its image, and another node may. Nothing ran.
    Declined { attempt: u32 },
    /// Its node has not been heard of for `lost_after`.
    Silent,
    /// The outcome of the attempt is unknown: its node was removed or has no record of it.
    Gone,
    /// The controller ended it: nothing runs, or its node is away.
    Ended(State),
}

/// Transition that follows from an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Stay,
    Become(State),
    /// The attempt is given up, and another begins wherever there is room.
    GiveUp,
    /// Places the execution on another node. The attempt does not count.
    PassOn,
    /// Runs the program again after a pause. The attempt does not count.
    Retry,
}

impl Lifecycle {
    pub fn next(&self, input: Input) -> Step {
        let wanted = match input {
            _ if self.state.is_final() => return Step::Stay,
            Input::Assigned => {
                let begins = matches!(self.state, State::Pending | State::Assigned) && !self.is_cancelled;
                return if begins { Step::Become(State::Assigned) } else { Step::Stay };
            }
            Input::Shown { attempt, .. } | Input::Declined { attempt } if attempt != self.attempt => {
                return Step::Stay;
            }
            Input::Declined { .. } => {
                let never_ran = matches!(self.state, State::Assigned | State::Starting);
                return if never_ran && !self.is_cancelled { Step::PassOn } else { Step::Stay };
            }
            // Between two attempts there is nothing that anybody could show.
            Input::Shown { .. } | Input::Silent | Input::Gone if self.state == State::Pending => {
                return Step::Stay;
            }
            Input::Shown { state: State::Failed, cause: Cause::Node, .. } if self.may_begin_again() => {
                return Step::GiveUp;
            }
            Input::Shown { state: State::Failed, cause: Cause::RetriedExit, .. }
                if self.retries_left > 0 && !self.is_cancelled =>
            {
                return Step::Retry;
            }
            Input::Shown { state, .. } => state,
            Input::Silent | Input::Gone if self.may_begin_again() => return Step::GiveUp,
            Input::Silent => State::Lost,
            Input::Gone => State::Failed,
            Input::Ended(state) => state,
        };
        if self.state.may_become(wanted) { Step::Become(wanted) } else { Step::Stay }
    }

    const fn may_begin_again(&self) -> bool {
        !self.is_cancelled && self.lost_attempts + 1 < self.max_attempts
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    fn life(state: State, max_attempts: u32) -> Lifecycle {
        Lifecycle { state, attempt: 1, max_attempts, lost_attempts: 0, retries_left: 0, is_cancelled: false }
    }

    fn apply(life: &mut Lifecycle, input: Input) -> Step {
        let step = life.next(input);
        match step {
            Step::Stay => {}
            Step::Become(State::Assigned) => {
                (life.state, life.attempt) = (State::Assigned, life.attempt + 1);
            }
            Step::Become(state) => life.state = state,
            Step::GiveUp => {
                (life.state, life.lost_attempts) = (State::Pending, life.lost_attempts + 1);
            }
            Step::PassOn => {
                (life.state, life.lost_attempts) = (State::Pending, life.lost_attempts + 1);
                life.max_attempts += 1;
            }
            Step::Retry => {
                (life.state, life.lost_attempts) = (State::Pending, life.lost_attempts + 1);
                (life.max_attempts, life.retries_left) = (life.max_attempts + 1, life.retries_left - 1);
            }
        }
        step
    }

    #[test]
    fn the_truth_of_a_worker_that_came_back_replaces_lost() {
        let lost = life(State::Lost, 1);
        let shown = |state| Input::Shown { attempt: 1, state, cause: Cause::Other };
        assert_eq!(life(State::Running, 1).next(Input::Silent), Step::Become(State::Lost));
        assert_eq!(lost.next(shown(State::Succeeded)), Step::Become(State::Succeeded));
        assert_eq!(lost.next(shown(State::Running)), Step::Stay);
        assert_eq!(lost.next(Input::Ended(State::Cancelled)), Step::Become(State::Cancelled));
    }

    #[test]
    fn node_fault_is_retried_only_within_max_attempts() {
        let failed = |cause| Input::Shown { attempt: 1, state: State::Failed, cause };
        assert_eq!(life(State::Running, 2).next(failed(Cause::Other)), Step::Become(State::Failed));
        assert_eq!(life(State::Running, 2).next(failed(Cause::Node)), Step::GiveUp);
        assert_eq!(life(State::Running, 1).next(failed(Cause::Node)), Step::Become(State::Failed));
        assert_eq!(life(State::Running, 1).next(Input::Gone), Step::Become(State::Failed));
        let cancelled = Lifecycle { is_cancelled: true, ..life(State::Running, 2) };
        assert_eq!(cancelled.next(Input::Silent), Step::Become(State::Lost));
    }

    #[test]
    fn a_failed_program_is_retried_while_retries_are_left() {
        let exited = Input::Shown { attempt: 1, state: State::Failed, cause: Cause::RetriedExit };
        let running = Lifecycle { retries_left: 1, ..life(State::Running, 1) };
        assert_eq!(running.next(exited), Step::Retry);
        assert_eq!(
            life(State::Running, 3).next(exited),
            Step::Become(State::Failed),
            "attempts are for nodes"
        );
        let cancelled = Lifecycle { is_cancelled: true, ..running };
        assert_eq!(cancelled.next(exited), Step::Become(State::Failed));
        let lost = Lifecycle { state: State::Lost, ..running };
        assert_eq!(lost.next(exited), Step::Retry, "its node came back and told the end");
    }

    /// Model of an observer: the attempts that may run, kept apart from the lifecycle under test.
    #[derive(Default)]
    struct World {
        /// Attempts that a node may have started and that were not given up.
        open: Vec<u32>,
        begun: u32,
        retried: u32,
    }

    fn inputs() -> impl Strategy<Value = Vec<(Input, bool)>> {
        let states = select(vec![State::Starting, State::Running, State::Succeeded, State::Failed]);
        let causes = select(vec![Cause::Node, Cause::RetriedExit, Cause::Other]);
        let shown = (1u32..6, states, causes).prop_map(|(attempt, state, cause)| Input::Shown {
            attempt,
            state,
            cause,
        });
        let input = prop_oneof![
            4 => Just(Input::Assigned),
            6 => shown,
            2 => (1u32..6).prop_map(|attempt| Input::Declined { attempt }),
            2 => Just(Input::Silent),
            1 => Just(Input::Gone),
            1 => select(vec![State::Cancelled, State::Failed]).prop_map(Input::Ended),
        ];
        // With each, whether somebody asks for the end just before it.
        vec((input, prop::bool::weighted(0.05)), 1..60)
    }

    proptest! {
        /// Whatever comes in whatever order: forward only, an end is an end, one attempt at a time, and
        /// never more of them than the caller allowed.
        #[test]
        fn a_life_agrees_with_what_an_observer_may_believe(
            max_attempts in 1u32..5, retries in 0u32..3, inputs in inputs()
        ) {
            let mut life = Lifecycle { attempt: 0, retries_left: retries, ..life(State::Pending, max_attempts) };
            let mut world = World::default();
            for (input, cancel) in inputs {
                life.is_cancelled |= cancel;
                let before = life;
                let step = apply(&mut life, input);
                let position = |life: &Lifecycle| (life.lost_attempts, life.state.rank());
                match step {
                    Step::Stay => prop_assert_eq!(before, life),
                    Step::Become(State::Assigned) => {
                        prop_assert!(position(&before) <= position(&life));
                        prop_assert!(!life.is_cancelled, "begun after its cancel");
                        // A node that did not take it has begun nothing.
                        if before.state == State::Pending {
                            world.begun += 1;
                        } else {
                            world.open.clear();
                        }
                        world.open.push(life.attempt);
                    }
                    Step::Become(_) => prop_assert!(position(&before) < position(&life)),
                    Step::GiveUp => {
                        prop_assert!(position(&before) < position(&life));
                        world.open.clear();
                    }
                    Step::PassOn => {
                        prop_assert!(position(&before) < position(&life));
                        prop_assert!(before.state != State::Running, "it ran");
                        world.open.clear();
                        world.begun -= 1;
                    }
                    Step::Retry => {
                        prop_assert!(position(&before) < position(&life));
                        prop_assert!(!life.is_cancelled, "retried after its cancel");
                        world.open.clear();
                        world.begun -= 1;
                        world.retried += 1;
                    }
                }
                prop_assert!(world.retried <= retries, "{} of {retries} retries", world.retried);
                prop_assert!(!before.state.is_final() || before == life, "an end that changed");
                prop_assert!(world.open.len() <= 1, "two attempts at once: {:?}", world.open);
                prop_assert!(world.begun <= max_attempts, "{} of {} attempts", world.begun, max_attempts);
                prop_assert!(life.lost_attempts < life.max_attempts);
                if let Input::Shown { attempt, .. } = input && attempt != before.attempt {
                    prop_assert_eq!(before, life, "an older attempt was believed");
                }
            }
        }
    }
}
