//! Before the host listens for us: what a session of ours still holds that sshd does not know to be gone
//! is freed, and this session is noted in its place.

use std::time::Duration;

use super::LinkSettings;
use crate::{
    error::{Error, ErrorCode, Result},
    ssh::{
        Connection,
        script::{quote, tail},
    },
};

const LIMIT: Duration = Duration::from_secs(20);
/// Printed by the forced command when it is done.
const DONE: &str = "AEGIS-LINK";

/// A connection that came in by the link's own key runs the one command that its line in
/// `authorized_keys` names; any other is sent the script.
pub(super) async fn take_over(connection: &Connection, settings: &LinkSettings) -> Result<()> {
    let failed = |why: String| {
        Error::new(ErrorCode::Unavailable, format!("cannot prepare the link's end on the host: {why}"))
    };
    if connection.is_confined() {
        let (stdout, stderr) = connection.forced_command(LIMIT).await?;
        return match stdout.lines().any(|line| line == DONE) {
            true => Ok(()),
            false => Err(failed(tail(&stderr, 3))
                .remedy("deploy again: the link's command is missing in ~/.ssh on the host")),
        };
    }
    let output = connection.script(TAKE_OVER, &arguments(settings), LIMIT).await?;
    if output.success() { Ok(()) } else { Err(failed(tail(&output.stderr, 3))) }
}

fn arguments(settings: &LinkSettings) -> [&str; 3] {
    [&settings.session_note, &settings.owner, settings.controller_end.socket().unwrap_or_default()]
}

/// The whole file that the link's own key may run, and nothing else.
pub fn command_file(settings: &LinkSettings) -> String {
    let arguments = arguments(settings).map(quote).join(" ");
    format!(
        "# Run by sshd for the standing connection of aegis, whatever it asks for.\n\
         set -- {arguments}\ntake_over() {{\n{TAKE_OVER}\n}}\numask 077\n\
         ( take_over \"$@\" ) </dev/null && echo {DONE}\n"
    )
}

/// $1 note, $2 owner, $3 socket or empty. Ends the sshd session that the note names if it is ours (same owner)
/// and still the same process (same start time), removes the stale socket, and notes this session:
/// the nearest ancestor that is an sshd.
const TAKE_OVER: &str = r#"
start_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
is_sshd() { case "$(cat "/proc/$1/comm" 2>/dev/null)" in sshd*) return 0;; esac; return 1; }
mine=$PPID; hops=0
while [ "$mine" -gt 1 ] && ! is_sshd "$mine" && [ $hops -lt 8 ]; do
  mine=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$mine/status"); mine=${mine:-1}; hops=$((hops + 1))
done
if [ -f "$1" ]; then
  read -r pid start owner < "$1" || true
  case "$pid" in ''|*[!0-9]*) pid=0;; esac
  if [ "$pid" -gt 1 ] && [ "$pid" != "$mine" ] && [ "$owner" = "$2" ] && is_sshd "$pid" && [ "$(start_of "$pid")" = "$start" ]; then
    kill "$pid" 2>/dev/null
    n=0; while [ -d "/proc/$pid" ] && [ $n -lt 30 ]; do sleep 0.1; n=$((n + 1)); done
  fi
fi
[ -z "$3" ] || rm -f -- "$3" || exit 1
printf '%s %s %s\n' "$mine" "$(start_of "$mine")" "$2" > "$1.new" && mv -f -- "$1.new" "$1"
"#;
