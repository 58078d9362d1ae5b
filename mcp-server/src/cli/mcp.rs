//! `aegis mcp`: what an assistant starts. A pipe to the daemon, which it starts if none runs.

use clap::Args;
use cluster_core::{Result, config::StartedBy};

use super::{Context, launch, up};
use crate::transport::{pipe, unix};

/// What assistants expect of a server that ended by itself.
const PIPE_BROKE: u8 = 1;

#[derive(Debug, Args)]
pub struct Mcp {
    /// Print how to add it to Claude Code, Cursor and Codex, and end
    #[arg(long)]
    print_config: bool,
}

impl Mcp {
    pub async fn run(self, context: &Context) -> Result<u8> {
        if self.print_config {
            let clients = up::Clients::of(&context.data_dir()?)?;
            context.output.show(&clients, || clients.text())?;
            return Ok(0);
        }
        let launched = launch::ensure(context, None, StartedBy::Assistant).await?;
        if !launched.health.ready {
            let missing: Vec<_> = launched.health.subsystems.iter().filter(|part| !part.ok).collect();
            for part in missing {
                context.output.say(&format!("aegis: {} is not up: {}", part.name, part.detail));
            }
        }
        let socket = launched.data_dir.join(unix::MCP);
        match pipe::run(&socket, tokio::io::stdin(), tokio::io::stdout()).await {
            Ok(()) => Ok(0),
            Err(error) => {
                // stdout belongs to the protocol, whatever --output says.
                context.output.talk_error(&error);
                Ok(PIPE_BROKE)
            }
        }
    }
}
