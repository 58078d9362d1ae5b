//! `aegis agent`: manifests of executions, registered by name.

use std::{io::Read, path::PathBuf};

use clap::Subcommand;
use cluster_core::{
    controller::agents::{AgentDetail, AgentView, Applied, Deleted, MANIFEST_BYTES_MAX, Outcome},
    types::{
        agent::AgentReference,
        error::{Error, Result},
    },
};
use serde::Deserialize;
use serde_json::Value;

use super::{Context, output::table, segment, shown};

#[derive(Debug, Subcommand)]
pub enum Agent {
    /// Register a manifest (kind: Agent); another content than before is a version more
    Apply {
        /// YAML or JSON; - reads standard input
        #[arg(long, short, value_name = "FILE|-")]
        file: PathBuf,
    },
    /// The newest version of each
    List,
    /// One version, the newest by default, with its manifest and what it runs
    Get {
        name: String,
        #[arg(long, value_name = "N")]
        version: Option<u32>,
    },
    /// All versions, or one; executions keep what they were given
    Delete {
        name: String,
        #[arg(long, value_name = "N")]
        version: Option<u32>,
    },
}

#[derive(Deserialize)]
struct Agents {
    agents: Vec<AgentView>,
}

impl Agent {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        match self {
            Agent::Apply { file } => {
                let applied: Applied = client.post_text("/v1/agents", read(&file)?).await?;
                context.output.show(&applied, || applied_text(&applied))
            }
            Agent::List => {
                let data: Value = client.get("/v1/agents").await?;
                let list = Agents::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?
                    .agents;
                context.output.show(&data, || agents_table(list))
            }
            Agent::Get { name, version } => {
                let detail: AgentDetail = client.get(&path(&name, version)).await?;
                context.output.show(&detail, || detail_text(&detail))
            }
            Agent::Delete { name, version } => {
                let deleted: Deleted = client.delete(&path(&name, version)).await?;
                context.output.show(&deleted, || {
                    let s = if deleted.versions == 1 { "" } else { "s" };
                    format!("{}: {} version{s} deleted", deleted.name, deleted.versions)
                })
            }
        }
    }
}

fn path(name: &str, version: Option<u32>) -> String {
    let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
    format!("/v1/agents/{}{query}", segment(name))
}

fn read(file: &std::path::Path) -> Result<String> {
    let from: Box<dyn Read> =
        match file.to_str() {
            Some("-") => Box::new(std::io::stdin()),
            _ => Box::new(std::fs::File::open(file).map_err(|e| {
                Error::invalid(format!("the manifest {} cannot be read", shown(file))).source(e)
            })?),
        };
    let mut text = String::new();
    // One byte more than is taken: the daemon says that it is too large.
    let bound = u64::try_from(MANIFEST_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    from.take(bound)
        .read_to_string(&mut text)
        .map_err(|e| Error::invalid(format!("the manifest {} is not text", shown(file))).source(e))?;
    Ok(text)
}

fn applied_text(applied: &Applied) -> String {
    let AgentView { name, version, .. } = &applied.agent;
    let reference = AgentReference::version(name.clone(), *version);
    let mut text = match applied.outcome {
        Outcome::Created => format!("{reference} is registered; run it with: aegis run --agent {name}"),
        Outcome::Unchanged => format!("{reference} has this content already."),
    };
    text.push_str(&not_used(&applied.agent));
    text
}

fn not_used(agent: &AgentView) -> String {
    match agent.not_used.is_empty() {
        true => String::new(),
        false => format!("\nNot used here: {}.", agent.not_used.join(", ")),
    }
}

fn detail_text(detail: &AgentDetail) -> String {
    let agent = &detail.agent;
    let mut text = format!("{}@{}, registered {}", agent.name, agent.version, agent.created_at);
    match &agent.image {
        Some(image) => text.push_str(&format!("\nimage {image}")),
        None => text.push_str("\nno image: its language is not in spec.runtime.images any more"),
    }
    if let Some(description) = &agent.description {
        text.push_str(&format!("\n{description}"));
    }
    text.push_str(&not_used(agent));
    // It was read from YAML.
    let manifest = serde_saphyr::to_string(&detail.manifest).unwrap_or_else(|_| detail.manifest.to_string());
    format!("{text}\n\n{manifest}")
}

fn agents_table(list: Vec<AgentView>) -> String {
    let rows = list
        .into_iter()
        .map(|agent| {
            vec![
                agent.name.to_string(),
                agent.version.to_string(),
                agent.image.unwrap_or_default(),
                agent.created_at,
                agent.description.unwrap_or_default(),
            ]
        })
        .collect();
    table(&["agent", "version", "image", "registered at", "description"], rows)
}
