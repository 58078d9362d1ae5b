//! Logs go to stderr; a detached daemon's stderr is `aegis.log` in the data directory.

use std::io::IsTerminal as _;

use cluster_core::{Error, ErrorCode, Result};
use tracing_subscriber::{EnvFilter, fmt};

const LEVEL_DEFAULT: &str = "info";
/// rmcp calls every client that goes away an error; the others log each connection's details at info.
const QUIET: &str = "rmcp=warn,rmcp::service=off,russh=warn,hyper=warn,sqlx=warn,bollard=warn";

/// `RUST_LOG` wins over the configuration.
pub fn init(level: Option<&str>) -> Result<()> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().or(level).unwrap_or(LEVEL_DEFAULT);
    // What is asked for comes last, and so wins.
    let filter = EnvFilter::builder().parse(format!("{QUIET},{wanted}")).map_err(|e| {
        Error::new(
            ErrorCode::ConfigInvalid,
            format!("the log level \"{}\" is not valid", cluster_core::ids::shown(wanted)),
        )
        .remedy("use error, warn, info, debug or trace")
        .source(e)
    })?;
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|e| Error::internal("logging is set up already").source(e))
}
