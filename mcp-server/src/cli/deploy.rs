//! `aegis deploy`: deploys one or several machines, and follows the deployment.

use std::time::Duration;

use clap::Args;
use cluster_core::{
    deploy::{DeploymentView, PlanView},
    types::error::{Error, Result},
};
use serde_json::{Map, Value, json};

use super::{Context, following, rollout};

/// Number of digits that name a plan on a command line.
const PLAN_DIGEST_SHOWN: usize = 12;

#[derive(Debug, Args)]
pub struct Deploy {
    /// Address or name of the machine, or of several machines
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// Deploy this many hosts at a time [default: spec.deploy.max_parallel]
    #[arg(long, value_name = "N")]
    max_parallel: Option<u32>,
    /// Start no further host after this many failures; 0 never stops [default: 1]
    #[arg(long, value_name = "N")]
    max_failures: Option<u32>,
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
    /// Compose services, comma-separated [default: node,ollama, or those of the configured compose
    /// file that have no profile]
    #[arg(long)]
    services: Option<String>,
    /// Profile of the configured compose file; may be repeated
    #[arg(long = "profile", value_name = "PROFILE")]
    profiles: Vec<String>,
    /// Start the stack only; the machine does not become a node
    #[arg(long)]
    no_join: bool,
    /// Model to pull into Ollama, like llama3.2; may be repeated
    #[arg(long = "model", value_name = "MODEL")]
    models: Vec<String>,
    /// Seconds for the stack to become healthy [default: 180]
    #[arg(long, value_name = "SECONDS")]
    health_timeout: Option<u32>,
    /// Source of the tunnel token, which never appears on the command line
    #[arg(long, value_name = "secret:NAME|env:NAME|file:PATH")]
    tunnel_token_from: Option<String>,
    #[arg(long, value_name = "URL")]
    remote_llm_url: Option<String>,
    #[arg(long)]
    image: Option<String>,
    /// Link between node and controller: ssh or direct [default: ssh]
    #[arg(long)]
    link: Option<String>,
    /// Check the host and print the plan; change nothing
    #[arg(long)]
    plan: bool,
    /// Carry out this plan, or nothing if the host has changed since it was printed
    #[arg(long, value_name = "DIGEST", conflicts_with = "plan")]
    plan_digest: Option<String>,
    /// Wait this long for another deployment of the host to end, like 60s or 5m
    #[arg(long, value_parser = super::node::duration, value_name = "TIME")]
    lock_wait: Option<Duration>,
    /// Replace a node that another cluster's controller deployed there
    #[arg(long)]
    take_over: bool,
    /// Print the deployment's id and exit; the deployment continues
    #[arg(long)]
    no_wait: bool,
}

impl Deploy {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        let (plan, no_wait) = (self.plan, self.no_wait);
        if self.hosts.len() > 1 {
            let body = self.rollout_body()?;
            return match plan {
                true => rollout::plan(context, &client, &body).await,
                false => rollout::run(context, &client, &body, no_wait).await,
            };
        }
        let body = Value::Object(self.body()?);
        if plan {
            let plan: PlanView = client.post("/deploy/edge-node", &body).await?;
            context.output.show(&plan, || plan_text(&plan))?;
            return Ok(rollout::plan_status(plan.findings.iter(), None));
        }
        let view: DeploymentView = client.post("/deploy/edge-node", &body).await?;
        following::to_its_end(context, &client, view, no_wait).await
    }

    /// Returns the body of a rollout. Shared options apply to every host; options of a single node are errors.
    fn rollout_body(mut self) -> Result<Value> {
        for (option, given) in
            [("--identity", self.identity.is_some()), ("--plan-digest", self.plan_digest.is_some())]
        {
            if given {
                return Err(Error::invalid(format!("{option} is of one host, and several are named"))
                    .remedy("deploy that host by itself"));
            }
        }
        let hosts: Vec<Value> = self.hosts.drain(..).map(|host| json!({ "host": host })).collect();
        let (parallel, failures) = (self.max_parallel, self.max_failures);
        let mut shared = self.body()?;
        let dry_run = shared.remove("dry_run");
        Ok(json!({
            "hosts": hosts, "shared": shared, "dry_run": dry_run,
            "max_parallel": parallel, "max_failures": failures,
        }))
    }

    fn body(self) -> Result<Map<String, Value>> {
        let token = match &self.tunnel_token_from {
            None => None,
            Some(place) if place.starts_with("env:") || place.starts_with("file:") => {
                Some(cluster_core::fs::resolve_secret(place)?)
            }
            // A secret of the controller, which opens it itself.
            Some(name) if name.starts_with("secret:") => Some(name.clone().into()),
            Some(_) => {
                return Err(Error::invalid("--tunnel-token-from takes secret:NAME, env:NAME or file:PATH")
                    .remedy("keep the token with `aegis secret set NAME`, then give secret:NAME"));
            }
        };
        let mut body = Map::new();
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                body.insert(name.to_owned(), Value::String(value));
            }
        };
        put("host", self.hosts.into_iter().next());
        put("ssh_user", self.ssh_user);
        put("ssh_key_path", self.ssh_key.map(absolute).transpose()?);
        put("identity", self.identity);
        put("services", self.services);
        put("tunnel_token", token.map(|token| token.to_string()));
        put("remote_llm_url", self.remote_llm_url);
        put("image", self.image);
        put("plan_digest", self.plan_digest);
        put("link", self.link);
        if let Some(port) = self.ssh_port {
            body.insert("ssh_port".to_owned(), port.into());
        }
        if let Some(seconds) = self.health_timeout {
            body.insert("health_timeout_seconds".to_owned(), seconds.into());
        }
        if let Some(wait) = self.lock_wait {
            body.insert("lock_wait_seconds".to_owned(), wait.as_secs().into());
        }
        body.insert("take_over".to_owned(), self.take_over.into());
        body.insert("tags".to_owned(), self.tags.into());
        body.insert("profiles".to_owned(), self.profiles.into());
        body.insert("models".to_owned(), self.models.into());
        body.insert("join".to_owned(), (!self.no_join).into());
        body.insert("dry_run".to_owned(), self.plan.into());
        Ok(body)
    }
}

/// Makes a path absolute, since the daemon has another working directory.
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
    if plan.can_deploy {
        let digest = plan.plan.digest.get(..PLAN_DIGEST_SHOWN).unwrap_or(&plan.plan.digest);
        text.push_str(&format!(
            " To carry out this plan and no other: the same command with --plan-digest {digest}"
        ));
    }
    text
}
