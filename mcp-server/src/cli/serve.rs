//! `aegis serve`: the daemon itself.

use clap::Args;
use cluster_core::{
    config::StartedBy,
    types::error::{Error, Result},
};

use super::{Context, choice::ConfigArgs};
use crate::daemon::{self, Options};

#[derive(Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
    /// Leave the terminal's session; set by `up` and `mcp`
    #[arg(long, hide = true)]
    detached: bool,
    /// Read nothing from the working directory; set by `mcp`
    #[arg(long, hide = true)]
    started_by_assistant: bool,
}

impl Serve {
    pub async fn run(self, context: &Context) -> Result<()> {
        if self.detached {
            // A session of its own: closing the terminal or Ctrl-C in it must not reach us.
            nix::unistd::setsid()
                .map_err(|e| Error::internal("the daemon could not leave its session").source(e))?;
        }
        let started_by = if self.started_by_assistant { StartedBy::Assistant } else { StartedBy::Person };
        daemon::run(Options {
            config: self.config.choice(),
            overrides: context.overrides.clone(),
            started_by,
        })
        .await
    }
}
