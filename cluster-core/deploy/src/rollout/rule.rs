//! Decides the next action and the end of a rollout, from the states of its members alone.

use std::fmt;

/// State of one host of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Not started yet.
    Waiting,
    /// The deployment was started; it may wait for a slot among other deployments.
    Running,
    Succeeded,
    /// The deployment failed or could not be started.
    Failed,
    /// The deployment was cancelled.
    Cancelled,
    /// Never started: too many members failed, or the rollout was cancelled.
    Skipped,
}

impl MemberState {
    pub const fn is_final(self) -> bool {
        match self {
            MemberState::Waiting | MemberState::Running => false,
            MemberState::Succeeded | MemberState::Failed | MemberState::Cancelled | MemberState::Skipped => {
                true
            }
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            MemberState::Waiting => "waiting",
            MemberState::Running => "running",
            MemberState::Succeeded => "succeeded",
            MemberState::Failed => "failed",
            MemberState::Cancelled => "cancelled",
            MemberState::Skipped => "skipped",
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    Running,
    /// Every host succeeded.
    Succeeded,
    /// At least one host failed.
    Failed,
    /// The rollout or one of its deployments was cancelled, and no host failed.
    Cancelled,
}

impl RolloutState {
    pub const fn is_final(self) -> bool {
        !matches!(self, RolloutState::Running)
    }

    pub const fn name(self) -> &'static str {
        match self {
            RolloutState::Running => "running",
            RolloutState::Succeeded => "succeeded",
            RolloutState::Failed => "failed",
            RolloutState::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for RolloutState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of members that run at a time, at least 1.
    pub parallel: usize,
    /// Number of failures after which no further member is started; 0 never stops.
    pub failures: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start these members, by index.
    Begin(Vec<usize>),
    /// Skip these members; no more are started.
    Skip(Vec<usize>),
    /// Wait until a running member has changed.
    Await,
    End(RolloutState),
}

pub fn next(members: &[MemberState], limits: Limits, called_off: bool) -> Next {
    let count = |state| members.iter().filter(|member| **member == state).count();
    let waiting = || (0..members.len()).filter(|at| members[*at] == MemberState::Waiting);
    let (running, failed) = (count(MemberState::Running), count(MemberState::Failed));
    let stopped = called_off || (limits.failures > 0 && failed >= limits.failures);
    if stopped && waiting().next().is_some() {
        return Next::Skip(waiting().collect());
    }
    let room = limits.parallel.max(1).saturating_sub(running);
    let begin: Vec<usize> = waiting().take(room).collect();
    match (begin.is_empty(), running) {
        (false, _) => Next::Begin(begin),
        (true, 1..) => Next::Await,
        (true, 0) if failed > 0 => Next::End(RolloutState::Failed),
        (true, 0) if count(MemberState::Succeeded) == members.len() => Next::End(RolloutState::Succeeded),
        (true, 0) => Next::End(RolloutState::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::{MemberState::*, *};

    const TWO_AT_A_TIME: Limits = Limits { parallel: 2, failures: 1 };

    #[test]
    fn so_many_run_at_a_time_and_in_their_order() {
        assert_eq!(next(&[Waiting; 3], TWO_AT_A_TIME, false), Next::Begin(vec![0, 1]));
        assert_eq!(next(&[Running, Running, Waiting], TWO_AT_A_TIME, false), Next::Await);
        assert_eq!(next(&[Running, Succeeded, Waiting], TWO_AT_A_TIME, false), Next::Begin(vec![2]));
        let nobody = Limits { parallel: 0, failures: 1 };
        assert_eq!(next(&[Waiting], nobody, false), Next::Begin(vec![0]), "it cannot stand still");
    }

    #[test]
    fn failure_limit_skips_waiting_members_only() {
        let members = [Failed, Running, Waiting, Waiting];
        assert_eq!(next(&members, TWO_AT_A_TIME, false), Next::Skip(vec![2, 3]));
        assert_eq!(next(&[Failed, Running, Skipped, Skipped], TWO_AT_A_TIME, false), Next::Await);
        let patient = Limits { failures: 2, ..TWO_AT_A_TIME };
        assert_eq!(next(&members, patient, false), Next::Begin(vec![2]));
        let never = Limits { parallel: 1, failures: 0 };
        assert_eq!(next(&[Failed, Failed, Failed, Waiting], never, false), Next::Begin(vec![3]));
        // A single cancelled deployment does not count as a failed host.
        assert_eq!(next(&[Cancelled, Waiting], TWO_AT_A_TIME, false), Next::Begin(vec![1]));
    }

    #[test]
    fn called_off_nothing_more_is_begun() {
        assert_eq!(next(&[Running, Waiting], TWO_AT_A_TIME, true), Next::Skip(vec![1]));
        assert_eq!(next(&[Running, Skipped], TWO_AT_A_TIME, true), Next::Await);
        let end = |members: &[MemberState]| next(members, TWO_AT_A_TIME, true);
        assert_eq!(end(&[Succeeded, Skipped]), Next::End(RolloutState::Cancelled));
        assert_eq!(end(&[Succeeded, Succeeded]), Next::End(RolloutState::Succeeded), "it was too late");
    }

    #[test]
    fn it_ends_as_its_members_did() {
        let end = |members: &[MemberState]| next(members, TWO_AT_A_TIME, false);
        assert_eq!(end(&[Succeeded]), Next::End(RolloutState::Succeeded));
        assert_eq!(end(&[Succeeded, Failed, Skipped]), Next::End(RolloutState::Failed));
        assert_eq!(end(&[Succeeded, Cancelled]), Next::End(RolloutState::Cancelled));
    }

    /// Ends members in any order. There are never too many at a time, no member starts after the failure limit, and the
    /// rollout always ends.
    #[test]
    fn every_course_ends_within_its_limits() {
        for seed in 0..2_000_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut dice = |sides: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                usize::try_from(state % 1_000_000).unwrap() % sides
            };
            let limits = Limits { parallel: 1 + dice(4), failures: dice(3) };
            let mut members = vec![Waiting; 1 + dice(9)];
            let mut called_off = false;
            let ended = (0..200).find_map(|_| {
                called_off |= dice(30) == 0;
                match next(&members, limits, called_off) {
                    Next::Begin(places) => {
                        let failed = members.iter().filter(|member| **member == Failed).count();
                        assert!(!called_off && (limits.failures == 0 || failed < limits.failures));
                        places.iter().for_each(|at| members[*at] = Running);
                        let running = members.iter().filter(|member| **member == Running).count();
                        assert!(running <= limits.parallel, "seed {seed}");
                    }
                    Next::Skip(places) => places.iter().for_each(|at| members[*at] = Skipped),
                    Next::Await => {
                        let running: Vec<usize> =
                            (0..members.len()).filter(|at| members[*at] == Running).collect();
                        members[running[dice(running.len())]] = [Succeeded, Failed, Cancelled][dice(3)];
                    }
                    Next::End(state) => return Some(state),
                }
                None
            });
            let ended = ended.unwrap_or_else(|| panic!("seed {seed} never ends: {members:?}"));
            assert!(ended.is_final() && members.iter().all(|member| member.is_final()), "seed {seed}");
        }
    }
}
