//! Models for the stack's Ollama. They are pulled over its HTTP API through the connection. If sshd forwards no TCP
//! channels or the stack does not publish the API, Ollama's command in the container is used.
//!
//! Models that are present are not pulled. Only the registry knows the size of a model, so progress is reported as the
//! pull states it. A pull that was cut resumes where it stopped when it is requested again.

use std::{collections::BTreeSet, time::Duration};

use aegis_ssh::script::tail;
use aegis_types::error::{Error, ErrorCode, Result};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::stack::OllamaService;
use crate::{
    host::{
        HostSession,
        compose::{PULL_LIMIT, pull_failed},
        http::{self, Asked, Reply},
    },
    model::names::ModelName,
};

/// Longest silence of a pull. Ollama reports several times a second, but a registry may be slow.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// One line of the response stream of `/api/pull`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    status: String,
    total: Option<u64>,
    completed: Option<u64>,
    error: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Progress { text: String, total: u64 },
    Success,
    Failed(String),
}

#[derive(Deserialize)]
struct Tags {
    models: Vec<Tag>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
}

/// Pulls missing models and returns the evidence.
pub async fn ensure(
    remote: HostSession<'_>,
    ollama: &OllamaService,
    models: &[ModelName],
    mut progress: impl FnMut(String),
) -> Result<String> {
    let (there, port) = present(remote, ollama).await?;
    let mut done = Vec::new();
    for model in models {
        if there.contains(&model.with_tag()) {
            done.push(format!("{model} was there"));
            continue;
        }
        progress(format!("pulling {model}"));
        let megabytes = match port {
            Some(port) => pull(remote, port, model, &mut progress).await?,
            None => {
                remote.exec_pull(&ollama.service, model).await?;
                0
            }
        };
        done.push(match megabytes {
            0 => format!("pulled {model}"),
            megabytes => format!("pulled {model} ({megabytes} MB)"),
        });
    }
    Ok(done.join(", "))
}

/// Returns the present models, and the port of Ollama's API.
async fn present(remote: HostSession<'_>, ollama: &OllamaService) -> Result<(BTreeSet<String>, Option<u16>)> {
    if let Some(port) = ollama.port {
        match http::get(remote.connection, port, "/api/tags").await? {
            Reply::Answer { status: 200, body } => {
                let tags: Tags = serde_json::from_slice(&body).map_err(|error| {
                    Error::new(ErrorCode::DeploymentFailed, "Ollama's list of models cannot be read")
                        .source(error)
                })?;
                return Ok((tags.models.into_iter().map(|tag| tag.name).collect(), Some(port)));
            }
            Reply::Forbidden => {}
            Reply::Answer { .. } | Reply::Nothing => {
                return Err(Error::new(
                    ErrorCode::DeploymentFailed,
                    format!("Ollama does not answer on port {port} of the host"),
                ));
            }
        }
    }
    Ok((listed(&remote.exec_models(&ollama.service).await?), None))
}

/// Parses `ollama list`: a head line, then one line a model that begins with its name.
fn listed(text: &str) -> BTreeSet<String> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Pulls a model. Returns the megabytes of its largest layer.
async fn pull(
    remote: HostSession<'_>,
    port: u16,
    model: &ModelName,
    progress: &mut impl FnMut(String),
) -> Result<u64> {
    let deadline = Instant::now() + PULL_LIMIT;
    let body = serde_json::json!({ "model": model.as_str() }).to_string();
    let failed = |why: &str| pull_failed(model, why);
    let asking = http::post(remote.connection, port, "/api/pull", &body);
    let mut lines = match timeout(SILENCE_MAX, asking).await {
        Ok(asked) => match asked? {
            Asked::Lines(lines) => lines,
            Asked::Nothing | Asked::Forbidden => return Err(failed("it does not answer")),
        },
        Err(_) => return Err(failed("it says nothing")),
    };
    let mut largest = 0;
    while Instant::now() < deadline {
        let line = timeout(SILENCE_MAX, lines.next()).await;
        let line = line.map_err(|_| failed("it has said nothing for 120 s"))?;
        let Some(line) = line? else {
            return Err(Error::new(
                ErrorCode::Unavailable,
                format!("the pull of model {model} ended before it was done"),
            )
            .remedy("deploy again: it goes on where it stopped"));
        };
        match event(model, &line) {
            None => {}
            Some(Event::Progress { text, total }) => {
                largest = largest.max(total);
                progress(text);
            }
            Some(Event::Success) => return Ok(largest / 1_000_000),
            Some(Event::Failed(why)) => return Err(failed(&why)),
        }
    }
    Err(failed("it takes more than six hours"))
}

/// Parses a line. Ollama's errors have the same form before and within the stream.
fn event(model: &ModelName, line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    if let Some(error) = line.error {
        return Some(Event::Failed(tail(&error, 1)));
    }
    if line.status == "success" {
        return Some(Event::Success);
    }
    let total = line.total.unwrap_or(0);
    let text = match total {
        0 => format!("pulling {model}: {}", tail(&line.status, 1)),
        total => {
            let percent = u128::from(line.completed.unwrap_or(0)) * 100 / u128::from(total);
            format!("pulling {model}: {percent} % of {} MB", total / 1_000_000)
        }
    };
    Some(Event::Progress { text, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_read() {
        let model = ModelName::parse("llama3.2").unwrap();
        let progress = |text: &str, total| Some(Event::Progress { text: text.into(), total });
        for (line, expected) in [
            (r#"{"status":"pulling manifest"}"#, progress("pulling llama3.2: pulling manifest", 0)),
            (
                r#"{"status":"downloading x","digest":"x","total":2142590208,"completed":1071295104}"#,
                progress("pulling llama3.2: 50 % of 2142 MB", 2_142_590_208),
            ),
            (
                r#"{"status":"downloading x","digest":"x","total":2142590208}"#,
                progress("pulling llama3.2: 0 % of 2142 MB", 2_142_590_208),
            ),
            (r#"{"status":"success"}"#, Some(Event::Success)),
            (
                r#"{"error":"pull model manifest: file does not exist"}"#,
                Some(Event::Failed("pull model manifest: file does not exist".into())),
            ),
            ("", None),
            ("noise", None),
        ] {
            assert_eq!(event(&model, line), expected, "{line}");
        }
    }

    #[test]
    fn the_commands_list_is_read() {
        let text = "NAME             ID            SIZE    MODIFIED\nllama3.2:latest  a80c4f17acd5  2.0 GB  3 weeks ago\n";
        assert_eq!(listed(text), BTreeSet::from(["llama3.2:latest".to_owned()]));
        assert!(listed("").is_empty());
    }
}
