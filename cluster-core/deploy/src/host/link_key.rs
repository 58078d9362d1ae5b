//! The link's own key on a host: a line in the login's `authorized_keys`. The line lets the controller's standing
//! connection forward, and run one script (see [`take_over`]).
//!
//! Each node has its own line and script, since hosts may share a home directory. All lines hold the same key, and sshd
//! obeys the first of them.
//!
//! sshd restricts forwarded sockets only by the login's rights. With this key, any socket that the login may open can
//! be opened, including Docker's. If the link uses ports, the line names them, and no other ports are forwarded.

use std::time::Duration;

use aegis_ssh::{Connection, ForwardEndpoint, LinkKey, LinkSettings, link::take_over, script::tail};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};

use super::scripts;

const LIMIT: Duration = Duration::from_secs(20);

/// Installs the key for a node, or updates its line. Works as the login, never by sudo.
pub async fn install(connection: &Connection, key: &LinkKey, settings: &LinkSettings) -> Result<()> {
    let file = take_over::command_file(settings);
    let node = settings.node.as_str();
    edit(connection, &[&settings.owner, node, &options(settings), &key.public()?, &file]).await
}

/// Removes the key of a node. Writes nothing if there is no key.
pub async fn uninstall(connection: &Connection, owner: &str, node: &NodeId) -> Result<()> {
    edit(connection, &[owner, node.as_str(), "", "", ""]).await
}

fn options(settings: &LinkSettings) -> String {
    let bounds = match (&settings.controller_end, &settings.node_end) {
        (ForwardEndpoint::Port(controller), ForwardEndpoint::Port(node)) => {
            format!(",permitlisten=\"127.0.0.1:{controller}\",permitopen=\"127.0.0.1:{node}\"")
        }
        // Those options would disable sockets as well.
        _ => String::new(),
    };
    format!("restrict,port-forwarding{bounds}")
}

async fn edit(connection: &Connection, arguments: &[&str; 5]) -> Result<()> {
    let output = connection.script(scripts::AUTHORIZED_KEYS, arguments, LIMIT).await?;
    if output.success() {
        return Ok(());
    }
    let why = tail(&output.stderr, 2).replace('\n', " ");
    Err(Error::new(ErrorCode::DeploymentFailed, format!("~/.ssh/authorized_keys cannot be changed: {why}"))
        .remedy("let the ssh user write it, or set spec.deploy.link_key: login"))
}
