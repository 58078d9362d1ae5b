//! Takes over an end on the host before the host listens. Frees what an earlier session still holds without sshd having
//! noticed its loss, and records this session instead.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};

use super::LinkSettings;
use crate::{
    Connection,
    script::{quote, tail},
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

const TAKE_OVER: &str = include_str!("take_over.sh");
