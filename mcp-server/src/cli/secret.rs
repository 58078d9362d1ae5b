//! `aegis secret`: stores values that only the controller uses. Values are never given on the command line, which other
//! users of the machine may read.

use std::{
    fs::File,
    io::{BufRead, IsTerminal as _, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use cluster_core::{
    controller::secrets::{SecretView, VALUE_BYTES_MAX},
    types::{
        error::{Error, ErrorCode, Result},
        secret::{Secret, SecretName},
    },
};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Context, output::table};

#[derive(Debug, Subcommand)]
pub enum SecretVerb {
    /// Set a secret from standard input, a file, or a prompt on the terminal
    Set {
        /// Name, 1 to 64 of a-z, 0-9, '.', '_' and '-'
        name: String,
        /// File with the value; one line break at the end is removed
        #[arg(long, value_name = "PATH")]
        from_file: Option<PathBuf>,
    },
    /// List names, times and last uses; values are never shown
    List,
    /// Delete a secret; what was deployed with it continues to run
    Delete { name: String },
}

#[derive(Deserialize)]
struct Secrets {
    secrets: Vec<SecretView>,
}

#[derive(Serialize)]
struct Set<'a> {
    value: &'a str,
}

impl SecretVerb {
    pub async fn run(self, context: &Context) -> Result<()> {
        match self {
            SecretVerb::Set { name, from_file } => {
                let name = SecretName::parse(&name)?;
                let value = read(context, &name, from_file.as_deref())?;
                let body = Set { value: value.reveal() };
                let set: SecretView = context.client()?.put(&format!("/v1/secrets/{name}"), &body).await?;
                context.output.show(&set, || format!("The secret {name} is set; use it as secret:{name}."))
            }
            SecretVerb::List => list(context).await,
            SecretVerb::Delete { name } => {
                let name = SecretName::parse(&name)?;
                let done: Value = context.client()?.delete(&format!("/v1/secrets/{name}")).await?;
                context.output.show(&done, || format!("The secret {name} is deleted."))
            }
        }
    }
}

async fn list(context: &Context) -> Result<()> {
    let data: Value = context.client()?.get("/v1/secrets").await?;
    let secrets = Secrets::deserialize(&data)
        .map_err(|e| Error::internal("the list is not understood").source(e))?
        .secrets;
    context.output.show(&data, || {
        let never = || "never".to_owned();
        let rows = secrets
            .into_iter()
            .map(|secret| {
                vec![
                    secret.name.to_string(),
                    secret.changed_at,
                    secret.used_at.unwrap_or_else(never),
                    secret.used_for.unwrap_or_default(),
                ]
            })
            .collect();
        table(&["name", "set at", "used at", "used for"], rows)
    })
}

fn read(context: &Context, name: &SecretName, file: Option<&Path>) -> Result<Secret> {
    let stdin = std::io::stdin();
    let value = match file {
        Some(path) => {
            let unreadable = |e: std::io::Error| {
                Error::invalid(format!("the file {} cannot be read", path.display())).source(e)
            };
            bounded(File::open(path).map_err(unreadable)?)?
        }
        None if stdin.is_terminal() => {
            // Before the prompt: text typed before the switch would be echoed, then dropped.
            let silent = Silent::on(stdin.as_fd())?;
            context.output.error_bytes(format!("Value of {name} (it is not shown): ").as_bytes());
            let line = first_line(stdin.lock());
            drop(silent);
            context.output.error_bytes(b"\n");
            line?
        }
        None => bounded(stdin.lock())?,
    };
    let line = value.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let secret = Secret::new(line.unwrap_or(&value));
    match secret.is_empty() {
        true => Err(Error::invalid("the value is empty")
            .remedy(format!("for example: aegis secret set {name} < FILE"))),
        false => Ok(secret),
    }
}

/// Reads at most the size of a secret and a line break, plus one byte to detect an excess.
fn bounded(from: impl Read) -> Result<zeroize::Zeroizing<String>> {
    let limit = VALUE_BYTES_MAX + 2;
    // Never reallocated while it grows: no copy of the value is left in memory.
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(limit + 1));
    from.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::invalid("the value cannot be read").source(e))?;
    if bytes.len() > limit {
        return Err(Error::invalid("the value is too large").remedy("a secret has 1 byte to 64 KiB"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Error::invalid("the value is not UTF-8").remedy("encode it, for example as base64"))?;
    Ok(zeroize::Zeroizing::new(text.to_owned()))
}

/// Reads one line. A terminal delivers a line only when the person ends it.
fn first_line(from: impl BufRead) -> Result<zeroize::Zeroizing<String>> {
    let mut line = zeroize::Zeroizing::new(String::with_capacity(VALUE_BYTES_MAX));
    from.take(VALUE_BYTES_MAX as u64)
        .read_line(&mut line)
        .map_err(|e| Error::invalid("the value cannot be read").source(e))?;
    Ok(line)
}

/// Terminal without echo while this value lives.
struct Silent<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> Silent<F> {
    fn on(terminal: F) -> Result<Self> {
        let failed = |e| {
            Error::new(ErrorCode::FailedPrecondition, "the terminal's echo cannot be switched off")
                .remedy("give the value on standard input or with --from-file")
                .source(std::io::Error::from(e))
        };
        let before = tcgetattr(&terminal).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent).map_err(failed)?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for Silent<F> {
    fn drop(&mut self) {
        // A failure cannot be handled if the terminal is gone.
        let _ = tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
