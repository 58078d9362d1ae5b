//! The only module that writes to the terminal: data to stdout, messages to stderr.
//!
//! A terminal obeys control sequences, so text for a terminal is cleaned ([`clean`](crate::text::clean)), whatever its
//! origin. A pipe or a file gets the bytes unchanged: programs read there, and `aegis run` has to forward the
//! container's bytes.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    borrow::Cow,
    io::{IsTerminal, Write as _},
};

use cluster_core::types::error::{Error, Failure, Result};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::text::indented;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text for people.
    #[default]
    Text,
    /// Text, with lists as tables.
    Table,
    /// The fields of the REST API.
    Json,
    Yaml,
}

#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    stdout: Reader,
    stderr: Reader,
}

/// Receiver of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Terminal,
    Other,
}

impl Reader {
    fn of(stream: &impl IsTerminal) -> Self {
        if stream.is_terminal() { Self::Terminal } else { Self::Other }
    }

    fn gets(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::Other => Cow::Borrowed(bytes),
            Self::Terminal => {
                let text = String::from_utf8_lossy(bytes);
                Cow::Owned(crate::text::clean(&text).into_owned().into_bytes())
            }
        }
    }
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format, stdout: Reader::of(&std::io::stdout()), stderr: Reader::of(&std::io::stderr()) }
    }

    /// Prints the result of a verb: as data for machines, and for people as `human` formats it.
    pub fn show<T: Serialize>(&self, data: &T, human: impl FnOnce() -> String) -> Result<()> {
        let text = match self.format {
            Format::Text | Format::Table => human(),
            Format::Json => serde_json::to_string_pretty(data)
                .map_err(|e| Error::internal("the result cannot be written as JSON").source(e))?,
            Format::Yaml => serde_saphyr::to_string(data)
                .map_err(|e| Error::internal("the result cannot be written as YAML").source(e))?,
        };
        self.bytes(text.trim_end().as_bytes());
        self.bytes(b"\n");
        Ok(())
    }

    /// Returns whether the output is for a person.
    pub fn is_human(&self) -> bool {
        matches!(self.format, Format::Text | Format::Table)
    }

    /// Writes raw data to stdout. If the reader has gone, the program ends as any other would.
    pub fn bytes(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        if stdout.write_all(&self.stdout.gets(bytes)).and_then(|()| stdout.flush()).is_err() {
            std::process::exit(0);
        }
    }

    /// Writes raw data to stderr: the stderr of a container.
    pub fn error_bytes(&self, bytes: &[u8]) {
        // A failure cannot be reported anywhere.
        let _ = std::io::stderr().lock().write_all(&self.stderr.gets(bytes));
    }

    /// Writes a message.
    pub fn say(&self, text: &str) {
        self.error_bytes(text.as_bytes());
        self.error_bytes(b"\n");
    }

    /// Prints an error for people only.
    pub fn talk_error(&self, error: &Error) {
        // Either may quote a host, and no quoted line may look like a message of this program.
        self.say(&format!("error: {}", indented(error.message())));
        if let Some(remedy) = error.remedy_text() {
            self.say(&format!("hint: {}", indented(remedy)));
        }
        tracing::debug!(error = %error.chain(), "failed");
    }

    /// Prints an error for people on stderr, and for machines in their format on stdout.
    pub fn error(&self, error: &Error) {
        self.talk_error(error);
        let machine: Value = json!({ "error": Failure::from(error) });
        match self.format {
            Format::Json => self.bytes(format!("{machine}\n").as_bytes()),
            Format::Yaml => {
                if let Ok(text) = serde_saphyr::to_string(&machine) {
                    self.bytes(text.as_bytes());
                }
            }
            Format::Text | Format::Table => {}
        }
    }
}

/// Formats a table without rules, as `ps` does.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    // Every cell is padded by one space; without this the first column would be indented.
    let line = |line: &str| line.strip_prefix(' ').unwrap_or(line).trim_end().to_owned();
    table.to_string().lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Prints an error that occurs before there is an [`Output`].
pub fn fatal(text: &str) {
    // A failure cannot be reported anywhere.
    let _ = writeln!(std::io::stderr(), "error: {text}");
}
