//! Many hosts deployed by one command: a live line for each on a terminal, lines without one, one table
//! at the end.

use std::{collections::HashMap, io::IsTerminal as _, time::Duration};

use cluster_core::{
    deploy::{Finding, MemberState, MemberView, RolloutPlan, RolloutView, Severity},
    types::error::{Error, ErrorCode, Result},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::{Context, client::Client, output::table, segment};
use crate::text::clean;

const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// Begins it and follows it to its end; the exit status is that of the worst host.
pub async fn run(context: &Context, client: &Client, body: &Value, no_wait: bool) -> Result<u8> {
    let begun: RolloutView = client.post("/deploy/edge-nodes", body).await?;
    let view = match no_wait {
        true => begun,
        false => follow(context, client, begun).await?,
    };
    context.output.show(&view, || text(&view))?;
    Ok(exit_status(&view))
}

pub async fn plan(context: &Context, client: &Client, body: &Value) -> Result<u8> {
    let plan: RolloutPlan = client.post("/deploy/edge-nodes", body).await?;
    context.output.show(&plan, || plan_text(&plan))?;
    let statuses = plan.hosts.iter().map(|host| plan_status(host.findings.iter(), host.failure.as_ref()));
    Ok(statuses.max().unwrap_or(0))
}

/// Returns the exit status of one host's plan: that of its failure, or that of a host that is not ready
/// where a finding is an error, as the deployment itself would end.
pub fn plan_status<'a>(
    mut findings: impl Iterator<Item = &'a Finding>,
    failure: Option<&cluster_core::types::error::Failure>,
) -> u8 {
    let is_refused = findings.any(|finding| finding.severity == Severity::Error);
    let code = failure.map(|failure| failure.code).or(is_refused.then_some(ErrorCode::HostCheckFailed));
    code.map_or(0, |code| crate::codes::of(code).exit)
}

async fn follow(context: &Context, client: &Client, begun: RolloutView) -> Result<RolloutView> {
    let id = begun.rollout_id.to_string();
    let path = format!("/rollouts/{}/events", segment(&id));
    let mut shown = Shown::new(context, &begun);
    context.output.say(&format!("{id}: {} hosts, {} at a time", begun.members.len(), begun.max_parallel));
    let mut ended = None;
    let unread = |e: serde_json::Error| Error::internal("an event is not understood").source(e);
    let again = format!("aegis rollouts {id} --follow");
    let followed = client
        .follow(&path, &again, |name, data| {
            match name {
                "member" => shown.member(&serde_json::from_str(data).map_err(unread)?),
                "end" => {
                    ended = Some(serde_json::from_str(data).map_err(unread)?);
                    return Ok(false);
                }
                _ => {}
            }
            Ok(true)
        })
        .await;
    shown.end();
    followed?;
    ended.ok_or_else(|| Error::internal("a rollout ended without its end"))
}

/// Returns the highest exit status of the failed hosts. A cancelled rollout is not a success.
fn exit_status(view: &RolloutView) -> u8 {
    let failed = view.members.iter().filter(|member| member.state == MemberState::Failed);
    let codes = failed.map(|member| member.failure.as_ref().map_or(ErrorCode::DeploymentFailed, |f| f.code));
    let worst = codes.map(|code| crate::codes::of(code).exit).max();
    let off =
        view.members.iter().any(|one| matches!(one.state, MemberState::Cancelled | MemberState::Skipped));
    worst.unwrap_or(if off { crate::codes::of(ErrorCode::Cancelled).exit } else { 0 })
}

/// A host and its port name a line: no two of a rollout have both.
type Key = (String, u16);

struct Shown<'a> {
    context: &'a Context,
    all: MultiProgress,
    lines: HashMap<Key, ProgressBar>,
    said: HashMap<Key, MemberState>,
    width: usize,
}

impl<'a> Shown<'a> {
    fn new(context: &'a Context, view: &RolloutView) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let width = view.members.iter().map(|member| member.host.len()).max().unwrap_or(0);
        let all = MultiProgress::with_draw_target(target);
        Self { context, all, lines: HashMap::new(), said: HashMap::new(), width }
    }

    fn member(&mut self, member: &MemberView) {
        let key = (member.host.clone(), member.ssh_port);
        if member.state.is_final() {
            if let Some(line) = self.lines.remove(&key) {
                line.finish_and_clear();
            }
        } else if member.state == MemberState::Running {
            let all = &self.all;
            let line = self.lines.entry(key.clone()).or_insert_with(|| {
                let line = all.add(ProgressBar::new_spinner());
                line.set_style(ProgressStyle::default_spinner());
                line.enable_steady_tick(SPINNER_INTERVAL);
                line
            });
            line.set_message(format!("{:<width$}  {}", member.host, doing(member), width = self.width));
        }
        // What waits is not worth a line; every other change of state is.
        if member.state != MemberState::Waiting && self.said.insert(key, member.state) != Some(member.state) {
            let text = format!(
                "{:<width$}  {:<9}  {}",
                member.host,
                member.state.name(),
                detail(member),
                width = self.width
            );
            let output = self.context.output;
            self.all.suspend(|| output.say(text.trim_end()));
        }
    }

    fn end(&self) {
        self.lines.values().for_each(ProgressBar::finish_and_clear);
    }
}

fn doing(member: &MemberView) -> String {
    let step = member.step.map(|step| step.name()).unwrap_or("waits for its turn");
    match &member.message {
        Some(message) => format!("{step:<8} {}", clean(message)),
        None => step.to_owned(),
    }
}

fn detail(member: &MemberView) -> String {
    match &member.failure {
        Some(failure) => clean(&failure.message).into_owned(),
        None => {
            member.duration_ms.map(|ms| format!("{}.{} s", ms / 1000, ms % 1000 / 100)).unwrap_or_default()
        }
    }
}

pub fn text(view: &RolloutView) -> String {
    let rows = view.members.iter().map(|member| {
        vec![
            member.host.clone(),
            member.node_id.to_string(),
            member.state.to_string(),
            member.deployment_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            detail(member),
        ]
    });
    let rows = table(&["host", "node", "state", "deployment", "took"], rows.collect());
    format!("{rows}\n{} {}: {}", view.rollout_id, view.state, view.summary)
}

fn plan_text(plan: &RolloutPlan) -> String {
    let mut text = String::new();
    for host in &plan.hosts {
        match (&host.plan, &host.failure) {
            (Some(plan), _) => text.push_str(&format!("{plan}\n")),
            (None, Some(failure)) => {
                text.push_str(&format!("{}: {}\n", host.host, clean(&failure.message)));
            }
            (None, None) => {}
        }
        for finding in &host.findings {
            text.push_str(&format!("{finding}\n"));
        }
        text.push('\n');
    }
    text.push_str("Nothing was changed.");
    text
}

/// `aegis rollouts`: what was deployed many at a time, followed or cancelled.
#[derive(Debug, clap::Args)]
pub struct Rollouts {
    /// Show this one with its hosts
    id: Option<String>,
    /// Follow it to its end
    #[arg(long, short, requires = "id")]
    follow: bool,
    /// Begin no further host and cancel those that run
    #[arg(long, requires = "id")]
    cancel: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct List {
    rollouts: Vec<RolloutView>,
}

impl Rollouts {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let Some(id) = &self.id else {
            let list: List = client.get("/rollouts").await?;
            context.output.show(&list, || {
                let rows = list.rollouts.iter().map(|view| {
                    let created = cluster_core::types::clock::rfc3339(view.created_at_ms);
                    vec![view.rollout_id.to_string(), view.state.to_string(), view.summary.clone(), created]
                });
                table(&["rollout", "state", "hosts", "created at"], rows.collect())
            })?;
            return Ok(0);
        };
        let path = format!("/rollouts/{}", segment(id));
        let mut view: RolloutView = match self.cancel {
            true => client.post(&format!("{path}/cancel"), &serde_json::json!({})).await?,
            false => client.get(&path).await?,
        };
        if self.follow || self.cancel {
            view = follow(context, &client, view).await?;
        }
        context.output.show(&view, || text(&view))?;
        Ok(if self.follow { exit_status(&view) } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout(members: &[(&str, Option<&str>)]) -> RolloutView {
        let members: Vec<Value> = members
            .iter()
            .map(|(state, code)| {
                let failure = code.map(|code| json!({ "code": code, "message": "why" }));
                json!({ "host": "a", "ssh_port": 22, "node_id": "a", "state": state, "failure": failure })
            })
            .collect();
        serde_json::from_value(json!({
            "rollout_id": "rollout-1-1", "state": "failed", "event": 1, "summary": "", "cancel_requested": false,
            "max_parallel": 1, "max_failures": 1, "members": members, "next_step": "", "created_at_ms": 0,
            "updated_at_ms": 0
        }))
        .unwrap()
    }

    #[test]
    fn the_exit_status_is_that_of_the_worst_host() {
        assert_eq!(exit_status(&rollout(&[("succeeded", None)])), 0);
        let mixed =
            [("succeeded", None), ("failed", Some("HostUnreachable")), ("failed", Some("DeploymentFailed"))];
        assert_eq!(exit_status(&rollout(&mixed)), 26);
        assert_eq!(exit_status(&rollout(&[("succeeded", None), ("skipped", None)])), 11);
    }

    #[test]
    fn plan_with_an_error_exits_as_the_deployment_would() {
        let finding = |severity: &str| -> Finding {
            serde_json::from_value(json!({ "code": "port", "severity": severity, "message": "", "fix": "" }))
                .unwrap()
        };
        let (warning, error) = (finding("warning"), finding("error"));
        assert_eq!(plan_status([].into_iter(), None), 0);
        assert_eq!(plan_status([&warning].into_iter(), None), 0);
        let refused = crate::codes::of(ErrorCode::HostCheckFailed).exit;
        assert_ne!(refused, 0);
        assert_eq!(plan_status([&warning, &error].into_iter(), None), refused);
        let failure = serde_json::from_value(json!({ "code": "HostUnreachable", "message": "why" })).unwrap();
        let unreachable = crate::codes::of(ErrorCode::HostUnreachable).exit;
        assert_eq!(plan_status([].into_iter(), Some(&failure)), unreachable);
    }
}
