//! Confirmation of disruptive calls: a drain, a removal, the first deployment to a host, a deployment to a host that
//! runs work. A call that requires confirmation has no effect until it is confirmed. MCP and REST share one
//! [`Confirmations`]: the same caller gets the same policy on both.
//!
//! If the client can ask its person (elicitation), the person is asked in the way of the client's era ([`ask`]).
//! Otherwise, or without an answer, the result is the plan and a token that carries out exactly this call
//! ([`pending`]). The token guards against accidents, not against intent: a model can return it by itself. `human_only`
//! therefore accepts no token. Decisions of a person alone (a host key, a secret for a new host) are never made here.

mod ask;
mod pending;

use std::time::{Duration, SystemTime};

use ask::{Era, INPUT_KEY};
use cluster_core::{
    config::schema::Confirm,
    types::{
        caller::Actor,
        error::{Error, ErrorCode, Result},
    },
};
use pending::{Kind, Pending, Subject};
use rmcp::{
    RoleServer,
    model::{CallToolRequestParams, InputRequiredResult, JsonObject},
    service::RequestContext,
};
use serde_json::{Value, json};
use tokio::time::Instant;

pub use ask::Answer;

/// Time during which a shown plan may be confirmed.
pub const VALID: Duration = Duration::from_secs(5 * 60);
/// Argument of every call that may need confirmation; not an argument of any single tool.
pub const ARGUMENT: &str = "confirm_token";
/// Value of `state` in a result that requests confirmation.
pub const STATE: &str = "needs_confirmation";

/// Severity of a call in the current state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Impact {
    /// Changes nothing, so no confirmation is needed.
    Nothing,
    #[default]
    Routine,
    Disruptive,
}

/// Effects of a call, as shown to the person who confirms it.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub weight: Impact,
    /// One sentence, like: drain edge1.
    pub summary: String,
    /// Reasons for caution, one per line.
    pub facts: Vec<String>,
    /// Value that the confirmed call must use, like a plan's digest.
    pub carries: Option<String>,
    /// Command with which a person does the same.
    pub command: String,
}

impl Plan {
    /// Returns the plan of a call that changes nothing.
    pub fn nothing() -> Self {
        Self { weight: Impact::Nothing, ..Self::default() }
    }
}

/// Confirmation that came with the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Given {
    token_holds: bool,
    answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Proceed,
    Ask,
    /// Shows the plan, with a token.
    Show,
    Declined,
    /// A person must answer, but no person did.
    NoPerson,
}

/// Decides the next step. `can_ask`: the client can ask its person.
fn decide(policy: Confirm, weight: Impact, given: Given, can_ask: bool) -> Step {
    let needed = match policy {
        Confirm::Never => false,
        Confirm::Destructive | Confirm::HumanOnly => weight == Impact::Disruptive,
        Confirm::Always => weight != Impact::Nothing,
    };
    match given.answer {
        _ if !needed => Step::Proceed,
        Some(Answer::Accepted) => Step::Proceed,
        Some(Answer::Declined) => Step::Declined,
        _ if given.token_holds && policy != Confirm::HumanOnly => Step::Proceed,
        None if can_ask => Step::Ask,
        _ if policy == Confirm::HumanOnly => Step::NoPerson,
        _ => Step::Show,
    }
}

/// Decision about a call.
#[derive(Debug)]
pub enum Verdict {
    /// The call proceeds, with the value that the plan carries.
    Proceed(Option<String>),
    /// Result to return instead of the call's own.
    Show(Value),
    /// Question for clients of 2026-07-28, with which the call is repeated.
    Ask(Box<InputRequiredResult>),
}

/// Plans of a daemon that were shown or asked and not yet carried out. Lost with the process; the question is then
/// repeated.
#[derive(Debug, Default)]
pub struct Confirmations {
    policy: Confirm,
    pending: Pending,
}

/// Confirmation data of one call.
#[derive(Debug)]
pub struct ConfirmationEvidence {
    subject: Subject,
    token: Option<String>,
    answer: Option<(String, Answer)>,
}

impl ConfirmationEvidence {
    /// Makes the claim of a REST request: a token and the exact subject that it confirms.
    pub fn of_request(actor: &Actor, action: &str, arguments: &JsonObject, token: Option<String>) -> Self {
        let caller = format!("{:?} {}", actor.door, actor.identity);
        Self { subject: Subject::of(&caller, action, Some(arguments)), token, answer: None }
    }

    /// Removes the confirmation data from a request.
    pub fn take(request: &mut CallToolRequestParams, actor: &Actor) -> Self {
        let token = request.arguments.as_mut().and_then(|arguments| arguments.remove(ARGUMENT));
        let answers = request.input_responses.take();
        let answer = request.request_state.take().map(|state| {
            let answer = answers.and_then(|mut answers| answers.remove(INPUT_KEY));
            (state, answer.map_or(Answer::Unanswered, |answer| Answer::of(&answer)))
        });
        Self {
            subject: Subject::of(
                &format!("{:?} {}", actor.door, actor.identity),
                &request.name,
                request.arguments.as_ref(),
            ),
            token: token.and_then(|token| token.as_str().map(str::to_owned)),
            answer,
        }
    }
}

impl Confirmations {
    pub fn new(policy: Confirm) -> Self {
        Self { policy, pending: Pending::default() }
    }

    /// Returns whether the policy never requires a confirmation.
    pub fn is_off(&self) -> bool {
        self.policy == Confirm::Never
    }

    /// Returns the confirmation by an earlier answer to the same call, and the value that it carries. Single use.
    fn redeem(&self, claim: &ConfirmationEvidence, now: SystemTime) -> (Given, Option<String>) {
        let mut given = Given { token_holds: false, answer: None };
        let mut carries = None;
        if let Some(token) = &claim.token
            && let Some(carried) = self.pending.take(token, Kind::Shown, &claim.subject, now)
        {
            (given.token_holds, carries) = (true, carried);
        }
        // Only for a question that this daemon asked.
        if let Some((state, answer)) = &claim.answer
            && let Some(carried) = self.pending.take(state, Kind::Asked, &claim.subject, now)
        {
            (given.answer, carries) = (Some(*answer), carried);
        }
        (given, carries)
    }

    /// Decides on a call. `plan` is awaited only if needed, since it may have to examine a host.
    ///
    /// `context` is the MCP request, whose client may be able to ask its person; `None` for REST. A question ends at
    /// `until`.
    pub async fn judge(
        &self,
        claim: ConfirmationEvidence,
        context: Option<&RequestContext<RoleServer>>,
        until: Instant,
        plan: impl Future<Output = Result<Plan>>,
    ) -> Result<Verdict> {
        if self.policy == Confirm::Never {
            return Ok(Verdict::Proceed(None));
        }
        let (mut given, carried) = self.redeem(&claim, SystemTime::now());
        let was_asked = given.answer.is_some();
        if decide(self.policy, Impact::Disruptive, given, false) == Step::Proceed {
            return Ok(Verdict::Proceed(carried));
        }
        let plan = plan.await?;
        let era = context.and_then(Era::of);
        let mut step = decide(self.policy, plan.weight, given, era.is_some());
        if step == Step::Ask {
            match era {
                Some(Era::Retried) => {
                    let state =
                        self.pending.put(Kind::Asked, claim.subject, plan.carries.clone(), SystemTime::now());
                    return Ok(Verdict::Ask(Box::new(ask::question(&plan, state))));
                }
                Some(Era::Direct) => {
                    given.answer = match context {
                        Some(context) => Some(ask::directly(&plan, context, until).await),
                        None => None,
                    };
                }
                None => {}
            }
            step = decide(self.policy, plan.weight, given, false);
        }
        match step {
            Step::Proceed => Ok(Verdict::Proceed(plan.carries)),
            Step::Declined => Err(Error::new(
                ErrorCode::Cancelled,
                // A client without a person may answer by itself.
                format!("the user, or the client in their place, said no to: {}", plan.summary),
            )
            .remedy(format!(
                "nothing was done; do not call it again unless the user wants it. They can also run: {}",
                plan.command
            ))),
            Step::NoPerson => {
                let why = if was_asked || era.is_some() {
                    "nobody answered"
                } else {
                    "this client cannot ask its user"
                };
                Err(Error::new(
                    ErrorCode::Unconfirmed,
                    format!("a person must confirm this ({}), and {why}", plan.summary),
                )
                .remedy(format!("nothing was done; ask the user to run: {}", plan.command)))
            }
            Step::Ask | Step::Show => {
                let token_was_given = claim.token.is_some();
                let token =
                    self.pending.put(Kind::Shown, claim.subject, plan.carries.clone(), SystemTime::now());
                Ok(Verdict::Show(shown(&plan, &token, token_was_given)))
            }
        }
    }
}

fn shown(plan: &Plan, token: &str, token_was_given: bool) -> Value {
    let expired = if token_was_given {
        "The confirm_token given does not hold: it counts once, for the same arguments, for 5 minutes. "
    } else {
        ""
    };
    json!({
        "state": STATE,
        "plan": {"summary": plan.summary, "facts": plan.facts},
        "confirm_token": token,
        "next_step": format!(
            "{expired}Nothing was done. Show the user the plan; if they want it, make the same call with this \
             confirm_token within 5 minutes."
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [Confirm; 4] =
        [Confirm::Never, Confirm::Destructive, Confirm::Always, Confirm::HumanOnly];

    fn given(token_holds: bool, answer: Option<Answer>) -> Given {
        Given { token_holds, answer }
    }

    #[test]
    fn what_needs_confirmation_never_proceeds_without_one() {
        for policy in POLICIES {
            for weight in [Impact::Nothing, Impact::Routine, Impact::Disruptive] {
                for can_ask in [false, true] {
                    for token_holds in [false, true] {
                        for answer in
                            [None, Some(Answer::Accepted), Some(Answer::Declined), Some(Answer::Unanswered)]
                        {
                            let step = decide(policy, weight, given(token_holds, answer), can_ask);
                            let needed = match policy {
                                Confirm::Never => false,
                                Confirm::Always => weight != Impact::Nothing,
                                _ => weight == Impact::Disruptive,
                            };
                            let by_person = answer == Some(Answer::Accepted);
                            let by_token = token_holds
                                && policy != Confirm::HumanOnly
                                && answer != Some(Answer::Declined);
                            assert_eq!(
                                step == Step::Proceed,
                                !needed || by_person || by_token,
                                "{policy:?} {weight:?} {token_holds} {answer:?} {can_ask}: {step:?}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_person_is_asked_once_and_then_the_plan_is_shown() {
        use Confirm::{Destructive, HumanOnly};
        assert_eq!(decide(Destructive, Impact::Disruptive, given(false, None), true), Step::Ask);
        assert_eq!(
            decide(Destructive, Impact::Disruptive, given(false, Some(Answer::Unanswered)), true),
            Step::Show
        );
        assert_eq!(decide(Destructive, Impact::Disruptive, given(false, None), false), Step::Show);
        assert_eq!(decide(HumanOnly, Impact::Disruptive, given(true, None), true), Step::Ask);
        assert_eq!(
            decide(HumanOnly, Impact::Disruptive, given(true, Some(Answer::Unanswered)), true),
            Step::NoPerson
        );
        assert_eq!(decide(HumanOnly, Impact::Disruptive, given(true, None), false), Step::NoPerson);
        assert_eq!(
            decide(Destructive, Impact::Disruptive, given(true, Some(Answer::Declined)), true),
            Step::Declined
        );
    }
}
