//! Follows a deployment, rollback or removal to its end: live on a terminal, otherwise one line per step.

use std::{io::IsTerminal as _, time::Duration};

use cluster_core::{
    deploy::{DeploymentState, DeploymentView, StepName, StepState, StepView},
    types::error::{Error, ErrorCode, Result},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Context, client::Client, segment};
use crate::text::clean;

const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// Follows to the end and returns the exit status. Prints the final deployment, or the current one with `no_wait`.
pub async fn to_its_end(
    context: &Context,
    client: &Client,
    begun: DeploymentView,
    no_wait: bool,
) -> Result<u8> {
    let view = match no_wait {
        true => begun,
        false => follow(context, client, begun).await?,
    };
    context.output.show(&view, || format!("{} {} {}", view.deployment_id, view.node_id, view.state))?;
    if view.state.is_good() || !view.state.is_final() {
        return Ok(0);
    }
    let error: Error = match view.failure {
        Some(failure) => failure.into(),
        None => {
            Error::new(ErrorCode::DeploymentFailed, "the deployment did not succeed").remedy(view.next_step)
        }
    };
    // stdout has the deployment already.
    context.output.talk_error(&error);
    Ok(crate::codes::of(error.code()).exit)
}

pub async fn follow(context: &Context, client: &Client, begun: DeploymentView) -> Result<DeploymentView> {
    let id = begun.deployment_id.to_string();
    let path = format!("/deployments/{}/events", segment(&id));
    let mut shown = Shown::new(context);
    let mut ended = None;
    let unread = |e: serde_json::Error| Error::internal("an event is not understood").source(e);
    let followed = client
        .follow(&path, &format!("aegis deployments {id} --follow"), |name, data| {
            match name {
                "step" => shown.step(&serde_json::from_str(data).map_err(unread)?),
                "end" => {
                    ended = Some(serde_json::from_str(data).map_err(unread)?);
                    return Ok(false);
                }
                _ => {}
            }
            Ok(true)
        })
        .await;
    shown.line.finish_and_clear();
    followed?;
    let view: DeploymentView = ended.ok_or_else(|| Error::internal("a deployment ended without its end"))?;
    for finding in &view.findings {
        context.output.say(&clean(&finding.to_string()));
    }
    if let Some(log) =
        view.log_tail.as_ref().filter(|log| !log.is_empty() && view.state != DeploymentState::Ready)
    {
        context.output.say("The host's log ends with:");
        for line in log.lines() {
            context.output.say(&format!("  {}", clean(line)));
        }
    }
    Ok(view)
}

/// Steps printed so far, and the line that changes.
struct Shown<'a> {
    context: &'a Context,
    line: ProgressBar,
    said: Vec<StepName>,
}

impl<'a> Shown<'a> {
    fn new(context: &'a Context) -> Self {
        let line = match std::io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        };
        line.set_style(ProgressStyle::default_spinner());
        line.enable_steady_tick(SPINNER_INTERVAL);
        Self { context, line, said: Vec::new() }
    }

    fn step(&mut self, step: &StepView) {
        let message = step.message.as_ref().or(step.evidence.as_ref());
        let message = message.map(|text| clean(text).into_owned()).unwrap_or_default();
        match step.state {
            StepState::Pending => {}
            StepState::Running => self.line.set_message(format!("{:<8} {message}", step.name.name())),
            // Printed at once, and again when the step ends.
            StepState::Rechecking => self.say(&format!("{:<8} rechecking  {message}", step.name.name())),
            StepState::Done | StepState::Failed if self.said.contains(&step.name) => {}
            StepState::Done | StepState::Failed => {
                self.said.push(step.name);
                let ms = step.duration_ms.unwrap_or(0);
                let (name, state) = (step.name.name(), step.state.name());
                self.say(&format!("{name:<8} {state:<6} {:>4}.{} s  {message}", ms / 1000, ms % 1000 / 100));
            }
        }
    }

    fn say(&self, text: &str) {
        self.line.suspend(|| self.context.output.say(text));
    }
}
