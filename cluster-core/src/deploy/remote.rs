//! What is done on the host, each as one constant script: idempotent, so that a cut connection is
//! answered by doing it again.

/// Ends the process group that `.work` under `$1` names, and waits for its end. Its leader is told from a
/// later process of the same number by the time it began.
macro_rules! end_work {
    () => {
        r#"
group=; begun=
read -r group begun < "$1/.work" 2>/dev/null
case "$group" in ''|0|1|*[!0-9]*) group=;; esac
if [ -n "$group" ] && [ -n "$begun" ]; then
  alive() { [ "$(sed 's/^.*) //' "/proc/$group/stat" 2>/dev/null | cut -d' ' -f20)" = "$begun" ]; }
  if alive; then
    kill -- "-$group" 2>/dev/null
    n=0; while alive && [ $n -lt 100 ]; do n=$((n + 1)); sleep 0.1; done
    if alive; then kill -9 -- "-$group" 2>/dev/null; fi
  fi
fi
"#
    };
}

/// Notes the process group of a script that changes something, in `.work` under `$1`: whoever has the
/// lock next ends it, should it outlive its connection.
macro_rules! noted {
    ($script:literal) => {
        concat!(
            r#"
group=$(sed 's/^.*) //' "/proc/$$/stat" | cut -d' ' -f3)
rm -f -- "$1/.work"
printf '%s %s\n' "$group" "$(sed 's/^.*) //' "/proc/$group/stat" | cut -d' ' -f20)" > "$1/.work"
"#,
            $script
        )
    };
}

/// $1 project, $2 format. One that goes away in between is not there.
macro_rules! containers {
    () => {
        r#"
printf 'now %s\n' "$(date +%s)"
containers=$(docker ps -aq --no-trunc --filter "label=com.docker.compose.project=$1" --filter label=com.docker.compose.oneoff=False) || exit 1
[ -z "$containers" ] || docker inspect --format "$2" $containers
"#
    };
}

mod compose;
mod images;
mod releases;

use std::time::Duration;

use super::{
    release::{NOTE_FILE, ReleaseFiles},
    stack::{COMPLETE, Root},
};
use crate::{
    error::{Error, ErrorCode, Result},
    ids::DeploymentId,
    ssh::{Connection, ScriptOutput, script::tail},
};

/// A holder that is our own needs a moment to end.
const LOCK_WAIT_MIN_SECS: u64 = 3;
const SHORT: Duration = Duration::from_secs(30);
const UP_LIMIT: Duration = Duration::from_secs(180);
/// 64 MB over a slow line.
const FILES_LIMIT: Duration = Duration::from_secs(600);
pub const LOG_LINES: usize = 20;

/// The host as one deployment works on it.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    pub connection: &'a Connection,
    pub base: &'a str,
}

/// Keeps every other deployment off the host while it lives, and no longer than the connection.
pub use self::{
    compose::LogsAsked,
    releases::{LastLook, Standing},
};
pub use crate::ssh::Held as HostLock;

impl Remote<'_> {
    /// `flock` held by a process of this session, waited for up to `wait`; a busy host says who holds it.
    /// A holder that is this same deployment is left from a connection that was cut, and is ended, as is
    /// what such a connection left running.
    pub async fn lock(&self, deployment: &DeploymentId, owner: &str, wait: Duration) -> Result<HostLock> {
        let who = format!("{deployment} of {owner}");
        let seconds = wait.as_secs().max(LOCK_WAIT_MIN_SECS).to_string();
        let arguments = [self.base, deployment.as_str(), &who, &seconds];
        let (output, held) = self.connection.hold(LOCK, &arguments, "AEGIS-LOCK", wait + SHORT).await?;
        if let Some(holder) = output.stdout.lines().find_map(|line| line.strip_prefix("BUSY ")) {
            let host = &self.connection.target().host;
            return Err(Error::new(
                ErrorCode::HostBusy,
                format!("{host} is held by deployment {}", tail(holder, 1)),
            )
            .remedy(
                "follow it with get_deployment_status where it was started, or wait for it with lock_wait_seconds",
            ));
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
    pub async fn upload(&self, files: &ReleaseFiles, deployment: &DeploymentId, note: &[u8]) -> Result<()> {
        let release = format!("{}/releases/{deployment}", self.base);
        self.run("make the release directory", PREPARE, &[self.base, deployment.as_str()], SHORT).await?;
        self.send_bundle(files, deployment).await?;
        // The note comes last: a release without one is incomplete.
        let all = files.iter().chain([(NOTE_FILE, note)]);
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

    /// Sends what the host lacks of the files that travel, in one stream, and links the release to it.
    async fn send_bundle(&self, files: &ReleaseFiles, deployment: &DeploymentId) -> Result<()> {
        let bundle = files.bundle();
        if bundle.is_empty() {
            return Ok(());
        }
        let digests: Vec<String> = bundle.roots().iter().map(Root::digest).collect();
        let mut arguments = vec![self.base];
        arguments.extend(digests.iter().map(String::as_str));
        let output = self.run("look for the stack's files", MISSING_FILES, &arguments, SHORT).await?;
        let mut missing: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
        missing.extend(digests.iter().filter(|digest| files.was_changed_by_hand(digest)).cloned());
        if !missing.is_empty() {
            let input = std::io::Cursor::new(bundle.archive(&missing)?);
            let arguments = [self.base, deployment.as_str(), COMPLETE];
            let output = self.connection.script_with_input(RECEIVE, &arguments, input, FILES_LIMIT).await?;
            checked(output, "receive the stack's files")?;
        }
        let links: Vec<(&str, String)> =
            bundle.roots().iter().map(|root| (root.path.as_str(), root.link_target())).collect();
        let mut arguments = vec![self.base, deployment.as_str()];
        arguments.extend(links.iter().flat_map(|(path, target)| [*path, target.as_str()]));
        self.run("link the stack's files", LINK, &arguments, SHORT).await.map(drop)
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
        let arguments = [self.base, deployment.as_str()];
        self.run("switch to the release", SWITCH, &arguments, SHORT).await.map(drop)
    }

    /// Whether the whole release of this deployment lies on the host.
    pub async fn has_release(&self, deployment: &DeploymentId) -> Result<bool> {
        let output = self.connection.script(HAS_RELEASE, &[self.base, deployment.as_str()], SHORT).await?;
        Ok(output.success())
    }

    pub async fn read_public_key(&self) -> Result<Option<String>> {
        let output = self
            .connection
            .script(r#"head -c 200 "$1/run/node.pub" 2>/dev/null"#, &[self.base], SHORT)
            .await?;
        Ok(Some(output.stdout.trim().to_owned()).filter(|text| !text.is_empty()))
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

/// $1 base, $2 deployment, $3 who, $4 seconds. Standard input stays open while we hold the lock. `.work`
/// names the process group of the last script that changed something: it may outlive its connection.
const LOCK: &str = concat!(
    r#"
tries=0
while :; do
  mkdir -p -m 700 -- "$1" || exit 1
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "$1" || exit 1
  exec 9>>"$1/.lock" || exit 1
  if ! flock -n 9; then
    read -r pid since holder < "$1/.lock.owner" || true
    case "$pid" in ''|*[!0-9]*) pid=0;; esac
    case "$holder" in "$2 "*)
      if [ "$pid" -gt 1 ] && tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$2"; then
        kill $(cat "/proc/$pid/task/$pid/children" 2>/dev/null) "$pid" 2>/dev/null
      fi;;
    esac
    if ! flock -w "$4" 9; then
      read -r pid since holder < "$1/.lock.owner" || true
      case "$since" in ''|*[!0-9]*) age=?;; *) age=$(($(date +%s) - since));; esac
      printf 'BUSY %s, for %s s now\n\nAEGIS-LOCK\n' "$holder" "$age"; exit 75
    fi
  fi
  # Whoever held it may have removed the directory, and then this is the lock of nothing.
  [ "$(stat -L -c %i /proc/self/fd/9)" != "$(stat -c %i -- "$1/.lock" 2>/dev/null)" ] || break
  tries=$((tries + 1)); [ "$tries" -lt 10 ] || exit 1
done
printf '%s %s %s\n' "$$" "$(date +%s)" "$3" > "$1/.lock.owner"
"#,
    end_work!(),
    r#"
rm -f -- "$1/.work"
printf '\nAEGIS-LOCK\n'
# Without the lock: only the shell holds it, so only the shell must end to free it.
cat 9>&- >/dev/null
"#
);

/// $1 base, $2 deployment.
const PREPARE: &str = r#"
set -e
cd -- "$1"
mkdir -p -m 700 releases run
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" releases run
current=$(readlink current 2>/dev/null || true)
if [ "$current" != "releases/$2" ]; then
  rm -rf -- "releases/$2"; mkdir -m 700 -- "releases/$2"
  [ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -- "$SUDO_UID:$SUDO_GID" "releases/$2"
fi
"#;

/// $1 base, then digests: says which of them the host has no content of.
const MISSING_FILES: &str = r#"
cd -- "$1/releases" || exit 1
shift
for digest in "$@"; do [ -e ".files/$digest" ] || printf '%s\n' "$digest"; done
"#;

/// $1 base, $2 deployment, $3 the last entry of the stream: a stream that was cut never takes the
/// content's place. A digest says all of its content, so what another deployment put there is equal.
const RECEIVE: &str = r#"
set -e
cd -- "$1/releases"
mkdir -p -m 700 .files
part=".files/$2.part"
rm -rf -- "$part"; mkdir -m 700 -- "$part"
tar -x -p -o -f - -C "$part"
[ -f "$part/$3" ]
rm -f -- "$part/$3"
[ "$(id -u)" != 0 ] || [ -z "${SUDO_UID:-}" ] || chown -R -- "$SUDO_UID:$SUDO_GID" .files
for content in "$part"/*; do
  name=${content##*/}
  # What is there was changed by hand, and containers may have it mounted: it is mended in its place.
  if [ -d "$content" ] && [ -d ".files/$name" ]; then cp -a -- "$content/." ".files/$name/"; rm -rf -- "$content"
  elif [ -f "$content" ] && [ -f ".files/$name" ]; then cp -a -- "$content" ".files/$name"; rm -f -- "$content"
  else rm -rf -- ".files/$name"; mv -T -- "$content" ".files/$name"; fi
done
rmdir -- "$part"
sync
"#;

/// $1 base, $2 deployment, then pairs of a path in the release and where it leads to.
const LINK: &str = r#"
set -e
cd -- "$1/releases/$2"
shift 2
while [ $# -gt 1 ]; do
  case "$1" in */*) mkdir -p -- "${1%/*}";; esac
  ln -sfn -- "$2" "$1"
  shift 2
done
"#;

/// $1 base, $2 deployment. The top-level names of the release are linked at the top, where people look
/// for them and Compose resolves paths.
const SWITCH: &str = r#"
set -e
cd -- "$1"
id=$2
[ -f "releases/$id/release.json" ]
rm -f current.new; ln -s "releases/$id" current.new; mv -T -- current.new current
for path in current/* current/.[!.]*; do
  file=${path#current/}
  case "$file" in release.json|ready.json|previous) continue;; esac
  [ -e "$path" ] || continue
  if [ -e "$file" ] && [ ! -L "$file" ]; then mv -- "$file" "$file.before-aegis"; fi
  ln -sfn -- "current/$file" "$file"
done
for file in * .[!.]*; do
  if [ -L "$file" ] && [ ! -e "$file" ]; then
    case "$(readlink -- "$file")" in current/*) rm -f -- "$file";; esac
  fi
done
# The files were synced when they were written; all of the host's other writes are not ours to wait for.
sync -- "releases/$id" releases . 2>/dev/null || sync
"#;

/// $1 base, $2 deployment.
const HAS_RELEASE: &str = r#"[ -f "$1/releases/$2/release.json" ]"#;
