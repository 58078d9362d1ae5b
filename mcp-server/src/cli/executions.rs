//! `aegis executions`: lists executions, shows their output, and cancels them.

use std::path::PathBuf;

use clap::Subcommand;
use cluster_core::types::{
    error::{Error, ErrorCode, Result},
    execution::{
        request::ResourceRequest,
        usage::Usage,
        view::{EventView, ExecutionView, SpecView},
    },
    ids::{ExecutionId, Tag},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    artifacts::Unpack,
    node,
    output::table,
    run::{follow, write},
    segment,
};

#[derive(Debug, Subcommand)]
pub enum Executions {
    /// List the latest executions
    List(Filter),
    /// Show one execution
    Get { id: String },
    /// Print the output so far
    Logs {
        id: String,
        /// Follow the output until the execution ends
        #[arg(long, short)]
        follow: bool,
    },
    /// Unpack the artifacts
    Artifacts {
        id: String,
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Replace existing files
        #[arg(long)]
        overwrite: bool,
    },
    /// Cancel the execution
    Cancel {
        id: String,
        #[arg(long)]
        reason: Option<String>,
    },
}

/// Filter of a list. All given conditions must hold.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// List only this state, like running or failed; may be repeated
    #[arg(long = "state", value_name = "STATE")]
    states: Vec<String>,
    /// List only executions with this label; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
    /// List only executions that are or were on this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// List only executions of this agent, in one version or in any
    #[arg(long, value_name = "NAME[@VERSION]")]
    agent: Option<String>,
    /// List only executions older than this one
    #[arg(long, value_name = "ID")]
    before: Option<String>,
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

impl Filter {
    fn path(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.limit.to_string());
        let lists = [("state", self.states.join(",")), ("label", self.labels.join(","))];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let one = |text: &Option<String>| text.clone();
        let ones = [("node_id", one(&self.node)), ("agent", one(&self.agent)), ("before", one(&self.before))];
        let ones = ones.into_iter().filter_map(|(name, text)| Some((name, text?)));
        for (name, text) in lists.chain(ones) {
            query.append_pair(name, &text);
        }
        format!("/v1/executions?{}", query.finish())
    }
}

#[derive(Deserialize)]
struct Shown {
    #[serde(flatten)]
    view: ExecutionView,
    spec: SpecView,
}

#[derive(Deserialize)]
struct List {
    executions: Vec<ExecutionView>,
    next: Option<ExecutionId>,
}

impl Executions {
    pub async fn run(self, context: &Context) -> Result<u8> {
        let client = context.client()?;
        match self {
            Executions::List(filter) => {
                let data: Value = client.get(&filter.path()).await?;
                let list = List::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?;
                context.output.show(&data, || executions_table(&list.executions))?;
                if let Some(next) = list.next.filter(|_| context.output.is_human()) {
                    context.output.say(&format!("older ones: aegis executions list --before {next}"));
                }
            }
            Executions::Get { id } => {
                let data: Value = client.get(&format!("/v1/executions/{}", segment(&id))).await?;
                let shown = Shown::deserialize(&data)
                    .map_err(|e| Error::internal("the execution is not understood").source(e))?;
                context.output.show(&data, || format!("{}{}", detail(&shown.view), request(&shown.spec)))?;
            }
            Executions::Logs { id, follow: true } => {
                follow(context, &client, &id, 0).await?;
            }
            Executions::Logs { id, follow: false } => logs(context, &id).await?,
            Executions::Artifacts { id, dir, overwrite } => {
                let view: ExecutionView = client.get(&format!("/v1/executions/{}", segment(&id))).await?;
                let Some(artifacts) = view.artifacts else {
                    return Err(match view.state.is_final() {
                        true => Error::new(ErrorCode::NotFound, format!("{id} left no artifacts"))
                            .remedy("name them with --artifact when it is submitted"),
                        false => Error::new(ErrorCode::FailedPrecondition, format!("{id} has not ended"))
                            .remedy(format!("follow it with: aegis executions logs {id} -f")),
                    });
                };
                let unpack = Unpack { into: dir, overwrite };
                unpack.run(context, &client, &view.execution_id, &artifacts).await?;
                context.output.show(&artifacts, String::new)?;
            }
            Executions::Cancel { id, reason } => {
                let path = format!("/v1/executions/{}/cancel", segment(&id));
                let view: ExecutionView = client.post(&path, &json!({ "reason": reason })).await?;
                context.output.show(&view, || format!("{} {}", view.execution_id, view.state.name()))?;
            }
        }
        Ok(0)
    }
}

/// Prints the output that is stored now.
async fn logs(context: &Context, id: &str) -> Result<()> {
    let client = context.client()?;
    let path = format!("/v1/executions/{}", segment(id));
    let view: ExecutionView = client.get(&path).await?;
    if view.last_sequence == 0 {
        return Ok(());
    }
    client
        .follow(&format!("{path}/events"), &format!("aegis executions logs {id}"), |name, data| {
            if name != "event" {
                return Ok(false);
            }
            let event: EventView = serde_json::from_str(data)
                .map_err(|e| Error::internal("an event is not understood").source(e))?;
            write(context, &event);
            Ok(event.sequence < view.last_sequence)
        })
        .await
}

fn executions_table(list: &[ExecutionView]) -> String {
    let rows = list
        .iter()
        .map(|view| {
            vec![
                view.execution_id.to_string(),
                view.state.name().to_owned(),
                view.node_id.as_ref().map(ToString::to_string).unwrap_or_default(),
                view.exit_code.map(|code| code.to_string()).unwrap_or_default(),
                view.image.clone(),
                cluster_core::types::clock::rfc3339(view.created_at_ms),
            ]
        })
        .collect();
    table(&["execution", "state", "node", "exit", "image", "created at"], rows)
}

/// Formats the request.
fn request(spec: &SpecView) -> String {
    let mut lines = Vec::new();
    let program = [spec.command.as_slice(), spec.args.as_slice()].concat();
    if !program.is_empty() {
        lines.push(format!("command {}", program.join(" ")));
    }
    let ResourceRequest { cpu, memory_mb, gpus, vram_gb } = &spec.resources;
    let mut resources =
        format!("{} CPUs, {} MiB memory", cpu.unwrap_or_default(), memory_mb.unwrap_or_default());
    if let Some(gpus) = gpus {
        resources.push_str(&format!(", {gpus} GPUs with {} GB in all", vram_gb.unwrap_or_default()));
    }
    lines.push(format!("{resources}, ends after {} s at most", spec.timeout_seconds));
    let words = |tags: &[Tag]| tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ");
    if !spec.target_tags.is_empty() {
        lines.push(format!("needs tags {}", words(&spec.target_tags)));
    }
    if let Some(pin) = &spec.node_id {
        lines.push(format!("pinned to {pin}"));
    }
    if let Some(retry) = &spec.retry {
        lines.push(format!("retried at most {} times when it fails", retry.max));
    }
    if !spec.after.is_empty() {
        let ids: Vec<_> = spec.after.iter().map(ToString::to_string).collect();
        lines.push(format!("runs after {}", ids.join(", ")));
    }
    if !spec.variables.is_empty() {
        lines.push(format!("variables {}", spec.variables.join(", ")));
    }
    lines.iter().map(|line| format!("\n{line}")).collect()
}

/// Formats the resources that an execution used.
fn used(usage: &Usage) -> String {
    let mut line = format!("wrote {} bytes", usage.output_bytes);
    if let (Some(cpu_ms), Some(memory)) = (usage.cpu_ms, usage.memory_peak_bytes) {
        let (seconds, tenths) = (cpu_ms / 1000, cpu_ms % 1000 / 100);
        line.push_str(&format!(
            ", used {seconds}.{tenths} s of CPU time and {} MiB",
            memory.div_ceil(1024 * 1024)
        ));
    }
    line
}

fn detail(view: &ExecutionView) -> String {
    let mut lines = vec![format!("{}: {}", view.execution_id, node::name(&view.state))];
    if let Some(agent) = &view.agent {
        lines.push(format!("agent {agent}"));
    }
    let retries =
        if view.retries > 0 { format!(", {} of them retries", view.retries) } else { String::new() };
    lines.push(format!("image {}, attempt {}{retries}", view.image, view.attempt));
    if !view.labels.is_empty() {
        let labels: Vec<_> = view.labels.iter().map(Tag::as_str).collect();
        lines.push(format!("labels {}", labels.join(", ")));
    }
    if let Some(id) = &view.node_id {
        lines.push(format!("node {id}"));
    }
    if let Some(code) = view.exit_code {
        lines.push(format!("exit code {code}"));
    }
    if let Some(artifacts) = &view.artifacts {
        let missing = artifacts.missing.iter().map(|path| format!("; nothing at {path}")).collect::<String>();
        lines.push(match &artifacts.problem {
            Some(problem) => format!("artifacts: {problem}"),
            None => format!("artifacts: {} files, {} bytes{missing}", artifacts.files, artifacts.bytes),
        });
    }
    if let Some(usage) = &view.usage {
        lines.push(used(usage));
    }
    if let Some(why) = &view.waiting {
        lines.push(format!("waiting: {why}"));
    }
    if let Some(failure) = &view.failure {
        lines.push(format!("{}: {}", failure.code, failure.message));
    }
    lines.join("\n")
}
