//! The stack on the host, by Docker Compose.

use super::{
    super::{Secret, env_file, health::CONTAINER_FORMAT, models, names::ModelName, stack::PROJECT},
    Remote, SHORT, UP_LIMIT,
};
use crate::{
    engine::{STARTS_MAX, is_broken_start},
    error::{Error, ErrorCode, Result},
    ids::shown,
    ssh::script::tail,
};

const LOG_LINES_MAX: u32 = 1000;
const LOG_LINES_DEFAULT: u32 = 200;
const LOG_SECONDS_MAX: u64 = 30 * 86_400;
/// Of one answer; the end is what is kept.
const LOG_BYTES_MAX: &str = "262144";
const SERVICES_MAX: usize = 32;

/// Which log lines of a node's services are wanted.
#[derive(Debug, Clone)]
pub struct LogsAsked {
    services: Vec<String>,
    lines: u32,
    since_seconds: Option<u64>,
}

impl LogsAsked {
    /// No services: all of them. `lines` of each, 1 to 1000, 200 by default; `since_seconds` back from now.
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

impl Remote<'_> {
    /// The last lines that the services wrote, each with its service and time. Untrusted text without
    /// control characters.
    pub async fn logs_of(&self, asked: &LogsAsked) -> Result<String> {
        let lines = asked.lines.to_string();
        let since = asked.since_seconds.map(|seconds| format!("{seconds}s")).unwrap_or_default();
        let mut arguments = vec![self.base, PROJECT, &lines, &since, LOG_BYTES_MAX];
        arguments.extend(asked.services.iter().map(String::as_str));
        let output = self.connection.script(LOGS_OF, &arguments, SHORT).await?;
        // The last line is the exit status of Compose, which a pipe would swallow.
        let (text, status) = output.stdout.rsplit_once('\n').unwrap_or((&output.stdout, ""));
        let secrets = self.secrets().await?;
        let text =
            secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.reveal(), "(secret)"));
        let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        match output.success() && status == "0" {
            true => Ok(text),
            false => Err(Error::new(
                ErrorCode::DeploymentFailed,
                format!("the logs cannot be read: {}", tail(&text, 3).replace('\n', " ")),
            )
            .remedy("name services of the node's stack, or none for all of them")),
        }
    }

    /// What Compose did, a line a container. A start that the host's runtime broke off is made again.
    pub async fn up(&self) -> Result<Vec<String>> {
        let mut starts = 1;
        let output = loop {
            match self.run("docker compose up", UP, &[self.base, PROJECT], UP_LIMIT).await {
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
                // "Recreated" says more than the "Started" that follows it.
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

    /// The containers of the stack, for `health::Look` to read.
    pub async fn containers(&self) -> Result<String> {
        Ok(self.run("look at the containers", CONTAINERS, &[PROJECT, CONTAINER_FORMAT], SHORT).await?.stdout)
    }

    /// The models of the Ollama in this service, as its own command lists them.
    pub async fn exec_models(&self, service: &str) -> Result<String> {
        Ok(self.run("list the models", EXEC_MODELS, &[self.base, PROJECT, service], SHORT).await?.stdout)
    }

    pub async fn exec_pull(&self, service: &str, model: &ModelName) -> Result<()> {
        let arguments = [self.base, PROJECT, service, model.as_str()];
        let output = self.connection.script(EXEC_PULL, &arguments, models::PULL_LIMIT).await?;
        match output.success() {
            true => Ok(()),
            false => Err(models::failed(model, &tail(&output.stderr, 1))),
        }
    }

    pub async fn logs(&self, service: &str, lines: usize) -> Result<String> {
        let lines_text = lines.to_string();
        let output = self.connection.script(LOGS, &[self.base, PROJECT, service, &lines_text], SHORT).await?;
        Ok(tail(&output.stdout, lines))
    }

    /// What the stack was given in its `.env`: a service may print it.
    async fn secrets(&self) -> Result<Vec<Secret>> {
        let script = r#"head -c 1048576 "$1/.env" 2>/dev/null; true"#;
        let text = self.run("read what is secret", script, &[self.base], SHORT).await?.stdout;
        Ok(env_file::secrets(&text))
    }

    /// Takes the stack and every file of ours away, and the images of the node; volumes stay, unless they
    /// are to go.
    pub async fn remove(&self, volumes: bool) -> Result<()> {
        let volumes = if volumes { "volumes" } else { "" };
        let arguments = [self.base, PROJECT, volumes];
        self.run("clean the host", REMOVE, &arguments, UP_LIMIT).await.map(drop)
    }

    /// Ends what a script that was given up left running, and waits for its end.
    pub async fn end_work(&self) -> Result<()> {
        self.run("end what was under way", END_WORK, &[self.base], SHORT).await.map(drop)
    }
}

/// $1 base, $2 project. The login's own variables must not win over .env, which also names the
/// services; one that ran before and is not among them is taken away first, since it may hold a port.
/// A key that no container of ours can have written is stale.
const UP: &str = noted!(
    r#"
cd -- "$1" || exit 1
known=$(docker ps -a --filter "label=com.docker.compose.project=$2" --filter label=com.docker.compose.oneoff=False \
  --format '{{.ID}} {{.Label "com.docker.compose.service"}} {{.Label "aegis.config_digest"}}')
printf '%s\n' "$known" | grep -q '^[^ ]* [^ ]* .' || rm -f run/node.pub run/node.sock
services=$(sed -n 's/^AEGIS_SERVICES="\([^"]*\)"$/\1/p' .env)
if [ -n "$services" ]; then
  [ -z "$known" ] || printf '%s\n' "$known" | while read -r id service rest; do
    case " $services " in *" $service "*) ;; *) docker stop "$id" >/dev/null; docker rm "$id" >/dev/null;; esac
  done
fi
env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" up -d --remove-orphans --no-build $services
"#
);

/// $1 project, $2 format. The host's clock, then a line a container. Asked of the engine itself: Compose
/// leaves out restarts and times, and takes longer.
const CONTAINERS: &str = concat!(containers!(), "true\n");

/// $1 base, $2 project, $3 service.
const EXEC_MODELS: &str =
    r#"cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" exec -T "$3" ollama list"#;

/// $1 base, $2 project, $3 service, $4 model.
const EXEC_PULL: &str =
    r#"cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" exec -T "$3" ollama pull "$4""#;

/// $1 base, $2 project, $3 service, $4 lines. Escape sequences, of which Compose adds its own, go whole.
const LOGS: &str = r#"cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" logs --no-color --no-log-prefix --tail "$4" "$3" 2>&1 | sed "s/$(printf '\033')\[[0-9;]*[A-Za-z]//g""#;

/// $1 base, $2 project, $3 lines, $4 since or empty, $5 bytes, then services. The last line is the status.
const LOGS_OF: &str = r#"
cd -- "$1" && [ -e docker-compose.yml ] || { echo "there is no stack in $1"; exit 1; }
project=$2; lines=$3; since=$4; bytes=$5; shift 5
compose() { env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" "$@"; }
known=$(compose ps -a --services 2>&1) || { printf '%s\n' "$known"; exit 1; }
for service in "$@"; do
  printf '%s\n' "$known" | grep -qxF -- "$service" || { echo "there is no service $service, but" $known; exit 1; }
done
{
  compose logs --no-color --timestamps --tail "$lines" ${since:+--since "$since"} "$@" 2>&1
  printf '\n%s' "$?"
} | sed "s/$(printf '\033')\[[0-9;]*[A-Za-z]//g" | tail -c "$bytes"
"#;

/// $1 base, $2 project, $3 "volumes" or empty. What Compose leaves, because a
/// file of it is gone or a profile is not named, is found by its labels. Agents' containers go with the
/// node whose label they bear.
const REMOVE: &str = noted!(
    r#"
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
base=$1; project=$2; volumes=$3
node=$(sed -n 's/^AEGIS_NODE_ID="\(.*\)"$/\1/p' .env 2>/dev/null)
images=$(sed -n 's/^AEGIS_NODE_IMAGE="\(.*\)"$/\1/p' releases/*/.env 2>/dev/null | sort -u)
if [ -e docker-compose.yml ]; then
  env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" down --remove-orphans ${volumes:+-v} || exit 1
fi
of="label=com.docker.compose.project=$project"
for id in $(docker ps -aq --filter "$of"); do docker rm -f "$id" >/dev/null || exit 1; done
if [ -n "$node" ]; then
  for id in $(docker ps -aq --filter "label=aegis.node_id=$node"); do docker rm -f "$id" >/dev/null || exit 1; done
fi
for id in $(docker network ls -q --filter "$of"); do docker network rm "$id" >/dev/null || exit 1; done
if [ -n "$volumes" ]; then
  for id in $(docker volume ls -q --filter "$of"); do docker volume rm "$id" >/dev/null || exit 1; done
fi
for image in $images; do docker image rm "$image" >/dev/null 2>&1; done
for file in * .[!.]*; do
  if [ -L "$file" ]; then case "$(readlink -- "$file")" in current/*) rm -f -- "$file";; esac; fi
done
for kept in *.before-aegis .[!.]*.before-aegis; do
  if [ -e "$kept" ]; then mv -- "$kept" "${kept%.before-aegis}"; fi
done
rm -rf -- releases current current.new run
# A stack that lay here before us runs again.
if [ -e docker-compose.yml ]; then env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" up -d || exit 1; fi
rm -rf -- .work .lock .lock.owner
cd / && rmdir -- "$base" 2>/dev/null
true
"#
);

/// $1 base.
const END_WORK: &str = concat!(end_work!(), "rm -f -- \"$1/.work\"\n");
