//! `aegis`: controller, worker, MCP server and command line in one binary.
//!
//! The story: read the command line, start the runtime, run one verb, leave with its exit status. What
//! the daemon does in between is told in [`daemon`]. Modules: [`cli`] the verbs; [`daemon`] the process
//! behind them; [`transport`] how callers reach it; [`server`] and [`tools`] what an assistant sees;
//! [`rest`] the HTTP API; [`codes`] how an error looks on each surface.

mod cli;
mod codes;
mod daemon;
mod rest;
mod server;
#[cfg(test)]
mod testing;
mod tools;
mod transport;

use std::{process::ExitCode, thread};

use clap::Parser as _;

/// Enough for a controller with many links; more threads would only cost memory on large machines.
const WORKER_THREADS_MAX: usize = 4;
const WORKER_THREADS_MIN: usize = 2;

fn main() -> ExitCode {
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
