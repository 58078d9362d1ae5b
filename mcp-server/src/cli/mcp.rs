//! `aegis mcp`: what an assistant starts. A pipe to the daemon, which it starts if none runs.

use clap::Args;
use cluster_core::{Result, config::StartedBy};

use super::{Context, launch, up};
use crate::transport::{pipe, unix};

#[derive(Debug, Args)]
pub struct Mcp {
    /// Print how to add it to Claude Code, Cursor and Codex, and end
    #[arg(long)]
    print_config: bool,
}

impl Mcp {
    pub async fn run(self, context: &Context) -> Result<()> {
        if self.print_config {
            let clients = up::Clients::of(&context.data_dir()?)?;
            return context.output.show(&clients, || clients.text());
        }
        let launched = launch::ensure(context, None, StartedBy::Assistant).await?;
        if !launched.health.ready {
            let missing: Vec<_> = launched.health.subsystems.iter().filter(|part| !part.ok).collect();
            for part in missing {
                context.output.say(&format!("aegis: {} is not up: {}", part.name, part.detail));
            }
        }
        pipe::run(&launched.data_dir.join(unix::MCP), tokio::io::stdin(), tokio::io::stdout()).await
    }
}
