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

use std::{sync::Arc, time::Duration};

use aegis_config::hooks::{Hook, Target};
use aegis_fs::SecretReference;
use aegis_store::{Delivery, ExecutionWrite, Write};
use aegis_types::{
    clock::{now_ms, rfc3339},
    error::{Error, Result},
    execution::{lifecycle::State, view::ExecutionView},
    ids::HookName,
    secret::Secret,
};
use futures::StreamExt as _;
use serde::Serialize;

use crate::executions::open::Shared;

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

/// Starts the task of each hook. Deliveries to hooks that are not configured any more go when they are old.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    let age_ms = i64::try_from(2 * AGE_MAX.as_millis()).unwrap_or(i64::MAX);
    let write = ExecutionWrite::PruneDeliveries { before_ms: now_ms().saturating_sub(age_ms) };
    shared.store.write(Write::Execution(write)).await?;
    for (name, hook) in shared.hooks.iter() {
        tokio::spawn(deliver(shared.clone(), name.clone(), hook.clone()));
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

    #[test]
    fn pauses_grow_to_an_hour() {
        let seconds = [0, 1, 5, 11, 12, u32::MAX].map(|failed| pause(failed).as_secs());
        assert_eq!(seconds, [1, 2, 32, 2048, 3600, 3600]);
    }
}
