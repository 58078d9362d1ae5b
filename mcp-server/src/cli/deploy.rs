//! `aegis deploy`: a person deploys a machine and watches.

use clap::Args;
use cluster_core::{
    Error, ErrorCode, Result, config,
    deploy::{DeploymentState, DeploymentView, PlanView, StepView},
};
use serde_json::{Map, Value};

use super::{Context, client::Client, segment};

/// Asked for again until the deployment ends.
const WAIT_SECONDS: u64 = 30;

#[derive(Debug, Args)]
pub struct Deploy {
    /// Address or name of the machine
    host: String,
    #[arg(long)]
    ssh_port: Option<u16>,
    #[arg(long)]
    ssh_user: Option<String>,
    /// Private key file
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<String>,
    /// The node's id [default: made from HOST]
    #[arg(long)]
    identity: Option<String>,
    /// May be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Compose services, comma-separated [default: node,ollama]
    #[arg(long)]
    services: Option<String>,
    /// Where the tunnel token is: never on the command line, which others can read
    #[arg(long, value_name = "env:NAME|file:PATH")]
    tunnel_token_from: Option<String>,
    #[arg(long, value_name = "URL")]
    remote_llm_url: Option<String>,
    #[arg(long)]
    image: Option<String>,
    /// Check the host and print the plan; change nothing
    #[arg(long)]
    plan: bool,
    /// Print the deployment's id and end; it goes on
    #[arg(long)]
    no_wait: bool,
}

impl Deploy {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let (plan, no_wait) = (self.plan, self.no_wait);
        let body = self.body()?;
        if plan {
            let plan: PlanView = client.post("/deploy/edge-node", &body).await?;
            context.output.show(&plan, || plan_text(&plan))?;
            return Ok(0);
        }
        let mut view: DeploymentView = client.post("/deploy/edge-node", &body).await?;
        if !no_wait {
            view = watch(context, &client, view).await?;
        }
        context.output.show(&view, || format!("{} {} {}", view.deployment_id, view.node_id, view.state))?;
        let error: Error = match (view.failure, view.state) {
            (_, DeploymentState::Ready | DeploymentState::Planned | DeploymentState::Running) => {
                return Ok(0);
            }
            (Some(failure), _) => failure.into(),
            (None, _) => Error::new(ErrorCode::DeploymentFailed, "the deployment did not succeed")
                .remedy(view.next_step),
        };
        // stdout has the deployment already.
        context.output.talk_error(&error);
        Ok(crate::codes::of(error.code()).exit)
    }

    fn body(self) -> Result<Value> {
        let token = match &self.tunnel_token_from {
            None => None,
            Some(place) if place.starts_with("env:") || place.starts_with("file:") => {
                Some(config::resolve_secret(place)?)
            }
            Some(_) => {
                return Err(Error::invalid("--tunnel-token-from takes env:NAME or file:PATH")
                    .remedy("put the token into a file with mode 0600 and name it: file:PATH"));
            }
        };
        let mut body = Map::new();
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), Value::String(value));
            }
        };
        put("host", Some(self.host));
        put("ssh_user", self.ssh_user);
        put("ssh_key_path", self.ssh_key.map(absolute).transpose()?);
        put("identity", self.identity);
        put("services", self.services);
        put("tunnel_token", token.map(|token| token.to_string()));
        put("remote_llm_url", self.remote_llm_url);
        put("image", self.image);
        if let Some(port) = self.ssh_port {
            body.insert("ssh_port".to_owned(), port.into());
        }
        body.insert("tags".to_owned(), self.tags.into());
        body.insert("dry_run".to_owned(), self.plan.into());
        Ok(Value::Object(body))
    }
}

/// The daemon has another working directory.
fn absolute(path: String) -> Result<String> {
    let absolute = std::path::absolute(&path)
        .map_err(|e| Error::invalid(format!("--ssh-key {path} is not a path")).source(e))?;
    Ok(absolute.to_string_lossy().into_owned())
}

fn plan_text(plan: &PlanView) -> String {
    let mut text = plan.plan.to_string();
    for finding in &plan.findings {
        text.push_str(&format!("\n{finding}"));
    }
    text.push_str("\nNothing was changed.");
    text
}

/// Says every step as it ends, until the deployment has.
async fn watch(context: &Context, client: &Client, mut view: DeploymentView) -> Result<DeploymentView> {
    let mut said = 0;
    loop {
        said = say_steps(context, &view.steps, said);
        if view.state.is_final() {
            for finding in &view.findings {
                context.output.say(&crate::tools::clean(&finding.to_string()));
            }
            if let Some(log) = view.log_tail.as_ref().filter(|_| view.state != DeploymentState::Ready) {
                context.output.say("The host's log ends with:");
                for line in log.lines() {
                    context.output.say(&format!("  {}", crate::tools::clean(line)));
                }
            }
            return Ok(view);
        }
        let path = format!(
            "/deployments/{}?wait_seconds={WAIT_SECONDS}&since_event={}",
            segment(view.deployment_id.as_str()),
            view.event
        );
        view = client.get(&path).await?;
    }
}

fn say_steps(context: &Context, steps: &[StepView], said: usize) -> usize {
    let ended: Vec<_> = steps.iter().take_while(|step| step.state.is_ended()).collect();
    for step in ended.iter().skip(said) {
        let seconds = step.duration_ms.map(|ms| format!(" {}.{} s", ms / 1000, ms % 1000 / 100));
        let message = step
            .message
            .as_ref()
            .or(step.evidence.as_ref())
            .map(|text| format!("  {}", crate::tools::clean(text)));
        context.output.say(&format!(
            "{:<10}{}{}{}",
            step.name.name(),
            step.state.name(),
            seconds.unwrap_or_default(),
            message.unwrap_or_default()
        ));
    }
    ended.len().max(said)
}
