//! Hooks of the operator: an address that gets a POST, or a command that is run, when an execution has ended.
//!
//! A delivery is stored with the end itself, and removed once it has succeeded: each hook hears of each end at least
//! once, also over restarts. One task a hook delivers, so that a slow one delays no other. Tried again with growing
//! pauses for a day.
//!
//! - [`webhook`]: the request and its signature.
//! - [`command`]: the process.

mod command;
mod webhook;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use aegis_types::{
    clock::{now_ms, rfc3339},
    error::{Error, ErrorCode, Result},
    execution::{lifecycle::State, view::ExecutionView},
    ids::HookName,
    secret::Secret,
};
use futures::StreamExt as _;
use serde::Serialize;

use super::live::Shared;
use crate::{
    config::schema,
    secrets::SecretReference,
    store::{Delivery, ExecutionWrite, Write},
};

/// Hooks that a configuration may have.
const HOOKS_MAX: usize = 16;
/// Deliveries of one hook at a time.
const TOGETHER_MAX: usize = 8;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// An end that is a day old is no news.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// Pause after the store could not be read or written.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Longest sleep without a look at the store.
const LOOK_INTERVAL: Duration = Duration::from_secs(300);

/// A hook of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub target: Target,
    /// States at the end that it hears of. Empty: all.
    pub states: Vec<State>,
    /// It hears of every execution, and not only of those that name it.
    pub is_for_all: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Address of a POST, and the secret that signs it.
    Url(reqwest::Url, Option<SecretReference>),
    /// Program and arguments. The event comes on stdin.
    Command(Vec<String>),
}

/// The hooks of a controller by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(BTreeMap<HookName, Hook>);

impl Hooks {
    /// Reads `spec.runtime.hooks`. Errors name the key.
    pub fn of(hooks: &BTreeMap<String, schema::Hook>) -> Result<Self> {
        let wrong =
            |message: String, remedy: &str| Error::new(ErrorCode::ConfigInvalid, message).remedy(remedy);
        if hooks.len() > HOOKS_MAX {
            return Err(wrong(
                format!("spec.runtime.hooks: {} hooks are too many", hooks.len()),
                "keep at most 16",
            ));
        }
        let mut known = BTreeMap::new();
        for (name, hook) in hooks {
            let key = format!("spec.runtime.hooks.{name}");
            let name = HookName::parse(name.as_str()).map_err(|error| {
                wrong(format!("{key}: {error}"), "use lower-case letters, digits and '-'")
            })?;
            let target = match (&hook.url, hook.command.as_slice()) {
                (Some(url), []) => {
                    let url = url
                        .parse::<reqwest::Url>()
                        .ok()
                        .filter(|url| matches!(url.scheme(), "http" | "https"));
                    // The address may hold a token: it is not repeated.
                    let url = url.ok_or_else(|| {
                        wrong(format!("{key}.url is not an address"), "write https://HOST/PATH")
                    })?;
                    let secret = hook.secret.as_ref();
                    let secret = secret.map(|text| SecretReference::parse(&format!("{key}.secret"), text));
                    Target::Url(url, secret.transpose()?)
                }
                (None, [program, ..]) if PathBuf::from(program).is_absolute() && hook.secret.is_none() => {
                    Target::Command(hook.command.clone())
                }
                _ => {
                    let message =
                        format!("{key} needs either url, or command with the absolute path of a program");
                    return Err(wrong(
                        message,
                        "write url: https://HOST/PATH or command: [/PATH/PROGRAM, ARGUMENT]",
                    ));
                }
            };
            if let Some(state) = hook.states.iter().find(|state| !state.is_final()) {
                let message = format!("{key}.states: {} is not the state of an end", state.name());
                return Err(wrong(message, "use succeeded, failed or cancelled"));
            }
            let hook = Hook { target, states: hook.states.clone(), is_for_all: hook.all.unwrap_or(true) };
            known.insert(name, hook);
        }
        Ok(Self(known))
    }

    /// Returns the hooks that hear of an execution: those that its caller names, and those for all.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` names a hook that is not configured.
    pub fn resolve(&self, named: &[HookName]) -> Result<Vec<HookName>> {
        if named.len() > HOOKS_MAX {
            return Err(Error::invalid(format!("notify: at most {HOOKS_MAX} hooks are taken"))
                .remedy("name each hook once"));
        }
        if let Some(unknown) = named.iter().find(|name| !self.0.contains_key(name)) {
            let known = self.0.keys().map(HookName::as_str).collect::<Vec<_>>().join(", ");
            let known =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are {known}") };
            return Err(Error::invalid(format!(
                "notify: {unknown} is not a hook of this controller; {known}"
            ))
            .remedy("an operator adds it to spec.runtime.hooks"));
        }
        let is_told = |(name, hook): &(&HookName, &Hook)| hook.is_for_all || named.contains(name);
        Ok(self.0.iter().filter(is_told).map(|(name, _)| name.clone()).collect())
    }
}

/// Starts the task of each hook. Deliveries to hooks that are not configured any more go when they are old.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    let age_ms = i64::try_from(2 * AGE_MAX.as_millis()).unwrap_or(i64::MAX);
    let write = ExecutionWrite::PruneDeliveries { before_ms: now_ms().saturating_sub(age_ms) };
    shared.store.write(Write::Execution(write)).await?;
    for (name, hook) in shared.hooks.0.clone() {
        tokio::spawn(deliver(shared.clone(), name, hook));
    }
    Ok(())
}

/// Body of a delivery, in the form of the Standard Webhooks specification: type, timestamp, data.
#[derive(Debug, Serialize)]
struct Event<'a> {
    r#type: &'static str,
    timestamp: String,
    data: &'a ExecutionView,
}

/// Outcome of one try.
#[derive(Debug)]
enum Tried {
    Delivered,
    /// The hook is not told: it does not want this one, or the execution is not kept any more.
    Dropped,
    /// It failed, and is tried again at this time.
    Later(i64),
}

/// Delivers what is due for one hook, until the controller stops.
async fn deliver(shared: Arc<Shared>, name: HookName, hook: Hook) {
    let client = webhook::client();
    let mut ends = shared.ends.subscribe();
    loop {
        ends.mark_unchanged();
        let pause = match round(&shared, &client, &name, &hook).await {
            Ok(Some(due_ms)) => {
                let left_ms = u64::try_from(due_ms.saturating_sub(now_ms())).unwrap_or(0);
                Duration::from_millis(left_ms).min(LOOK_INTERVAL)
            }
            Ok(None) => LOOK_INTERVAL,
            Err(error) => {
                tracing::warn!(hook = %name, error = %error.chain(), "deliveries cannot be read or stored");
                STORE_RETRY
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
            _ = ends.changed() => {}
        }
    }
}

/// Tries what is due, and returns when the next is.
async fn round(
    shared: &Shared,
    client: &Result<reqwest::Client>,
    name: &HookName,
    hook: &Hook,
) -> Result<Option<i64>> {
    loop {
        let due = shared.store.due_deliveries(name, now_ms()).await?;
        if due.is_empty() {
            return shared.store.next_delivery(name).await;
        }
        let tries = due.into_iter().map(|delivery| attempt(shared, client, name, hook, delivery));
        let tries = futures::stream::iter(tries).buffer_unordered(TOGETHER_MAX);
        let results: Option<Vec<Result<()>>> = shared.stop.run_until_cancelled(tries.collect()).await;
        // Stopped amid a delivery: it is made again after the start.
        let Some(results) = results else { return Ok(None) };
        results.into_iter().collect::<Result<()>>()?;
    }
}

async fn attempt(
    shared: &Shared,
    client: &Result<reqwest::Client>,
    name: &HookName,
    hook: &Hook,
    delivery: Delivery,
) -> Result<()> {
    let tried = try_once(shared, client, name, hook, &delivery).await?;
    let outcome = match &tried {
        Tried::Delivered => "delivered",
        Tried::Dropped => "dropped",
        Tried::Later(_) => "failed",
    };
    shared.metrics.hook_delivery(name.as_str(), outcome);
    let due_ms = match tried {
        Tried::Delivered | Tried::Dropped => None,
        Tried::Later(due_ms) => Some(due_ms),
    };
    let write = ExecutionWrite::SettleDelivery { delivery, due_ms };
    shared.store.write(Write::Execution(write)).await.map(drop)
}

async fn try_once(
    shared: &Shared,
    client: &Result<reqwest::Client>,
    name: &HookName,
    hook: &Hook,
    delivery: &Delivery,
) -> Result<Tried> {
    let id = &delivery.execution_id;
    let Some(record) = shared.store.execution(id).await? else { return Ok(Tried::Dropped) };
    if !hook.states.is_empty() && !hook.states.contains(&record.state) {
        return Ok(Tried::Dropped);
    }
    let view = record.view();
    let event = Event {
        r#type: kind(record.state),
        timestamp: rfc3339(view.ended_at_ms.unwrap_or(view.created_at_ms)),
        data: &view,
    };
    let body =
        serde_json::to_vec(&event).map_err(|e| Error::internal("an execution cannot be told").source(e))?;
    let told = match &hook.target {
        Target::Url(url, secret) => match secret_of(shared, secret.as_ref(), name).await {
            Ok(secret) => {
                let message = webhook::Message { id: format!("{id}.{name}"), now_ms: now_ms(), body };
                webhook::send(client, url, secret.as_ref(), message).await
            }
            Err(error) => Err(error),
        },
        Target::Command(words) => command::run(words, name, id, record.state, body).await,
    };
    let error = match told {
        Ok(()) => return Ok(Tried::Delivered),
        Err(error) => error,
    };
    let tries = delivery.tries.saturating_add(1);
    if now_ms().saturating_sub(delivery.created_at_ms)
        > i64::try_from(AGE_MAX.as_millis()).unwrap_or(i64::MAX)
    {
        tracing::error!(hook = %name, execution_id = %id, tries, error = %error.chain(), "hook not told for a day: given up");
        return Ok(Tried::Dropped);
    }
    tracing::warn!(hook = %name, execution_id = %id, tries, error = %error.chain(), "hook not told; it is tried again");
    Ok(Tried::Later(now_ms().saturating_add_unsigned(pause(delivery.tries).as_millis() as u64)))
}

async fn secret_of(
    shared: &Shared,
    reference: Option<&SecretReference>,
    name: &HookName,
) -> Result<Option<Secret>> {
    Ok(match reference {
        None => None,
        Some(SecretReference::Named(secret)) => {
            Some(shared.secrets.use_for(secret, &format!("signature of hook {name}")).await?)
        }
        Some(SecretReference::Place(place)) => Some(place.read()?),
    })
}

const fn kind(state: State) -> &'static str {
    match state {
        State::Succeeded => "execution.succeeded",
        State::Failed => "execution.failed",
        State::Cancelled => "execution.cancelled",
        State::Pending | State::Assigned | State::Starting | State::Running | State::Lost => "execution.open",
    }
}

/// Returns the pause after so many failed tries before the latest.
fn pause(failed_before: u32) -> Duration {
    RETRY_MIN.saturating_mul(2_u32.saturating_pow(failed_before)).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(yaml: &str) -> Result<Hooks> {
        Hooks::of(&serde_json::from_value(serde_json::from_str(yaml).unwrap()).unwrap())
    }

    #[test]
    fn configuration_is_checked_by_key() {
        for (text, error) in [
            (r#"{"a":{}}"#, "spec.runtime.hooks.a needs either url, or command"),
            (r#"{"a":{"url":"https://h/","command":["/bin/true"]}}"#, "needs either"),
            (r#"{"a":{"command":["notify"]}}"#, "absolute path"),
            (r#"{"a":{"url":"ftp://token@h/"}}"#, "spec.runtime.hooks.a.url is not an address"),
            (r#"{"a":{"url":"https://h/","secret":"hunter2"}}"#, "spec.runtime.hooks.a.secret holds a value"),
            (r#"{"a":{"url":"https://h/","states":["running"]}}"#, "running is not the state of an end"),
            (r#"{"A b":{"url":"https://h/"}}"#, "spec.runtime.hooks.A b"),
        ] {
            let message = hooks(text).unwrap_err().to_string();
            assert!(
                message.contains(error) && !message.contains("token") && !message.contains("hunter"),
                "{message}"
            );
        }
    }

    #[test]
    fn those_for_all_and_those_that_are_named_are_told() {
        let known =
            hooks(r#"{"all":{"url":"https://h/"},"some":{"command":["/bin/cat"],"all":false}}"#).unwrap();
        let told = |named: &[&str]| {
            let named: Vec<_> = named.iter().map(|name| HookName::parse(*name).unwrap()).collect();
            let told = known.resolve(&named)?;
            Ok::<_, Error>(told.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(told(&[]).unwrap(), "all");
        assert_eq!(told(&["some"]).unwrap(), "all some");
        assert!(told(&["some"; 17]).unwrap_err().message().contains("at most 16"));
        let error = told(&["other"]).unwrap_err();
        assert_eq!(error.message(), "notify: other is not a hook of this controller; there are all, some");
    }

    #[test]
    fn pauses_grow_to_an_hour() {
        let seconds = [0, 1, 5, 11, 12, u32::MAX].map(|failed| pause(failed).as_secs());
        assert_eq!(seconds, [1, 2, 32, 2048, 3600, 3600]);
    }
}
