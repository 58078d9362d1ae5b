//! Whether the stack is well: what Compose says of each container, and what the node itself answers.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

use super::remote::Remote;
use crate::error::{Error, ErrorCode, Result};

const HEALTH_LIMIT: Duration = Duration::from_secs(180);
/// Docker tells of changes only by being asked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 8 * 1024;
/// A container seen restarting this often in a row will not come up.
const RESTARTING_POLLS_MAX: u32 = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub service: String,
    pub state: String,
    pub health: String,
    pub exit_code: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Well,
    Waiting,
    Restarting,
    Failed,
}

impl Condition {
    pub const fn may_be_well(self) -> bool {
        matches!(self, Condition::Well | Condition::Waiting)
    }
}

impl Container {
    pub fn condition(&self) -> Condition {
        match (self.state.as_str(), self.health.as_str()) {
            ("running", "" | "healthy") => Condition::Well,
            ("running", "unhealthy") => Condition::Failed,
            // One-shot services end; that they ended well is all there is to ask.
            ("exited", _) if self.exit_code == 0 => Condition::Well,
            ("exited" | "dead" | "removing", _) => Condition::Failed,
            ("restarting", _) => Condition::Restarting,
            _ => Condition::Waiting,
        }
    }

    pub fn describe(&self) -> String {
        match (self.health.as_str(), self.state.as_str()) {
            (_, "exited") => format!("{} exited {}", self.service, self.exit_code),
            ("", state) => format!("{} {state}", self.service),
            (health, _) => format!("{} {health}", self.service),
        }
    }
}

/// Both forms of `ps --format json`: one array, or one object a line.
pub fn parse(text: &str) -> Vec<Container> {
    let objects: Vec<Value> = match serde_json::from_str::<Value>(text.trim()) {
        Ok(Value::Array(objects)) => objects,
        _ => text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(),
    };
    let field = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_lowercase();
    objects
        .iter()
        .filter(|object| object["Service"].is_string())
        .map(|object| Container {
            service: object["Service"].as_str().unwrap_or_default().to_owned(),
            state: field(object, "State"),
            health: field(object, "Health"),
            exit_code: object["ExitCode"].as_i64().unwrap_or(0),
        })
        .collect()
}

/// Which service failed, and why.
#[derive(Debug)]
pub struct Unwell {
    pub error: Error,
    pub service: Option<String>,
}

impl From<Error> for Unwell {
    fn from(error: Error) -> Self {
        Self { error, service: None }
    }
}

/// The stack that is waited for.
#[derive(Debug, Clone)]
pub struct Expected {
    pub services: Vec<String>,
    pub node_service: String,
    pub node_port: u16,
}

/// Waits until every service is well and the node answers; tells `progress` what it waits for. The
/// node need not wait for the next round of its container's own check: it is asked here.
pub async fn await_well(
    remote: Remote<'_>,
    expected: &Expected,
    mut progress: impl FnMut(String),
) -> Result<String, Unwell> {
    let deadline = Instant::now() + HEALTH_LIMIT;
    let mut restarting = 0;
    loop {
        let containers = parse(&remote.containers().await?);
        let conditions: Vec<(&Container, Condition)> =
            containers.iter().map(|container| (container, container.condition())).collect();
        let with =
            |condition| conditions.iter().find(|(_, one)| *one == condition).map(|(container, _)| *container);
        if let Some(failed) = with(Condition::Failed) {
            return Err(unwell(failed));
        }
        restarting = if with(Condition::Restarting).is_some() { restarting + 1 } else { 0 };
        if let Some(failed) = with(Condition::Restarting).filter(|_| restarting >= RESTARTING_POLLS_MAX) {
            return Err(unwell(failed));
        }
        let there =
            expected.services.iter().all(|service| containers.iter().any(|one| one.service == *service));
        let all_well = there
            && conditions.iter().all(|(container, condition)| {
                let asked_here = container.service == expected.node_service && container.health == "starting";
                *condition == Condition::Well || asked_here
            });
        let states = containers.iter().map(Container::describe).collect::<Vec<_>>().join(", ");
        if all_well && let Some(answer) = node_answers(remote, expected.node_port).await? {
            return Ok(format!("{states}; /health answers {answer}"));
        }
        if Instant::now() >= deadline {
            let waiting = conditions.iter().find(|(_, condition)| *condition != Condition::Well);
            let error =
                Error::new(ErrorCode::Timeout, format!("the stack is not healthy after 180 s: {states}"));
            return Err(Unwell { error, service: waiting.map(|(container, _)| container.service.clone()) });
        }
        progress(format!("waiting: {states}"));
        sleep(POLL_INTERVAL).await;
    }
}

fn unwell(container: &Container) -> Unwell {
    let error = Error::new(
        ErrorCode::DeploymentFailed,
        format!("service {} failed: {}", container.service, container.describe()),
    )
    .remedy("its last log lines are in the deployment's log_tail");
    Unwell { error, service: Some(container.service.clone()) }
}

/// Asks from the host itself, through the connection. Where sshd forbids TCP channels, the
/// container's own health check has asked the same.
async fn node_answers(remote: Remote<'_>, port: u16) -> Result<Option<String>> {
    let mut stream = match remote.connection.open_tcp("127.0.0.1", port).await {
        Ok(stream) => stream,
        Err(error) if error.code() == ErrorCode::HostCheckFailed => {
            return Ok(Some("by its container's check".into()));
        }
        Err(error) if error.code() == ErrorCode::Unavailable => return Ok(None),
        Err(error) => return Err(error),
    };
    let asking = async {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let Ok(Ok(answer)) = timeout(REQUEST_LIMIT, asking).await else { return Ok(None) };
    let status = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    Ok(status.split_whitespace().nth(1).filter(|code| *code == "200").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"Service":"node","State":"running","Health":"healthy","ExitCode":0}"#;

    #[test]
    fn both_output_forms() {
        let lines = format!("{LINE}\n{}\n", LINE.replace("node", "ollama"));
        assert_eq!(parse(&lines).len(), 2);
        assert_eq!(parse(&format!("[{LINE}]")).len(), 1);
        assert_eq!(parse(LINE)[0].service, "node");
        assert!(parse("").is_empty() && parse("nonsense").is_empty() && parse("[]").is_empty());
    }

    #[test]
    fn conditions() {
        let container = |state: &str, health: &str, exit_code| Container {
            service: "s".into(),
            state: state.into(),
            health: health.into(),
            exit_code,
        };
        assert_eq!(container("running", "", 0).condition(), Condition::Well);
        assert_eq!(container("running", "starting", 0).condition(), Condition::Waiting);
        assert_eq!(container("running", "unhealthy", 0).condition(), Condition::Failed);
        assert_eq!(container("exited", "", 0).condition(), Condition::Well);
        assert_eq!(container("exited", "", 1).condition(), Condition::Failed);
        assert_eq!(container("restarting", "", 1).condition(), Condition::Restarting);
        assert_eq!(container("created", "", 0).condition(), Condition::Waiting);
    }
}
