//! `aegis mcp`: started by assistants. Pipes to the daemon, and starts the daemon if it does not run.

pub mod clients;

use std::{cell::Cell, path::PathBuf, time::Duration};

use clap::Args;
use clients::{ClientKind, Clients};
use cluster_core::{
    config::{ConfigChoice, StartedBy},
    types::{
        error::{Error, ErrorCode, Result},
        node::Role,
    },
};
use tokio::{net::UnixStream, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Context, choice::ConfigArgs, launch};
use crate::{
    caller::ToolFilter,
    tools::ToolRegistry,
    transport::{
        pipe::{self, Unreached, Want},
        unix,
    },
};

/// Delay of a start after a crash without waiting requests, so that a supervisor (systemd, a person) comes first.
const SUPERVISOR_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct Mcp {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print how to add the server to this client, or to each client, and exit
    #[arg(long, value_name = "CLIENT", num_args = 0..=1)]
    print_config: Option<Option<ClientKind>>,
    /// Offer only the tools that change nothing
    #[arg(long, conflicts_with = "print_config")]
    read_only: bool,
    /// Offer only these tools of the node, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "TOOL,TOOL", conflicts_with = "print_config")]
    tools: Option<Vec<String>>,
}

impl Mcp {
    pub async fn run(self, context: &Context) -> Result<u8> {
        if let Some(client) = self.print_config {
            let clients = Clients::of(&context.data_dir()?)?;
            match client {
                Some(client) => {
                    let one = clients.one(client)?;
                    context.output.show(&one, || one.text())?;
                }
                None => context.output.show(&clients, || clients.text())?,
            }
            return Ok(0);
        }
        let narrowing = ToolFilter { read_only: self.read_only, tools: self.tools };
        if let Some(names) = &narrowing.tools {
            ToolRegistry::all().check_names("--tools", ErrorCode::InvalidArgument, names)?;
        }
        // stdout belongs to the protocol from here on, whatever --output says.
        match serve(context, narrowing, self.config.choice()).await {
            Ok(()) => Ok(0),
            Err(error) => {
                context.output.talk_error(&error);
                Ok(crate::codes::of(error.code()).exit)
            }
        }
    }
}

async fn serve(context: &Context, narrowing: ToolFilter, config: ConfigChoice) -> Result<()> {
    let stop = CancellationToken::new();
    crate::daemon::stop_on_signals(&stop)?;
    let daemon = Daemon::of(context, narrowing, config)?;
    let dial = async |want| daemon.dial(want).await.inspect_err(|unreached| daemon.tell(unreached));
    pipe::run(tokio::io::stdin(), tokio::io::stdout(), dial, stop).await;
    Ok(())
}

/// Connection of the pipe to the daemon of the data directory.
struct Daemon<'a> {
    context: &'a Context,
    /// Sent again on every connection.
    narrowing: ToolFilter,
    socket: PathBuf,
    /// Configuration of a daemon that is started here. By default a daemon uses the file of its last start.
    config: ConfigChoice,
    /// Time of the first failed connection after a crash.
    crash_seen_at: Cell<Option<Instant>>,
}

impl<'a> Daemon<'a> {
    fn of(context: &'a Context, narrowing: ToolFilter, config: ConfigChoice) -> Result<Self> {
        let socket = context.data_dir()?.join(unix::MCP);
        Ok(Self { context, narrowing, socket, config, crash_seen_at: Cell::default() })
    }

    async fn dial(&self, want: Want) -> Result<UnixStream, Unreached> {
        let absent = match pipe::connect(&self.socket, &self.narrowing).await {
            Ok(stream) => return Ok(self.reached(stream)),
            Err(error) if error.code() == ErrorCode::Unavailable => error,
            Err(error) => return Err(Unreached::of(error)),
        };
        if want == Want::Launch || self.crashed_a_while_ago() {
            self.launch().await.map_err(Unreached::Refused)?;
            return pipe::connect(&self.socket, &self.narrowing)
                .await
                .map(|it| self.reached(it))
                .map_err(Unreached::of);
        }
        Err(Unreached::NotYet(absent))
    }

    fn reached(&self, stream: UnixStream) -> UnixStream {
        self.crash_seen_at.set(None);
        stream
    }

    /// Returns whether the daemon crashed a while ago: it left its socket behind, which a regular stop removes.
    fn crashed_a_while_ago(&self) -> bool {
        if !self.socket.exists() {
            self.crash_seen_at.set(None);
            return false;
        }
        let since = self.crash_seen_at.get().unwrap_or_else(Instant::now);
        self.crash_seen_at.set(Some(since));
        since.elapsed() >= SUPERVISOR_TIME
    }

    async fn launch(&self) -> Result<()> {
        let launched = launch::ensure(self.context, &self.config, StartedBy::Assistant).await?;
        if launched.health.role == Role::Worker {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("node {} is a worker; MCP is served by its controller", launched.health.node_id),
            )
            .remedy("run `aegis mcp` on the controller's machine, or there with another --data-dir"));
        }
        for part in launched.health.subsystems.iter().filter(|part| !part.ok) {
            self.context.output.say(&format!("aegis: {} is not up: {}", part.name, part.detail));
        }
        Ok(())
    }

    /// Reports an error on stderr, which assistants log.
    fn tell(&self, unreached: &Unreached) {
        if let Unreached::Refused(error) = unreached {
            self.context.output.talk_error(error);
        }
    }
}
