//! What is done on the host, each as one constant script: idempotent, so that a cut connection is
//! answered by doing it again.

use std::time::Duration;

use super::{
    release::{COMPOSE_FILE, CONFIG_FILE, ENV_FILE, NOTE_FILE, OVERRIDE_FILE, ReleaseFiles},
    stack::PROJECT,
};
use crate::{
    error::{Error, ErrorCode, Result},
    ids::{DeploymentId, NodeId},
    ssh::{Connection, ScriptOutput, script::tail},
};

const SHORT: Duration = Duration::from_secs(30);
const UP_LIMIT: Duration = Duration::from_secs(180);
const LOAD_LIMIT: Duration = Duration::from_secs(600);
const PULL_LIMIT: Duration = Duration::from_secs(1800);
const RELEASES_KEPT: &str = "5";
pub const LOG_LINES: usize = 20;

/// The host as one deployment works on it.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    pub connection: &'a Connection,
    pub base: &'a str,
}

/// What there was to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// The release before runs again.
    Previous,
    /// This deployment never became the current release.
    Untouched,
    /// There was none before.
    First,
}

/// Keeps every other deployment off the host while it lives, and no longer than the connection.
pub use crate::ssh::Held as HostLock;

impl Remote<'_> {
    /// `flock` held by a process of this session; a busy host says who holds it. A holder that is this
    /// same deployment is left from a connection that was cut, and is ended.
    pub async fn lock(&self, deployment: &DeploymentId, owner: &str, now: &str) -> Result<HostLock> {
        let who = format!("{deployment} of {owner} since {now}");
        let arguments = [self.base, deployment.as_str(), &who];
        let (output, held) = self.connection.hold(LOCK, &arguments, "AEGIS-LOCK", SHORT).await?;
        if let Some(holder) = output.stdout.lines().find_map(|line| line.strip_prefix("BUSY ")) {
            let host = &self.connection.target().host;
            return Err(Error::new(
                ErrorCode::HostBusy,
                format!("{host} is held by deployment {}", tail(holder, 1)),
            )
            .remedy("wait for it to end; get_deployment_status follows it where it was started"));
        }
        if !output.stdout.lines().any(|line| line == "AEGIS-LOCK") {
            return Err(Error::new(
                ErrorCode::DeploymentFailed,
                format!("{} cannot be made or locked", self.base),
            )
            .remedy("make it writable for the ssh user"));
        }
        Ok(held)
    }

    /// Sends a release and switches to it in one rename; what ran before is noted beside it.
    pub async fn upload(&self, files: &ReleaseFiles, deployment: &DeploymentId, node: &NodeId) -> Result<()> {
        let release = format!("{}/releases/{deployment}", self.base);
        self.run("make the release directory", PREPARE, &[self.base, deployment.as_str()], SHORT).await?;
        // The note comes last: a release without one is incomplete.
        let note = files.note(deployment, node)?;
        let all = files.iter().chain([(NOTE_FILE, note.as_slice())]);
        if self.connection.is_elevated() {
            for (name, content) in all {
                self.write_as_root(&format!("{release}/{name}"), content).await?;
            }
        } else {
            let sftp = self.connection.sftp().await?;
            for (name, content) in all {
                sftp.write_file(&format!("{release}/{name}"), content, 0o600).await?;
            }
        }
        self.switch_to(deployment).await
    }

    /// SFTP runs as the login's user. The content goes over standard input, seen by nobody.
    async fn write_as_root(&self, path: &str, content: &[u8]) -> Result<()> {
        let (length, input) = (content.len().to_string(), std::io::Cursor::new(content.to_vec()));
        let output = self.connection.script_with_input(WRITE, &[path, &length], input, SHORT).await?;
        checked(output, &format!("write {path}")).map(drop)
    }

    /// Whether this login works on the host by `sudo -n`, for whoever has not examined the host.
    pub async fn needs_sudo(&self) -> Result<bool> {
        Ok(self.connection.script(NEEDS_SUDO, &[self.base], SHORT).await?.success())
    }

    pub async fn switch_to(&self, deployment: &DeploymentId) -> Result<()> {
        let arguments = [
            self.base,
            deployment.as_str(),
            RELEASES_KEPT,
            COMPOSE_FILE,
            OVERRIDE_FILE,
            ENV_FILE,
            CONFIG_FILE,
        ];
        self.run("switch to the release", SWITCH, &arguments, SHORT).await.map(drop)
    }

    /// Whether the whole release of this deployment lies on the host.
    pub async fn has_release(&self, deployment: &DeploymentId) -> Result<bool> {
        let output = self.connection.script(HAS_RELEASE, &[self.base, deployment.as_str()], SHORT).await?;
        Ok(output.success())
    }

    pub async fn missing_images(&self, references: &[String]) -> Result<Vec<String>> {
        let arguments: Vec<&str> = references.iter().map(String::as_str).collect();
        let output = self.run("look for images", MISSING_IMAGES, &arguments, SHORT).await?;
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    pub async fn load(&self, image: &super::image::NodeImage) -> Result<()> {
        let output =
            self.connection.script_with_input("docker load -q", &[], image.reader(), LOAD_LIMIT).await?;
        checked(output, &format!("load the image {}", image.reference)).map(drop)
    }

    pub async fn pull(&self, reference: &str) -> Result<()> {
        let output = self.connection.script(r#"docker pull -q "$1""#, &[reference], PULL_LIMIT).await?;
        if output.success() {
            return Ok(());
        }
        let why = tail(&output.stderr, 2).replace('\n', " ");
        Err(Error::new(ErrorCode::ImageNotFound, format!("the host cannot pull {reference}: {why}")).remedy(
            "check the image's name and that the host reaches its registry, or load it there: docker load",
        ))
    }

    /// What Compose did, a line a container.
    pub async fn up(&self) -> Result<Vec<String>> {
        let output = self.run("docker compose up", UP, &[self.base, PROJECT], UP_LIMIT).await?;
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
        Ok(containers.into_iter().map(|(name, verb)| format!("{name} {}", verb.to_lowercase())).collect())
    }

    /// `docker compose ps -a --format json`, as it printed it.
    pub async fn containers(&self) -> Result<String> {
        Ok(self.run("docker compose ps", PS, &[self.base, PROJECT], SHORT).await?.stdout)
    }

    pub async fn logs(&self, service: &str, lines: usize) -> Result<String> {
        let lines_text = lines.to_string();
        let output = self.connection.script(LOGS, &[self.base, PROJECT, service, &lines_text], SHORT).await?;
        Ok(tail(&output.stdout, lines))
    }

    pub async fn read_public_key(&self) -> Result<Option<String>> {
        let output = self
            .connection
            .script(r#"head -c 200 "$1/run/node.pub" 2>/dev/null"#, &[self.base], SHORT)
            .await?;
        Ok(Some(output.stdout.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    /// Back to what the release of this deployment replaced, if it replaced anything.
    pub async fn back(&self, deployment: &DeploymentId) -> Result<Back> {
        let output =
            self.run("find the previous release", PREVIOUS, &[self.base, deployment.as_str()], SHORT).await?;
        match output.stdout.trim().split_once(' ').unwrap_or((output.stdout.trim(), "")) {
            ("previous", previous) => {
                self.switch_to(&DeploymentId::parse(previous)?).await?;
                self.up().await?;
                Ok(Back::Previous)
            }
            ("untouched", _) => Ok(Back::Untouched),
            _ => Ok(Back::First),
        }
    }

    /// Takes the stack and every file of ours away; volumes stay.
    pub async fn remove(&self, image: Option<&str>) -> Result<()> {
        let arguments = [
            self.base,
            PROJECT,
            image.unwrap_or_default(),
            COMPOSE_FILE,
            OVERRIDE_FILE,
            ENV_FILE,
            CONFIG_FILE,
        ];
        self.run("clean the host", REMOVE, &arguments, UP_LIMIT).await.map(drop)
    }

    async fn run(
        &self,
        what: &str,
        script: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<ScriptOutput> {
        let output = self.connection.script(script, args, limit).await?;
        checked(output, what)
    }
}

fn checked(output: ScriptOutput, what: &str) -> Result<ScriptOutput> {
    if output.success() {
        return Ok(output);
    }
    let why = tail(&output.stderr, 3).replace('\n', " ");
    Err(Error::new(
        ErrorCode::DeploymentFailed,
        format!("{what} failed on the host (exit {}): {why}", output.status),
    ))
}

/// $1 base.
const NEEDS_SUDO: &str = r#"
[ "$(id -u)" != 0 ] || exit 1
dir=$1
while [ ! -e "$dir" ] && [ "$dir" != / ]; do dir=$(dirname "$dir"); done
if [ -w "$dir" ] && docker version >/dev/null 2>&1; then exit 1; fi
sudo -n sh -c 'docker version' >/dev/null 2>&1
"#;

/// $1 path, $2 length: what was cut off on the way never takes the file's place. What is made by sudo
/// belongs to the login's user, who runs the link, and as whom the node runs.
const WRITE: &str = r#"
set -e
cat > "$1.new"
[ "$(wc -c < "$1.new")" -eq "$2" ]
[ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1.new"
sync -- "$1.new" 2>/dev/null || sync
mv -f -- "$1.new" "$1"
"#;

/// $1 base, $2 deployment, $3 who. Standard input stays open while we hold the lock.
const LOCK: &str = r#"
mkdir -p -m 700 -- "$1" || exit 1
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1" || exit 1
exec 9>>"$1/.lock" || exit 1
if ! flock -n 9; then
  read -r pid holder < "$1/.lock.owner" || true
  case "$pid" in ''|*[!0-9]*) pid=0;; esac
  case "$holder" in "$2 "*)
    if [ "$pid" -gt 1 ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$2"; then
      kill $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
    fi;;
  esac
  if ! flock -w 3 9; then printf 'BUSY %s\n\nAEGIS-LOCK\n' "$holder"; exit 75; fi
fi
printf '%s %s\n' "$$" "$3" > "$1/.lock.owner"
printf '\nAEGIS-LOCK\n'
# Without the lock: only the shell holds it, so only the shell must end to free it.
cat 9>&- >/dev/null
"#;

/// $1 base, $2 deployment.
const PREPARE: &str = r#"
set -e
cd -- "$1"
mkdir -p -m 700 releases run
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" releases run
previous=$(readlink current 2>/dev/null || true); previous=${previous#releases/}
rm -rf -- "releases/$2.part"
if [ "$previous" != "$2" ]; then
  rm -rf -- "releases/$2"; mkdir -m 700 -- "releases/$2"
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "releases/$2"
  printf '%s\n' "$previous" > "releases/$2/previous"
fi
"#;

/// $1 base, $2 deployment, $3 releases kept, then the files that people look for at the top.
const SWITCH: &str = r#"
set -e
cd -- "$1"
id=$2; kept=$3; shift 3
[ -f "releases/$id/release.json" ]
rm -f current.new; ln -s "releases/$id" current.new; mv -T -- current.new current
for file in "$@"; do
  if [ -e "$file" ] && [ ! -L "$file" ]; then mv -- "$file" "$file.before-aegis"; fi
  if [ -e "current/$file" ]; then ln -sfn "current/$file" "$file"; else rm -f -- "$file"; fi
done
sync
previous=$(cat "current/previous" 2>/dev/null || true)
n=0
for release in $(ls -1t releases); do
  n=$((n + 1))
  if [ $n -gt "$kept" ] && [ "$release" != "$id" ] && [ "$release" != "$previous" ]; then rm -rf -- "releases/$release"; fi
done
"#;

/// $1 base, $2 deployment.
const HAS_RELEASE: &str = r#"[ -f "$1/releases/$2/release.json" ]"#;

const MISSING_IMAGES: &str =
    r#"for image in "$@"; do docker image inspect "$image" >/dev/null 2>&1 || printf '%s\n' "$image"; done"#;

/// $1 base, $2 project. The login's own variables must not win over .env. A key that no container of
/// ours can have written is stale.
const UP: &str = r#"
cd -- "$1" || exit 1
[ -n "$(docker ps -aq --filter "label=com.docker.compose.project=$2" --filter 'label=aegis.config_digest')" ] || rm -f run/node.pub run/node.sock
env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" up -d --remove-orphans --no-build
"#;

const PS: &str =
    r#"cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" ps -a --format json"#;

/// $1 base, $2 project, $3 service, $4 lines.
const LOGS: &str = r#"cd -- "$1" && env -i PATH="$PATH" HOME="$HOME" docker compose -p "$2" logs --no-color --no-log-prefix --tail "$4" "$3" 2>&1"#;

/// $1 base, $2 deployment. A release that never became the current one changed nothing; one whose
/// predecessor is current again is being put back, and is put back once more.
const PREVIOUS: &str = r#"
[ -d "$1" ] || { echo first; exit 0; }
cd -- "$1" || exit 1
current=$(readlink current 2>/dev/null || true); current=${current#releases/}
previous=$(cat "releases/$2/previous" 2>/dev/null || true)
if [ -n "$current" ] && [ "$current" != "$2" ]; then
  if [ -f "releases/$2/release.json" ] && [ "$current" = "$previous" ]; then echo "previous $previous"
  else rm -rf -- "releases/$2"; echo untouched; fi
elif [ -n "$previous" ] && [ -f "releases/$previous/release.json" ]; then echo "previous $previous"
else echo first; fi
"#;

/// $1 base, $2 project, $3 image or empty, then the files at the top.
const REMOVE: &str = r#"
[ -d "$1" ] || exit 0
cd -- "$1" || exit 1
project=$2; image=$3; base=$1; shift 3
if [ -e docker-compose.yml ]; then
  env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" down --remove-orphans || exit 1
fi
[ -z "$image" ] || docker image rm "$image" >/dev/null 2>&1
for file in "$@"; do
  if [ -L "$file" ]; then rm -f -- "$file"; fi
  if [ -e "$file.before-aegis" ]; then mv -- "$file.before-aegis" "$file"; fi
done
rm -rf -- releases current current.new run .lock .lock.owner
# A stack that lay here before us runs again.
if [ -e docker-compose.yml ]; then env -i PATH="$PATH" HOME="$HOME" docker compose -p "$project" up -d || exit 1; fi
cd / && rmdir -- "$base" 2>/dev/null
true
"#;
