//! The controller, the worker, the MCP server and the command line; the binary `aegis` is [`run`] alone.
//!
//! The story: read the command line, start the runtime, run one verb, leave with its exit status. What
//! the daemon does in between is told in [`daemon`]. Modules: [`cli`] the verbs; [`daemon`] the process
//! behind them; [`transport`] how callers reach it; [`caller`] who they are and how much they may;
//! [`server`], [`tools`], [`resources`] and [`prompts`] what an assistant sees, with [`confirm`] before what
//! disrupts, [`text`] around what others wrote and [`log_level`] for those who want to hear of it; [`rest`] the HTTP API; [`codes`] and [`protocol_error`]
//! how an error looks on each surface.
//!
//! A library only so that the conformance tests serve their fixtures with our [`transport`]: nothing else
//! is meant for others.

mod caller;
mod candidates;
mod cli;
mod codes;
mod completion;
mod confirm;
mod daemon;
#[cfg(test)]
#[path = "../../tests/hostile/mod.rs"]
mod hostile;
mod log_level;
mod prompts;
mod protocol_error;
mod resources;
mod rest;
mod server;
#[cfg(test)]
mod testing;
mod text;
mod tools;
pub mod transport;

use std::{process::ExitCode, thread};

use clap::Parser as _;

/// Enough for a controller with many links; more threads would only cost memory on large machines.
const WORKER_THREADS_MAX: usize = 4;
const WORKER_THREADS_MIN: usize = 2;

/// The whole program, from the command line to the exit status.
pub fn run() -> ExitCode {
    let cli = cli::Cli::parse();
    let threads = thread::available_parallelism().map_or(WORKER_THREADS_MIN, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(WORKER_THREADS_MIN, WORKER_THREADS_MAX))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::output::fatal(&format!("the runtime could not be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli::run(cli));
    // A thread may sit in a read of stdin, which nothing can end.
    runtime.shutdown_background();
    ExitCode::from(code)
}
