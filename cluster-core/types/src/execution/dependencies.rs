//! Executions that another one runs after. Pure.

use serde::{Deserialize, Serialize};

use super::lifecycle::State;
use crate::{
    error::{Error, ErrorCode, Failure, Result},
    execution::after::AfterCondition,
    ids::ExecutionId,
};

pub const AFTER_MAX: usize = 32;

/// Executions that must end before another one is placed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependencies {
    pub after: Vec<ExecutionId>,
    #[serde(default)]
    pub condition: AfterCondition,
    /// One of `after`, whose artifacts become `/workspace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_from: Option<ExecutionId>,
}

/// Whether an execution may be placed, as far as its dependencies go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Text for readers: the executions that have not ended.
    Blocked(String),
    /// The condition can no longer hold.
    Impossible(Failure),
}

impl Dependencies {
    /// Checks the dependencies of a request. Returns `None` for a request without dependencies.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` where there are too many, or two sources for `/workspace`.
    pub fn new(
        mut after: Vec<ExecutionId>,
        condition: Option<AfterCondition>,
        workspace_from: Option<ExecutionId>,
        has_workspace: bool,
    ) -> Result<Option<Self>> {
        if workspace_from.is_some() && has_workspace {
            return Err(
                Error::invalid("workspace and workspace_from are both given").remedy("keep one of them")
            );
        }
        if let Some(source) = &workspace_from
            && !after.contains(source)
        {
            after.push(source.clone());
        }
        if after.len() > AFTER_MAX {
            return Err(Error::invalid(format!("after: at most {AFTER_MAX} executions are taken")));
        }
        if after.is_empty() {
            return match condition {
                None => Ok(None),
                Some(_) => Err(Error::invalid("after_condition is given without after")
                    .remedy("name the executions in after")),
            };
        }
        Ok(Some(Self { after, condition: condition.unwrap_or_default(), workspace_from }))
    }

    /// Decides from the states of the dependencies, in the order of `after`. `None` stands for an execution that is no
    /// longer kept.
    pub fn readiness(&self, states: &[Option<State>]) -> Readiness {
        let mut open = Vec::new();
        for (id, state) in self.after.iter().zip(states) {
            match state {
                Some(State::Succeeded) => {}
                Some(State::Failed | State::Cancelled) if self.condition == AfterCondition::Ended => {}
                Some(state) if state.is_final() => {
                    let message = format!("{id}, which it runs after, ended as {}", state.name());
                    let remedy = "submit both again, or use after_condition ended to run it in any case";
                    return impossible(message, remedy);
                }
                Some(state) => open.push(format!("{id} ({})", state.name())),
                None => {
                    let message = format!("{id}, which it runs after, is not kept any more");
                    return impossible(message, "submit it again without it, or keep executions for longer");
                }
            }
        }
        match open.as_slice() {
            [] => Readiness::Ready,
            [first] => Readiness::Blocked(format!("runs after {first}")),
            [first, rest @ ..] => Readiness::Blocked(format!("runs after {first} and {} more", rest.len())),
        }
    }
}

fn impossible(message: String, remedy: &str) -> Readiness {
    let code = ErrorCode::FailedPrecondition;
    Readiness::Impossible(Failure { code, message, remedy: Some(remedy.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(last: char) -> ExecutionId {
        let mut text = ExecutionId::mint().to_string();
        text.pop();
        text.push(last);
        ExecutionId::parse(text).unwrap()
    }

    #[test]
    fn source_of_the_workspace_is_a_dependency() {
        let (a, b) = (id('a'), id('b'));
        let found = Dependencies::new(vec![a.clone()], None, Some(b.clone()), false).unwrap().unwrap();
        assert_eq!(found.after, [a.clone(), b.clone()]);
        assert_eq!(found.workspace_from, Some(b.clone()));
        assert_eq!(Dependencies::new(Vec::new(), None, None, true).unwrap(), None);
        let refused = |after, condition, from, has| {
            Dependencies::new(after, condition, from, has).unwrap_err().message().to_owned()
        };
        assert!(refused(Vec::new(), None, Some(b), true).contains("both"));
        assert!(refused(vec![a; 33], None, None, false).contains("at most 32"));
        assert!(refused(Vec::new(), Some(AfterCondition::Ended), None, false).contains("without after"));
    }

    #[test]
    fn readiness_follows_the_condition() {
        use State::{Cancelled, Failed, Lost, Running, Succeeded};
        let decide = |condition, states: [State; 2]| {
            let dependencies =
                Dependencies { after: vec![id('a'), id('b')], condition, workspace_from: None };
            dependencies.readiness(&states.map(Some))
        };
        let of = |condition, states| match decide(condition, states) {
            Readiness::Ready => 'r',
            Readiness::Blocked(_) => 'b',
            Readiness::Impossible(_) => 'i',
        };
        for (states, succeeded, ended) in [
            ([Succeeded, Succeeded], 'r', 'r'),
            ([Succeeded, Running], 'b', 'b'),
            ([Lost, Succeeded], 'b', 'b'),
            ([Running, Failed], 'i', 'b'),
            ([Succeeded, Cancelled], 'i', 'r'),
        ] {
            assert_eq!(of(AfterCondition::Succeeded, states), succeeded, "{states:?}");
            assert_eq!(of(AfterCondition::Ended, states), ended, "{states:?}");
        }
        let gone = Dependencies { after: vec![id('a')], ..Default::default() }.readiness(&[None]);
        assert!(matches!(gone, Readiness::Impossible(failure) if failure.message.contains("not kept")));
        let Readiness::Blocked(text) = decide(AfterCondition::Ended, [Running, Running]) else { panic!() };
        assert!(text.ends_with("(running) and 1 more"), "{text}");
    }
}
