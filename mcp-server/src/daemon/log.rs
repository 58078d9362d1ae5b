//! Logs go to stderr; a detached daemon's stderr is `aegis.log` in the data directory.
//!
//! Errors quote hosts and containers, and so does the log. Further lines of an entry are indented, so that no quoted
//! line looks like an entry. Escape sequences are escaped by tracing.

use std::{
    borrow::Cow,
    io::{IsTerminal as _, Stderr, Write},
};

use cluster_core::types::error::{Error, ErrorCode, Result};
use tracing_subscriber::{EnvFilter, fmt};

const LEVEL_DEFAULT: &str = "info";
/// rmcp logs every client that disconnects as an error; the other crates log connection details at info.
const QUIET: &str = "rmcp=warn,rmcp::service=off,russh=warn,hyper=warn,sqlx=warn,bollard=warn";

/// Changes the level at run time.
pub type SetLevel = Box<dyn Fn(Option<&str>) -> Result<()> + Send + Sync>;

fn filter(level: Option<&str>) -> Result<EnvFilter> {
    let wanted = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.as_deref().or(level).unwrap_or(LEVEL_DEFAULT);
    // The requested level comes last, and therefore wins.
    EnvFilter::builder().parse(format!("{QUIET},{wanted}")).map_err(|e| {
        Error::new(
            ErrorCode::ConfigInvalid,
            format!("the log level \"{}\" is not valid", cluster_core::types::text::shown(wanted)),
        )
        .remedy("use error, warn, info, debug or trace")
        .source(e)
    })
}

/// stderr, with one write per log entry, as tracing does.
struct Entries(Stderr);

impl Write for Entries {
    fn write(&mut self, entry: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(&one_entry(entry))?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn one_entry(entry: &[u8]) -> Cow<'_, [u8]> {
    const FURTHER_LINE: &[u8] = b"\n    ";
    let Some(lines) = entry.strip_suffix(b"\n").filter(|lines| lines.contains(&b'\n')) else {
        return Cow::Borrowed(entry);
    };
    let lines: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').collect();
    Cow::Owned([&lines.join(FURTHER_LINE)[..], b"\n"].concat())
}

/// Initialises logging. `RUST_LOG` overrides the configuration.
pub fn init(level: Option<&str>) -> Result<SetLevel> {
    let logging = fmt()
        .with_writer(|| Entries(std::io::stderr()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter(level)?)
        .with_filter_reloading();
    let reload = logging.reload_handle();
    logging.try_init().map_err(|e| Error::internal("logging is set up already").source(e))?;
    Ok(Box::new(move |level| {
        reload.reload(filter(level)?).map_err(|e| Error::internal("the log level cannot be set").source(e))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_host_is_an_entry() {
        let forged: &[u8] = b"2026 WARN aegis: sh said x\n2026 INFO aegis: approved\n";
        assert_eq!(*one_entry(forged), *b"2026 WARN aegis: sh said x\n    2026 INFO aegis: approved\n");
        for plain in [&b"one\n"[..], b"one", b"", b"\n"] {
            assert_eq!(*one_entry(plain), *plain);
        }
    }
}
