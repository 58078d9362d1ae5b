//! Health of the stack: container states from the engine, and probes of the services that can be asked. Module `look`
//! judges a snapshot. This module takes snapshots, probes and waits.

use std::{collections::BTreeMap, time::Duration};

use aegis_ssh::Connection;
use aegis_types::error::{Error, ErrorCode, Result};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::{
    host::{
        HostSession,
        http::{self, Reply},
    },
    model::{project::CLOUDFLARED_METRICS_PORT, release::ReleaseContents, spec::Service},
};

pub use crate::model::containers::{Answer, Answers, CONTAINER_FORMAT, StackHealth, StackSnapshot};

/// First poll interval. Docker reports changes only when polled, and most services are up quickly.
const POLL_INTERVAL_FIRST: Duration = Duration::from_millis(50);
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(500);
const TOKEN_REMEDY: &str = "the tunnel token may be wrong, or the host cannot reach Cloudflare; the end of its log \
                            is in untrusted_log_tail of get_deployment_status, and `aegis deployments ID` prints it";
const LOG_REMEDY: &str = "the end of its log is in untrusted_log_tail of get_deployment_status, and `aegis deployments ID` prints it";

/// Failed service and the reason.
#[derive(Debug)]
pub struct HealthError {
    pub error: Error,
    pub service: Option<String>,
}

impl From<Error> for HealthError {
    fn from(error: Error) -> Self {
        Self { error, service: None }
    }
}

/// A stack that was healthy at one moment.
#[derive(Debug, Clone)]
pub struct HealthyBaseline {
    pub evidence: String,
    /// Restarts by container.
    restarts: BTreeMap<String, u64>,
}

/// Waits until every started service is healthy, and reports to `progress` what it waits for.
pub async fn await_well(
    remote: HostSession<'_>,
    goal: &ReleaseContents,
    limit: Duration,
    mut progress: impl FnMut(String),
) -> Result<HealthyBaseline, HealthError> {
    let deadline = Instant::now() + limit;
    let mut first: BTreeMap<String, u64> = BTreeMap::new();
    let mut interval = POLL_INTERVAL_FIRST;
    loop {
        let look = StackSnapshot::parse(&remote.containers().await?);
        for (id, restarts) in look.restarts() {
            first.entry(id).or_insert(restarts);
        }
        let answers = ask(remote.connection, goal, &look).await?;
        let states = look.describe(goal, &answers);
        let waits_for = match look.verdict(goal, &answers, &first) {
            StackHealth::Healthy => {
                return Ok(HealthyBaseline { evidence: states, restarts: look.restarts() });
            }
            StackHealth::Failed { service, why } => {
                let message = format!("service {service} failed: {why}");
                return Err(unwell(ErrorCode::DeploymentFailed, message, service, goal));
            }
            StackHealth::Waiting { service } => service,
        };
        if Instant::now() >= deadline {
            let message = format!("service {waits_for} is not well after {} s: {states}", limit.as_secs());
            return Err(unwell(ErrorCode::Timeout, message, waits_for, goal));
        }
        progress(format!("waiting: {states}"));
        sleep(interval).await;
        interval = (interval * 2).min(POLL_INTERVAL_MAX);
    }
}

/// Takes another look at a healthy stack and checks that nothing restarted since.
pub fn confirm(
    look: &StackSnapshot,
    goal: &ReleaseContents,
    well: &HealthyBaseline,
) -> Result<(), HealthError> {
    match look.changed_since(&well.restarts) {
        None => Ok(()),
        Some((service, why)) => {
            let message = format!("service {service} did not stay up after it was well: {why}");
            Err(unwell(ErrorCode::DeploymentFailed, message, service, goal))
        }
    }
}

fn unwell(code: ErrorCode, message: String, service: String, goal: &ReleaseContents) -> HealthError {
    let is_tunnel = goal.cloudflared && service == Service::Cloudflared.name();
    let remedy = match code {
        _ if is_tunnel => TOKEN_REMEDY.to_owned(),
        ErrorCode::Timeout => {
            format!("{LOG_REMEDY}; where it only takes longer, raise health_timeout_seconds")
        }
        _ => LOG_REMEDY.to_owned(),
    };
    HealthError { error: Error::new(code, message).remedy(remedy), service: Some(service) }
}

/// Probes running services from the host itself, through the SSH connection.
async fn ask(connection: &Connection, goal: &ReleaseContents, look: &StackSnapshot) -> Result<Answers> {
    let mut answers = Answers::new();
    if let Some(node) = goal.node.as_ref().filter(|node| look.runs(&node.service)) {
        let answer = match http::get(connection, node.port, "/health").await? {
            Reply::Forbidden => Answer::CannotAsk,
            Reply::Answer { status: 200, .. } => Answer::Yes("/health answers 200".to_owned()),
            Reply::Answer { .. } | Reply::Nothing => Answer::No,
        };
        answers.insert(node.service.clone(), answer);
    }
    let cloudflared = Service::Cloudflared.name();
    if goal.cloudflared && look.runs(cloudflared) {
        let answer = match http::get(connection, CLOUDFLARED_METRICS_PORT, "/ready").await? {
            Reply::Forbidden => Answer::CannotAsk,
            Reply::Answer { status: 200, body } => tunnel_answer(&body),
            Reply::Answer { .. } | Reply::Nothing => Answer::No,
        };
        answers.insert(cloudflared.to_owned(), answer);
    }
    Ok(answers)
}

fn tunnel_answer(body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Ready {
        ready_connections: u32,
    }
    match serde_json::from_slice(body) {
        Ok(Ready { ready_connections: 1 }) => Answer::Yes("1 connection".to_owned()),
        Ok(Ready { ready_connections }) if ready_connections > 0 => {
            Answer::Yes(format!("{ready_connections} connections"))
        }
        _ => Answer::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_well_with_its_first_connection() {
        let body = |connections: u32| {
            format!("{{\"status\":200,\"readyConnections\":{connections},\"connectorId\":\"x\"}}")
        };
        assert_eq!(tunnel_answer(body(4).as_bytes()), Answer::Yes("4 connections".into()));
        assert_eq!(tunnel_answer(body(1).as_bytes()), Answer::Yes("1 connection".into()));
        assert_eq!(tunnel_answer(body(0).as_bytes()), Answer::No);
        assert_eq!(tunnel_answer(b"OK"), Answer::No);
    }

    #[test]
    fn a_tunnel_that_fails_says_what_may_be_wrong() {
        let goal = ReleaseContents { cloudflared: true, ..ReleaseContents::default() };
        let unwell = unwell(ErrorCode::Timeout, "x".into(), "cloudflared".into(), &goal);
        assert!(unwell.error.remedy_text().unwrap().contains("tunnel token may be wrong"));
    }
}
