//! The life of an execution: one enum, and every transition in [`State::may_become`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// States only move forward.
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

    /// A reader who waits for the end stops here. `Lost` may still be corrected by the node's return.
    pub const fn is_settled(self) -> bool {
        self.is_final() || matches!(self, State::Lost)
    }

    pub const fn may_become(self, next: State) -> bool {
        const fn rank(state: State) -> u8 {
            match state {
                State::Pending => 0,
                State::Assigned => 1,
                State::Starting => 2,
                State::Running => 3,
                State::Lost => 4,
                State::Succeeded | State::Failed | State::Cancelled => 5,
            }
        }
        match (self, next) {
            // Nothing ran, so there is no exit code and nothing to lose.
            (State::Pending, State::Succeeded | State::Lost) => false,
            (from, to) => !from.is_final() && rank(to) > rank(from),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_state_never_changes_and_no_state_moves_back() {
        for from in State::ALL {
            assert!(!from.may_become(from));
            for to in State::ALL {
                if from.is_final() {
                    assert!(!from.may_become(to), "{from:?} -> {to:?}");
                }
                assert!(!(from.may_become(to) && to.may_become(from)), "{from:?} <-> {to:?}");
            }
        }
    }

    #[test]
    fn the_truth_of_a_worker_that_came_back_replaces_lost() {
        assert!(State::Running.may_become(State::Lost));
        assert!(State::Lost.may_become(State::Succeeded));
        assert!(!State::Lost.may_become(State::Running));
    }
}
