//! `aegis up`: from nothing to a running node, and what to do next.

use std::path::{Path, PathBuf};

use clap::Args;
use cluster_core::{
    Failure, Result,
    cluster::peer::Role,
    config::StartedBy,
    execution::{lifecycle::State, view::ExecutionView},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context,
    client::Client,
    launch::{self, Launched},
    own_path, shown, status,
};
use crate::daemon::{HTTP_ADDRESS, HTTP_TOKEN};

#[derive(Debug, Args)]
pub struct Up {
    /// Configuration file, as for `serve`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What became of the small container.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Trial {
    Ran { execution_id: String, node_id: String, milliseconds: i64 },
    Failed { failure: Failure },
}

impl Up {
    pub async fn run(self, context: &Context) -> Result<()> {
        let launched = launch::ensure(context, self.config.as_deref(), StartedBy::Person).await?;
        let Launched { data_dir, client, health, started } = &launched;
        context.output.say(if *started { "The daemon was started." } else { "The daemon runs already." });
        let clients = Clients::of(data_dir)?;
        // A worker's cluster is asked at its controller, and there is its MCP.
        if health.role == Role::Worker {
            return status::show(context, client).await.map(drop);
        }
        let trial = if health.role.runs_executions() { Some(trial(client).await) } else { None };
        if !context.output.is_human() {
            let data = json!({ "health": client.health().await?, "trial": trial, "clients": clients });
            return context.output.show(&data, String::new);
        }
        status::show(context, client).await?;
        if let Some(trial) = &trial {
            context.output.show(&Value::Null, || format!("\n{}", trial.text()))?;
        }
        context.output.show(&Value::Null, || format!("\n{}", clients.text()))
    }
}

/// Runs one small container here. A failure is told, with what to do; it is no reason to end.
async fn trial(client: &Client) -> Trial {
    match try_container(client).await {
        Ok(trial) => trial,
        Err(error) => Trial::Failed { failure: Failure::from(&error) },
    }
}

async fn try_container(client: &Client) -> Result<Trial> {
    let view: ExecutionView = client.post("/v1/trial", &json!({})).await?;
    match (view.state, view.failure) {
        (State::Succeeded, _) => Ok(Trial::Ran {
            execution_id: view.execution_id.to_string(),
            node_id: view.node_id.map(|id| id.to_string()).unwrap_or_default(),
            milliseconds: view.ended_at_ms.unwrap_or(view.created_at_ms) - view.created_at_ms,
        }),
        (_, Some(failure)) => Ok(Trial::Failed { failure }),
        (state, None) => {
            Err(cluster_core::Error::internal(format!("the container ended as {}", state.name())))
        }
    }
}

impl Trial {
    fn text(&self) -> String {
        match self {
            Trial::Ran { node_id, milliseconds, .. } => {
                format!("A container ran on {node_id} in {milliseconds} ms.")
            }
            Trial::Failed { failure } => {
                let remedy = failure.remedy.as_deref().unwrap_or(
                    "start Docker and let this user use it; nodes you deploy run containers all the same",
                );
                format!("No container could run here: {}\n  {remedy}", failure.message)
            }
        }
    }
}

/// How assistants connect.
#[derive(Debug, Serialize)]
pub struct Clients {
    /// What every other command begins with.
    command: String,
    data_dir: String,
    claude_code: String,
    codex: String,
    cursor: Value,
    http_url: String,
    http_token_file: String,
}

impl Clients {
    pub fn of(data_dir: &Path) -> Result<Self> {
        let command = shown(&own_path()?);
        let dir = shown(data_dir);
        // Named only where it is not the default: then the command works in any environment.
        let is_default = cluster_core::config::Settings::of(
            &cluster_core::config::NodeConfig::default(),
            &cluster_core::config::Overrides::default(),
        )
        .is_ok_and(|settings| settings.data_dir == data_dir);
        let mut words = vec![command];
        if !is_default {
            words.extend(["--data-dir".to_owned(), dir.clone()]);
        }
        let prefix = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        words.push("mcp".to_owned());
        let line = format!("{prefix} mcp");
        let address = std::fs::read_to_string(data_dir.join(HTTP_ADDRESS))
            .map_or_else(|_| "127.0.0.1:8088".to_owned(), |text| text.trim().to_owned());
        let token = shown(&data_dir.join(HTTP_TOKEN));
        let origin = if address.contains("://") { address } else { format!("http://{address}") };
        let http_url = format!("{origin}/mcp");
        Ok(Self {
            claude_code: format!("claude mcp add aegis -- {line}"),
            codex: format!("codex mcp add aegis -- {line}"),
            cursor: json!({ "mcpServers": { "aegis": { "command": words[0], "args": words[1..] } } }),
            http_url,
            http_token_file: token,
            command: prefix,
            data_dir: dir,
        })
    }

    pub fn text(&self) -> String {
        format!(
            "Add it to an assistant:\n  \
             Claude Code   {}\n  \
             Codex         {}\n  \
             Cursor        {} in ~/.cursor/mcp.json\n  \
             over HTTP     {}  (bearer token in {})\n\n\
             Deploy a first machine:\n  \
             {} host approve HOST\n  \
             then ask the assistant, which calls deploy_edge_node {{\"host\": \"HOST\"}}, or: {} deploy HOST",
            self.claude_code,
            self.codex,
            self.cursor,
            self.http_url,
            self.http_token_file,
            self.command,
            self.command,
        )
    }
}

/// For a line that a person pastes into a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ':' | '=' | '+');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_to_paste_survive_a_shell() {
        assert_eq!(quoted("/opt/aegis"), "/opt/aegis");
        assert_eq!(quoted("/a b/it's"), "'/a b/it'\\''s'");
    }

    #[test]
    fn another_data_directory_is_named_in_the_clients_lines() {
        let clients = Clients::of(Path::new("/srv/aegis data")).unwrap();
        assert!(clients.claude_code.contains("--data-dir '/srv/aegis data' mcp"), "{}", clients.claude_code);
        assert_eq!(clients.cursor["mcpServers"]["aegis"]["args"][2], "mcp");
        assert!(clients.http_token_file.ends_with("http.token"));
    }
}
