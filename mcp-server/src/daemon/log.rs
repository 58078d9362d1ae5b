//! Logs go to stderr; a detached daemon's stderr is `aegis.log` in the data directory.

use std::io::IsTerminal as _;

use cluster_core::{Error, ErrorCode, Result};
use tracing_subscriber::{EnvFilter, fmt};

const LEVEL_DEFAULT: &str = "info";
/// rmcp calls every client that goes away an error; the others log each connection's details at info.
const QUIET: &str = "rmcp=warn,rmcp::service=off,russh=warn,hyper=warn,sqlx=warn,bollard=warn";

/// Changes the level while we run.
pub type SetLevel = Box<dyn Fn(Option<&str>) -> Result<()> + Send + Sync>;

fn filter(level: Option<&str>) -> Result<EnvFilter> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().or(level).unwrap_or(LEVEL_DEFAULT);
    // What is asked for comes last, and so wins.
    EnvFilter::builder().parse(format!("{QUIET},{wanted}")).map_err(|e| {
        Error::new(
            ErrorCode::ConfigInvalid,
            format!("the log level \"{}\" is not valid", cluster_core::ids::shown(wanted)),
        )
        .remedy("use error, warn, info, debug or trace")
        .source(e)
    })
}

/// `RUST_LOG` wins over the configuration.
pub fn init(level: Option<&str>) -> Result<SetLevel> {
    let logging = fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter(level)?)
        .with_filter_reloading();
    let reload = logging.reload_handle();
    logging.try_init().map_err(|e| Error::internal("logging is set up already").source(e))?;
    Ok(Box::new(move |level| {
        reload.reload(filter(level)?).map_err(|e| Error::internal("the log level cannot be set").source(e))
    }))
}
