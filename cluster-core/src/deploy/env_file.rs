//! The `.env` file that Compose reads, so that every value arrives byte for byte.
//!
//! Values stand in double quotes with `\`, `"`, `$`, newline and carriage return escaped: single
//! quotes lose a trailing backslash, bare values break at `#`, `$` and spaces.

use std::{collections::BTreeMap, fmt::Write as _};

use super::Secret;
use crate::{
    error::{Error, Result},
    ids::shown,
};

/// A value larger than this is data, not a setting.
const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Keys that steer Compose, Docker or the loader of whatever reads them.
const STEERING_PREFIXES: [&str; 3] = ["COMPOSE_", "DOCKER_", "LD_"];

#[derive(Debug, Clone, Default)]
pub struct EnvFile {
    values: BTreeMap<String, Secret>,
}

impl EnvFile {
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> Result<()> {
        check_key(key)?;
        let value = value.into();
        if value.contains('\0') {
            return Err(Error::invalid(format!("the value of {key} holds a NUL character")));
        }
        if value.len() > VALUE_BYTES_MAX {
            return Err(Error::invalid(format!("the value of {key} is larger than 1 MiB")));
        }
        self.values.insert(key.to_owned(), Secret::new(value));
        Ok(())
    }

    pub fn render(&self) -> String {
        let mut text =
            String::from("# Written by aegis at deployment; changes are lost with the next one.\n");
        for (key, value) in &self.values {
            let _ = writeln!(text, "{key}=\"{}\"", escape(value.reveal()));
        }
        text
    }
}

fn check_key(key: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("environment name \"{}\" {why}", shown(key))));
    let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !first || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return refuse("is not made of A-Z, 0-9 and '_'");
    }
    if key == "PATH" || STEERING_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return refuse("steers Compose, Docker or the loader and may not be set");
    }
    Ok(())
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '$' => escaped.push_str("\\$"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The value of one key in a `.env` that a person wrote: the last one wins; quotes and `export` are
/// understood, interpolation is not.
pub fn find(text: &str, key: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
        Some(unquote(value))
    })
}

fn unquote(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some((inner, _)) = value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)) {
            return inner.to_owned();
        }
    }
    value.split(" #").next().unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compose's reading of a double-quoted value (compose-go, package dotenv): escapes first, then
    /// `$` unless it is escaped.
    fn read_back(line: &str) -> String {
        let inner = line.trim_end_matches('\n').split_once("=\"").unwrap().1.strip_suffix('"').unwrap();
        let mut out = String::new();
        let mut chars = inner.chars();
        while let Some(c) = chars.next() {
            assert!(c != '"' && c != '$' && c != '\n' && c != '\r', "bare {c:?} in {inner:?}");
            match c {
                '\\' => match chars.next().unwrap() {
                    'n' => out.push('\n'),
                    'r' => out.push('\r'),
                    other => out.push(other),
                },
                other => out.push(other),
            }
        }
        out
    }

    #[test]
    fn every_value_reads_back() {
        for value in [
            "",
            "plain",
            "it's",
            "\"",
            "ends with \\",
            "$X",
            "${X}",
            "#x",
            " a # b ",
            "a\nb",
            "\r",
            "\t",
            "\\n",
            "é✓",
            "\\\\",
            "$$",
            "'\"`",
            "%s",
        ] {
            let mut file = EnvFile::default();
            file.set("KEY", value).unwrap();
            let text = file.render();
            let line = text.split_once('\n').unwrap().1;
            assert_eq!(read_back(line), value, "{line}");
        }
    }

    #[test]
    fn what_cannot_arrive_or_would_steer_is_refused() {
        let mut file = EnvFile::default();
        assert!(file.set("KEY", "a\0b").is_err());
        assert!(file.set("KEY", "x".repeat(VALUE_BYTES_MAX + 1)).is_err());
        for key in ["COMPOSE_FILE", "DOCKER_HOST", "PATH", "LD_PRELOAD", "A-B", "1A", "", "A=B", "A\n"] {
            assert!(file.set(key, "x").is_err(), "{key:?}");
        }
    }

    #[test]
    fn values_never_show_in_debug() {
        let mut file = EnvFile::default();
        file.set("TOKEN", "hunter2").unwrap();
        assert!(!format!("{file:?}").contains("hunter2"));
    }

    #[test]
    fn a_persons_env_file_is_read() {
        let text = "A=1\nexport TOKEN = 'x y' # c\nOTHER=2\nTOKENS=no\n";
        assert_eq!(find(text, "TOKEN").as_deref(), Some("x y"));
        assert_eq!(find("TOKEN=ab # c\n", "TOKEN").as_deref(), Some("ab"));
        assert_eq!(find("TOKEN=\"a#b\"\r\n", "TOKEN").as_deref(), Some("a#b"));
        assert_eq!(find(text, "NONE"), None);
    }
}
