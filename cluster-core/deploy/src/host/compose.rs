//! Runs the stack on the host with Docker Compose.

use std::{io::Cursor, time::Duration};

use aegis_engine::{STARTS_MAX, is_broken_start};
use aegis_ssh::script::{marker, tail};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::{Secret, redact},
    text::shown,
};

use super::{
    super::{
        env_file,
        health::{CONTAINER_FORMAT, StackSnapshot},
        stack::{COMPLETE, ComposeOutput, CustomProject, PROJECT_DIRECTORY, VARIABLES_FILE},
    },
    HostSession, SHORT, UP_TIMEOUT,
};
use crate::{
    host::scripts,
    model::{
        names::{ModelName, ServiceName},
        project::PROJECT,
        release::{OPERATOR_FILE, PRIVATE_FILE},
        spec::DeploymentSpec,
    },
};

const LOG_LINES_MAX: u32 = 1000;
const LOG_LINES_DEFAULT: u32 = 200;
const LOG_SECONDS_MAX: u64 = 30 * 86_400;
/// Size limit of one response; the end is kept.
const LOG_BYTES_MAX: &str = "262144";
const SERVICES_MAX: usize = 32;
/// Time for env files and compose files over a slow line, and for Compose to start.
const CONFIG_LIMIT: Duration = Duration::from_secs(120);

/// Selects log lines of a node's services.
#[derive(Debug, Clone)]
pub struct LogsAsked {
    services: Vec<String>,
    lines: u32,
    since_seconds: Option<u64>,
}

impl LogsAsked {
    /// Validates the selection. An empty `services` selects all. `lines` per service: 1 to 1000, default 200.
    /// `since_seconds` counts back from now.
    pub fn new(services: Vec<String>, lines: Option<u32>, since_seconds: Option<u64>) -> Result<Self> {
        if services.len() > SERVICES_MAX {
            return Err(Error::invalid("more than 32 services are named"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if let Some(name) =
            services.iter().find(|name| name.is_empty() || name.starts_with('-') || !name.chars().all(plain))
        {
            return Err(Error::invalid(format!("\"{}\" is no service's name", shown(name))));
        }
        let lines = lines.unwrap_or(LOG_LINES_DEFAULT);
        if !(1..=LOG_LINES_MAX).contains(&lines) {
            return Err(Error::invalid(format!("lines {lines} is out of range")).remedy("use 1 to 1000"));
        }
        if since_seconds.is_some_and(|seconds| !(1..=LOG_SECONDS_MAX).contains(&seconds)) {
            return Err(Error::invalid("since is out of range").remedy("use 1 second to 30 days"));
        }
        Ok(Self { services, lines, since_seconds })
    }
}

/// Messages of Compose when the engine does not answer; then no service is to blame.
const ENGINE_AWAY: [&str; 3] =
    ["Cannot connect to the Docker daemon", "error during connect", "permission denied"];

fn logs_unreadable(why: &str) -> Error {
    let message = format!("the logs cannot be read: {why}");
    if ENGINE_AWAY.iter().any(|words| why.contains(words)) {
        return Error::new(ErrorCode::Engine, message)
            .remedy("start Docker on the host: systemctl start docker; then ask again");
    }
    Error::new(ErrorCode::DeploymentFailed, message)
        .remedy("name services of the node's stack, or none for all of them")
}

impl HostSession<'_> {
    /// Asks the host's Compose for the meaning of a project. No file that Compose opens stays on the host. Returns
    /// `None` if the host has no Compose.
    pub async fn compose_config(
        &self,
        project: &CustomProject,
        spec: &DeploymentSpec,
        token: Option<&Secret>,
    ) -> Result<Option<ComposeOutput>> {
        let (marker, profiles) = (marker(), project.profiles());
        let second = if project.has_override() { OPERATOR_FILE } else { "" };
        let mut arguments =
            vec![PROJECT, PROJECT_DIRECTORY, COMPLETE, VARIABLES_FILE, marker.as_str(), &profiles, second];
        arguments.extend(spec.services.iter().map(ServiceName::as_str));
        let input = Cursor::new(project.archive(spec, token)?);
        let what = "docker compose config";
        let output = self.run_with(what, scripts::COMPOSE_CONFIG, &arguments, input, CONFIG_LIMIT).await?;
        if output.stdout.trim().is_empty() {
            return Ok(None);
        }
        parse_config(&output.stdout, &marker).map(Some).ok_or_else(|| {
            Error::new(ErrorCode::HostCheckFailed, "the host's answer to docker compose config was cut")
                .remedy("a project of more than 1 MiB cannot be read; leave out inline configs")
        })
    }

    /// Returns the last log lines of the services, each with its service and time. The text is untrusted, but free of
    /// control characters.
    pub async fn logs_of(&self, asked: &LogsAsked) -> Result<String> {
        let lines = asked.lines.to_string();
        let since = asked.since_seconds.map(|seconds| format!("{seconds}s")).unwrap_or_default();
        let mut arguments = vec![self.base, PROJECT, &lines, &since, LOG_BYTES_MAX];
        arguments.extend(asked.services.iter().map(String::as_str));
        let output = self.connection.script(scripts::LOGS_OF, &arguments, SHORT).await?;
        // The last line is the exit status of Compose, which a pipe would hide.
        let (text, status) = output.stdout.rsplit_once('\n').unwrap_or((&output.stdout, ""));
        let text = redact(text, &self.secrets().await?);
        let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        match output.success() && status == "0" {
            true => Ok(text),
            false => Err(logs_unreadable(&tail(&text, 3).replace('\n', " "))),
        }
    }

    /// Starts the stack. Returns the actions of Compose, one line per container. A start that the host's runtime
    /// aborted is retried. `waits` is the time for health checks and stops.
    pub async fn up(&self, waits: Duration) -> Result<Vec<String>> {
        let limit = UP_TIMEOUT + waits;
        let mut starts = 1;
        let output = loop {
            match self.run("docker compose up", scripts::UP, &[self.base, PROJECT], limit).await {
                Err(error) if starts < STARTS_MAX && is_broken_start(error.message()) => {
                    tracing::warn!(error = %error.chain(), "a broken start is made again");
                    starts += 1;
                }
                answer => break answer?,
            }
        };
        let mut containers: Vec<(String, String)> = Vec::new();
        for line in output.stderr.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [.., "Container", name, verb] = words.as_slice() else { continue };
            match containers.iter_mut().find(|(known, _)| known == name) {
                // "Recreated" says more than the "Started" that follows.
                Some((_, last)) if last != "Recreated" => *last = (*verb).to_owned(),
                Some(_) => {}
                None => containers.push(((*name).to_owned(), (*verb).to_owned())),
            }
        }
        let again =
            (starts > 1).then(|| format!("at start {starts}: the host's container runtime broke off"));
        let did = containers.into_iter().map(|(name, verb)| format!("{name} {}", verb.to_lowercase()));
        Ok(did.chain(again).collect())
    }

    /// Returns the containers of the stack, in the format of `health::StackSnapshot`.
    pub async fn containers(&self) -> Result<String> {
        Ok(self
            .run("look at the containers", scripts::CONTAINERS, &[PROJECT, CONTAINER_FORMAT], SHORT)
            .await?
            .stdout)
    }

    /// Returns the models of the Ollama in this service, as its own command lists them.
    pub async fn exec_models(&self, service: &str) -> Result<String> {
        Ok(self
            .run("list the models", scripts::EXEC_MODELS, &[self.base, PROJECT, service], SHORT)
            .await?
            .stdout)
    }

    pub async fn exec_pull(&self, service: &str, model: &ModelName) -> Result<()> {
        let arguments = [self.base, PROJECT, service, model.as_str()];
        let output = self.connection.script(scripts::EXEC_PULL, &arguments, PULL_LIMIT).await?;
        match output.success() {
            true => Ok(()),
            false => Err(pull_failed(model, &tail(&output.stderr, 1))),
        }
    }

    pub async fn logs(&self, service: &str, lines: usize) -> Result<String> {
        let lines_text = lines.to_string();
        let output =
            self.connection.script(scripts::LOGS, &[self.base, PROJECT, service, &lines_text], SHORT).await?;
        Ok(tail(&output.stdout, lines))
    }

    /// Returns the values that a service was given and may print: those of `.env`, of env files and of secret files of
    /// the current release.
    pub async fn secrets(&self) -> Result<Vec<Secret>> {
        let marker = marker();
        let arguments = [self.base, marker.as_str(), PRIVATE_FILE];
        let text = self.run("read what is secret", scripts::READ_SECRETS, &arguments, SHORT).await?.stdout;
        let separator = format!("\n{marker}\n");
        Ok(text.split(&separator).flat_map(env_file::secrets).collect())
    }

    /// Removes the stack, all files of the deployment and the images of the node. Removes volumes only on request. A
    /// stack that stood there before the first deployment is restored.
    pub async fn remove(&self, volumes: bool) -> Result<()> {
        let waits = StackSnapshot::parse(&self.containers().await?).stop_time();
        let volumes = if volumes { "volumes" } else { "" };
        let arguments = [self.base, PROJECT, volumes, ""];
        self.run("clean the host", scripts::REMOVE, &arguments, UP_TIMEOUT + waits).await.map(drop)
    }

    /// Removes the deployment's files only, since the project's containers belong to another stack.
    pub async fn remove_files(&self) -> Result<()> {
        let arguments = [self.base, PROJECT, "", "files"];
        self.run("clean the host", scripts::REMOVE, &arguments, UP_TIMEOUT).await.map(drop)
    }

    /// Ends processes left by an abandoned script, and waits for their end.
    pub async fn end_work(&self) -> Result<()> {
        self.run("end what was under way", scripts::END_WORK, &[self.base], SHORT).await.map(drop)
    }
}

/// Parses the script's output; `None` if a part is missing.
fn parse_config(text: &str, marker: &str) -> Option<ComposeOutput> {
    let separator = format!("{marker}\n");
    let parts: Vec<&str> = text.split(separator.as_str()).collect();
    let [_, places, services, profiles, json, stderr, status] = parts.as_slice() else { return None };
    let (top, directory) = places.trim_end().split_once('\n')?;
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    Some(ComposeOutput {
        services: names(services),
        profiles: names(profiles),
        json: (*json).to_owned(),
        stderr: (*stderr).to_owned(),
        succeeded: status.trim() == "0",
        directory: directory.to_owned(),
        top: top.to_owned(),
    })
}

/// Time limit of one model.
pub(crate) const PULL_LIMIT: Duration = Duration::from_secs(6 * 3600);

pub(crate) fn pull_failed(model: &ModelName, why: &str) -> Error {
    Error::new(ErrorCode::DeploymentFailed, format!("Ollama cannot pull model {model}: {why}"))
        .remedy("check the model's name, the host's free disk, and that the host reaches Ollama's registry")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_of_compose_config_is_whole_or_none() {
        let text = "M\n/run/a\n/run/a/1/p\nM\nweb\ndb\n\nM\n\nM\n{\"services\": {}}\nM\nwarning\n\nM\n0\n";
        let output = parse_config(text, "M").unwrap();
        assert_eq!(Vec::from_iter(output.services), ["db", "web"]);
        assert_eq!((output.top.as_str(), output.directory.as_str()), ("/run/a", "/run/a/1/p"));
        assert!(output.succeeded && output.profiles.is_empty());
        assert!(parse_config(&text[..text.len() - 4], "M").is_none());
    }

    #[test]
    fn engine_that_is_away_is_not_blamed_on_services() {
        let away = logs_unreadable("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.");
        assert_eq!(away.code(), ErrorCode::Engine);
        assert!(away.remedy_text().unwrap().contains("start Docker"));
        let unknown = logs_unreadable("there is no service web, but node");
        assert_eq!(unknown.code(), ErrorCode::DeploymentFailed);
        assert!(unknown.remedy_text().unwrap().contains("name services"));
    }
}
