//! The link's own key on a host: a line in the login's `authorized_keys` that lets the controller's
//! standing connection forward, and run the one script beside it (see [`take_over`]).
//!
//! sshd bounds forwarded sockets by nothing but the login's rights. Where the link goes by ports, the line
//! names them, and no others are forwarded.

use std::time::Duration;

use super::scripts;
use crate::{
    error::{Error, ErrorCode, Result},
    ssh::{Connection, HostEnd, LinkKey, LinkSettings, link::take_over, script::tail},
};

const LIMIT: Duration = Duration::from_secs(20);

/// Puts the key in place, or brings what is there up to date. Works as the login, never by sudo.
pub async fn install(connection: &Connection, key: &LinkKey, settings: &LinkSettings) -> Result<()> {
    let public = format!("{} aegis link of {}", key.public()?, settings.owner);
    let file = take_over::command_file(settings);
    edit(connection, &[&settings.owner, &options(settings), &public, &file]).await
}

/// Takes the key away; nothing where there is none.
pub async fn uninstall(connection: &Connection, owner: &str) -> Result<()> {
    edit(connection, &[owner, "", "", ""]).await
}

fn options(settings: &LinkSettings) -> String {
    let bounds = match (&settings.controller_end, &settings.node_end) {
        (HostEnd::Port(controller), HostEnd::Port(node)) => {
            format!(",permitlisten=\"127.0.0.1:{controller}\",permitopen=\"127.0.0.1:{node}\"")
        }
        // Those options shut sockets out as well.
        _ => String::new(),
    };
    format!("restrict,port-forwarding{bounds}")
}

async fn edit(connection: &Connection, arguments: &[&str; 4]) -> Result<()> {
    let output = connection.script(scripts::AUTHORIZED_KEYS, arguments, LIMIT).await?;
    if output.success() {
        return Ok(());
    }
    let why = tail(&output.stderr, 2).replace('\n', " ");
    Err(Error::new(ErrorCode::DeploymentFailed, format!("~/.ssh/authorized_keys cannot be changed: {why}"))
        .remedy("let the ssh user write it, or set spec.deploy.link_key: login"))
}
