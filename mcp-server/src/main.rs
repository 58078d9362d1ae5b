//! `aegis`: controller, worker, MCP server and command line in one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    aegis::run()
}
