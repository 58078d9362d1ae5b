//! Asks the person at the client, in both eras of the protocol. Until 2025-11-25 the question is part of the call. In
//! 2026-07-28 the result requests input, and the client repeats the call with the answer.

use std::collections::BTreeMap;

use rmcp::{
    RoleServer,
    model::{
        BooleanSchema, ElicitRequest, ElicitRequestParams, ElicitResult, ElicitationAction,
        ElicitationSchema, InputRequest, InputRequiredResult, ProtocolVersion,
    },
    service::RequestContext,
};
use serde_json::Value;
use tokio::time::Instant;

use super::Plan;
use crate::text::{clean, indented};

/// Name of the question in a result that requests input.
pub const INPUT_KEY: &str = "confirmation";
/// The only field of the form.
const FIELD: &str = "confirm";
/// Limit of the facts in a dialogue, since long dialogues are not read.
const FACTS_MAX: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Accepted,
    /// A person declined.
    Declined,
    /// Dismissed, or there was no person: clients without a person answer this by themselves.
    Unanswered,
}

impl Answer {
    /// Parses an answer. Anything that is not clearly a yes counts as unanswered.
    pub fn of(answer: &Value) -> Self {
        serde_json::from_value::<ElicitResult>(answer.clone()).map_or(Self::Unanswered, Self::from)
    }
}

impl From<ElicitResult> for Answer {
    fn from(result: ElicitResult) -> Self {
        let says_yes =
            || result.content.as_ref().and_then(|form| form.get(FIELD)) == Some(&Value::Bool(true));
        match result.action {
            ElicitationAction::Accept if says_yes() => Self::Accepted,
            ElicitationAction::Accept | ElicitationAction::Decline => Self::Declined,
            _ => Self::Unanswered,
        }
    }
}

/// Way in which this client's person is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    Direct,
    Retried,
}

impl Era {
    /// Returns the era; `None` if the client does not support forms.
    pub fn of(context: &RequestContext<RoleServer>) -> Option<Self> {
        let elicitation = context.client_capabilities()?.elicitation?;
        // Before there were modes, there was only the form.
        if elicitation.form.is_none() && elicitation.url.is_some() {
            return None;
        }
        let is_newer =
            context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28);
        Some(if is_newer { Self::Retried } else { Self::Direct })
    }
}

fn form(plan: &Plan) -> ElicitRequestParams {
    let mut message = format!("Aegis: {}?", plan.summary);
    for fact in plan.facts.iter().take(FACTS_MAX) {
        message.push_str("\n- ");
        message.push_str(&indented(fact));
    }
    let yes = |field: BooleanSchema| field.title("Do this").with_default(false);
    ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: clean(&message).into_owned(),
        requested_schema: ElicitationSchema::builder().required_bool_property(FIELD, yes).build_unchecked(),
    }
}

pub fn question(plan: &Plan, state: String) -> InputRequiredResult {
    let request = InputRequest::Elicitation(ElicitRequest::new(form(plan)));
    InputRequiredResult::new(Some(BTreeMap::from([(INPUT_KEY.to_owned(), request)])), Some(state))
}

/// Asks within the call, until the person answers, the client gives up or `until` is reached.
pub async fn directly(plan: &Plan, context: &RequestContext<RoleServer>, until: Instant) -> Answer {
    let left = until.saturating_duration_since(Instant::now());
    let asked = context.peer.create_elicitation_with_timeout(form(plan), Some(left));
    tokio::select! {
        answer = asked => answer.map_or_else(
            |error| {
                tracing::debug!(%error, "the client's person was not asked");
                Answer::Unanswered
            },
            Answer::from,
        ),
        () = context.ct.cancelled() => Answer::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_plain_yes_is_one() {
        for (answer, meant) in [
            (json!({"action": "accept", "content": {"confirm": true}}), Answer::Accepted),
            (json!({"action": "accept", "content": {"confirm": false}}), Answer::Declined),
            (json!({"action": "accept", "content": {"confirm": "true"}}), Answer::Declined),
            (json!({"action": "accept"}), Answer::Declined),
            (json!({"action": "decline"}), Answer::Declined),
            (json!({"action": "cancel"}), Answer::Unanswered),
            (json!({"action": "yes"}), Answer::Unanswered),
            (json!("accept"), Answer::Unanswered),
        ] {
            assert_eq!(Answer::of(&answer), meant, "{answer}");
        }
    }
}
