//! Command line, with one file per verb. Verbs talk to the daemon over its socket. Only `serve` is the daemon, and only
//! `config check`, `doctor`, `tools`, `completions`, `reference` and `probe` work without a daemon.

mod agent;
mod artifacts;
mod audit;
mod choice;
mod client;
mod completions;
mod config;
mod deploy;
mod deployments;
mod doctor;
mod executions;
mod following;
mod host;
mod launch;
mod mcp;
mod network_guard;
mod node;
pub mod output;
mod probe;
mod reference;
mod rollout;
mod run;
mod secret;
mod serve;
mod status;
mod stop;
mod token;
mod tools;
mod up;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use client::Client;
use cluster_core::{
    config::{NodeConfig, Overrides, Settings},
    types::error::Result,
};
use output::{Format, Output};

/// Turns machines into nodes over SSH and runs agent containers on them; for assistants over MCP and
/// for people.
#[derive(Debug, Parser)]
#[command(name = "aegis", version, max_term_width = 100)]
pub struct Cli {
    /// Directory of the node's state and of the daemon's socket [default: ~/.aegis]
    #[arg(long, global = true, env = "AEGIS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Output format of results
    #[arg(long, short = 'o', global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the daemon if it does not run, and show its status and how assistants connect
    Up(up::Up),
    /// Stop the daemon
    Stop,
    /// Run the daemon in the foreground
    Serve(serve::Serve),
    /// Serve MCP over stdin and stdout, for an assistant to start
    Mcp(mcp::Mcp),
    /// Hosts that may be deployed to
    #[command(subcommand)]
    Host(host::Host),
    /// Turn machines into nodes
    Deploy(Box<deploy::Deploy>),
    /// List deployments, show one, follow it, cancel it
    Deployments(deployments::Deployments),
    /// List deployments of many hosts, show one, follow it, cancel it
    Rollouts(rollout::Rollouts),
    /// Nodes of the cluster
    #[command(subcommand)]
    Node(node::Node),
    /// Run a container on the cluster and show what it writes
    Run(Box<run::Run>),
    /// Agents: executions that are registered by name
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Executions
    #[command(subcommand)]
    Executions(executions::Executions),
    /// Manage secrets that only the controller reads: tunnel tokens, passwords, passphrases
    #[command(subcommand)]
    Secret(secret::SecretVerb),
    /// Manage tokens of programs that call over HTTP or gRPC
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// Show the audit log: calls of tools, and changes over the API
    Audit(audit::Audit),
    /// Show the status of the daemon and the cluster
    Status(status::StatusVerb),
    /// Check this machine and report what to fix; changes nothing. Exit status 6 if a check fails
    Doctor(doctor::Doctor),
    /// Configuration: files, and layers that are pushed to nodes
    #[command(subcommand)]
    Config(config::Config),
    /// Print the tool manifest that assistants see
    Tools,
    /// Print the completion script of a shell
    Completions(completions::Completions),
    /// Write the reference pages of the documentation
    #[command(hide = true)]
    Reference(reference::Reference),
    #[command(hide = true)]
    Probe(probe::Probe),
    #[command(hide = true)]
    NetworkGuard(network_guard::NetworkGuard),
}

/// Environment of every verb.
#[derive(Debug)]
pub struct Context {
    pub output: Output,
    pub overrides: Overrides,
}

impl Context {
    pub fn data_dir(&self) -> Result<PathBuf> {
        Settings::of(&NodeConfig::default(), &self.overrides).map(|settings| settings.data_dir)
    }

    pub fn client(&self) -> Result<Client> {
        Ok(Client::new(&self.data_dir()?))
    }
}

/// Runs the verb and returns the exit status.
pub async fn run(cli: Cli) -> u8 {
    let mut overrides = Overrides::from_env();
    if let Some(path) = cli.data_dir {
        overrides.data_dir = Some(path);
    }
    let context = Context { output: Output::new(cli.output), overrides };
    let ended = match cli.verb {
        Verb::Up(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Stop => stop::run(&context).await.map(|()| 0),
        Verb::Serve(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Mcp(verb) => verb.run(&context).await,
        Verb::Host(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Deploy(verb) => verb.run(&context).await,
        Verb::Deployments(verb) => verb.run(&context).await,
        Verb::Rollouts(verb) => verb.run(&context).await,
        Verb::Node(verb) => verb.run(&context).await,
        Verb::Run(verb) => verb.run(&context).await,
        Verb::Agent(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Executions(verb) => verb.run(&context).await,
        Verb::Secret(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Token(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Audit(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Status(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Doctor(verb) => verb.run(&context).await,
        Verb::Config(verb) => verb.run(&context).await.map(|()| 0),
        Verb::Completions(verb) => {
            verb.run(&context);
            Ok(0)
        }
        Verb::Tools => tools::run(&context).map(|()| 0),
        Verb::Reference(verb) => verb.run(&context).map(|()| 0),
        Verb::Probe(verb) => verb.run().await.map(|()| 0),
        Verb::NetworkGuard(verb) => verb.run().await.map(|()| 0),
    };
    ended.unwrap_or_else(|error| {
        context.output.error(&error);
        crate::codes::of(error.code()).exit
    })
}

/// Escapes a part of a URL's path: everything but unreserved characters.
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Returns the path of this executable, to start it again or to name it to a client.
pub fn own_path() -> Result<PathBuf> {
    std::env::current_exe()
        .map_err(|e| cluster_core::types::error::Error::internal("our own file cannot be found").source(e))
}

/// Formats a path for a person.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_command_after_two_dashes() {
        let cli = Cli::try_parse_from([
            "aegis",
            "run",
            "--image",
            "busybox:1.36",
            "--tag",
            "gpu",
            "--env",
            "A=b=c",
            "--",
            "sh",
            "-c",
            "echo -n",
        ])
        .unwrap();
        assert!(matches!(cli.verb, Verb::Run(_)));
    }

    #[test]
    fn path_segments_are_escaped() {
        assert_eq!(segment("fe80::1%eth0/x"), "fe80%3A%3A1%25eth0%2Fx");
    }
}
