//! The `.env` file that Compose reads, so that every value arrives byte for byte.
//!
//! Values stand in double quotes with `\`, `"`, `$`, newline and carriage return escaped: single
//! quotes lose a trailing backslash, bare values break at `#`, `$` and spaces.

pub mod interpolate;

use std::{collections::BTreeMap, fmt::Write as _};

use aegis_types::{
    error::{Error, Result},
    secret::Secret,
    text::shown,
};

/// A value larger than this is data, not a setting.
const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Prefix of keys that steer Compose.
const COMPOSE_PREFIX: &str = "COMPOSE_";
/// Keys that the Docker client obeys. An application's own may begin like them.
const DOCKER_KEYS: [&str; 19] = [
    "DOCKER_API_VERSION",
    "DOCKER_AUTH_CONFIG",
    "DOCKER_BUILDKIT",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_CONTENT_TRUST",
    "DOCKER_CONTENT_TRUST_SERVER",
    "DOCKER_CONTEXT",
    "DOCKER_CUSTOM_HEADERS",
    "DOCKER_DEFAULT_PLATFORM",
    "DOCKER_DRIVER",
    "DOCKER_HIDE_LEGACY_COMMANDS",
    "DOCKER_HOST",
    "DOCKER_MACHINE_NAME",
    "DOCKER_RAMDISK",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_TMPDIR",
    "DOCKER_CLI_HINTS",
];
/// Keys that the loader of programs obeys (ld.so(8)).
const LOADER_KEYS: [&str; 21] = [
    "LD_ASSUME_KERNEL",
    "LD_AUDIT",
    "LD_BIND_NOT",
    "LD_BIND_NOW",
    "LD_DEBUG",
    "LD_DEBUG_OUTPUT",
    "LD_DYNAMIC_WEAK",
    "LD_ELF_HINTS_PATH",
    "LD_HWCAP_MASK",
    "LD_LIBRARY_PATH",
    "LD_ORIGIN_PATH",
    "LD_POINTER_GUARD",
    "LD_PREFER_MAP_32BIT_EXEC",
    "LD_PRELOAD",
    "LD_PROFILE",
    "LD_PROFILE_OUTPUT",
    "LD_SHOW_AUXV",
    "LD_TRACE_LOADED_OBJECTS",
    "LD_USE_LOAD_BIAS",
    "LD_VERBOSE",
    "LD_WARN",
];
/// Keys of Compose that choose other files than those that are sent.
const FILE_CHOICES: [&str; 4] =
    [COMPOSE_FILE, "COMPOSE_ENV_FILES", "COMPOSE_DISABLE_ENV_FILE", "COMPOSE_PATH_SEPARATOR"];
/// The two of them that are ours to set, so that a person's `docker compose` in the base directory
/// means the same stack as ours.
const COMPOSE_FILE: &str = "COMPOSE_FILE";
const COMPOSE_PROFILES: &str = "COMPOSE_PROFILES";
const ENTRIES_MAX: usize = 1000;

#[derive(Debug, Clone, Default)]
pub struct EnvFile {
    values: BTreeMap<String, Secret>,
    left_out: Vec<String>,
}

impl EnvFile {
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> Result<()> {
        check_key(key)?;
        self.put(key, value.into())
    }

    /// Which files Compose reads, in their order, and which profiles count.
    pub fn steer_compose(&mut self, files: &[&str], profiles: &[String]) -> Result<()> {
        self.put(COMPOSE_FILE, files.join(":"))?;
        self.put(COMPOSE_PROFILES, profiles.join(","))
    }

    pub fn contains(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Says that a key of the operator's file is not among ours.
    pub fn note_left_out(&mut self, keys: &[String]) {
        self.left_out = keys.to_vec();
    }

    fn put(&mut self, key: &str, value: String) -> Result<()> {
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
        for key in &self.left_out {
            let _ = writeln!(text, "# Left out: {key}");
        }
        for (key, value) in &self.values {
            let _ = writeln!(text, "{key}=\"{}\"", escape(value.reveal()));
        }
        text
    }
}

fn check_key(key: &str) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("environment name \"{}\" {why}", shown(key))));
    if check_form(key).is_err() {
        return refuse("is not made of A-Z, 0-9, '_', '.' and '-'");
    }
    if is_steering(key) {
        return refuse("steers Compose, Docker or the loader and may not be set");
    }
    Ok(())
}

fn check_form(key: &str) -> Result<(), ()> {
    let first = key.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let all = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && all { Ok(()) } else { Err(()) }
}

/// Whether Compose, Docker or the loader of programs obeys a key.
pub fn is_steering(key: &str) -> bool {
    matches!(key, "PATH" | "PWD")
        || key.starts_with(COMPOSE_PREFIX)
        || DOCKER_KEYS.contains(&key)
        || LOADER_KEYS.contains(&key)
}

/// Whether a key of `.env` makes Compose read other files than those that a deployment sends.
pub fn chooses_files(key: &str) -> bool {
    FILE_CHOICES.contains(&key)
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

/// Every entry of a `.env` that a person wrote, by Compose's rules: quotes (over several lines too),
/// comments, `export`, escapes in double quotes, variables of earlier entries outside single quotes.
/// The error says in which line it is wrong, and shows no value.
pub fn parse(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let mut entries: Vec<(String, Secret)> = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    while !rest.is_empty() {
        let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        let wrong = |why: &str| format!("line {line}: {why}");
        let (first, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = first.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            rest = after;
            continue;
        }
        let entry = rest.trim_start();
        let entry = entry.strip_prefix("export ").unwrap_or(entry).trim_start();
        let end = entry.find(['=', ':', '\n']).unwrap_or(entry.len());
        let key = entry[..end].trim();
        // A name alone takes its value from an environment that the host does not have.
        if entry[end..].is_empty() || entry[end..].starts_with('\n') {
            rest = after;
            continue;
        }
        check_form(key).map_err(|()| wrong("it does not begin with a variable's name"))?;
        let value = entry[end + 1..].trim_start_matches([' ', '\t']);
        let lookup = |name: &str| {
            let known = entries.iter().rev().find(|(key, _)| key == name);
            known.map(|(_, value)| value.reveal().to_owned())
        };
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let length =
                    closing_quote(&value[1..], quote).ok_or_else(|| wrong("a quote is not closed"))?;
                rest = value[length + 2..].split_once('\n').map_or("", |(_, after)| after);
                let inner = &value[1..=length];
                match quote {
                    '\'' => inner.to_owned(),
                    _ => interpolate::interpolate(&unescape(inner), &lookup).map_err(|why| wrong(&why))?,
                }
            }
            _ => {
                let (line, after) = value.split_once('\n').unwrap_or((value, ""));
                rest = after;
                let bare =
                    if line.starts_with('#') { "" } else { line.split(" #").next().unwrap_or_default() };
                interpolate::interpolate(bare.trim(), &lookup).map_err(|why| wrong(&why))?
            }
        };
        let key = key.to_owned();
        entries.retain(|(known, _)| *known != key);
        entries.push((key, Secret::new(value)));
        if entries.len() > ENTRIES_MAX {
            return Err(format!("it has more than {ENTRIES_MAX} entries"));
        }
    }
    Ok(entries)
}

fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// `\$` becomes `$$`, which variables leave alone.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some('$') => out.push_str("$$"),
                Some(c @ ('"' | '\\')) => out.push(c),
                Some(other) => out.extend(['\\', other]),
                None => out.push('\\'),
            },
            c => out.push(c),
        }
    }
    out
}

/// Shorter values would be found everywhere in ordinary text.
const SECRET_BYTES_MIN: usize = 8;
/// The same where the name says that the value is secret.
const NAMED_SECRET_BYTES_MIN: usize = 4;
const SECRET_NAMES: [&str; 6] = ["PASS", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "PWD"];

/// Values that a log must not show, from a `.env`, an env file, or the file of a secret: all values but the
/// addresses and names that are our own. A value of several lines also counts line by line, as logs show
/// it. Text that is no env file counts whole.
pub fn secrets(text: &str) -> Vec<Secret> {
    let hidden = |key: &str, value: &str| {
        let ours = key.starts_with("AEGIS_") || matches!(key, "REMOTE_LLM_URL" | "AITHER_EDGE_IMAGE");
        let upper = key.to_ascii_uppercase();
        let least = match SECRET_NAMES.iter().any(|name| upper.contains(name)) {
            true => NAMED_SECRET_BYTES_MIN,
            false => SECRET_BYTES_MIN,
        };
        !ours && !is_steering(key) && value.len() >= least
    };
    let mut found: Vec<String> = Vec::new();
    let entries = parse(text).ok().filter(|entries| !entries.is_empty());
    match entries {
        Some(entries) => {
            let kept = entries.iter().filter(|(key, value)| hidden(key, value.reveal()));
            found.extend(kept.map(|(_, value)| value.reveal().to_owned()));
        }
        None => {
            found.extend(Some(text.trim().to_owned()).filter(|text| text.len() >= NAMED_SECRET_BYTES_MIN));
            // Only lines of an env file count.
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            found.extend(
                pairs.map(|(_, value)| unquote(value.trim())).filter(|value| value.len() >= SECRET_BYTES_MIN),
            );
        }
    }
    let lines: Vec<String> = found
        .iter()
        .filter(|value| value.contains('\n'))
        .flat_map(|value| value.lines().map(str::trim).map(str::to_owned))
        .filter(|line| line.len() >= SECRET_BYTES_MIN)
        .collect();
    found.extend(lines);
    found.into_iter().map(Secret::new).collect()
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

    #[test]
    fn secrets_are_found_in_env_files_and_secret_files() {
        let found = |text: &str| -> Vec<String> {
            secrets(text).iter().map(|secret| secret.reveal().to_owned()).collect()
        };
        assert_eq!(found("DATABASE_URL=postgres://u:pw@db/x\nDEBUG=1\n"), ["postgres://u:pw@db/x"]);
        assert_eq!(found("DB_PASS=abcd\nMODE=prod\n"), ["abcd"], "a short one counts by its name");
        assert_eq!(found("s3cr3t\n"), ["s3cr3t"], "the file of a secret");
        let pem = found("CERT=\"-----BEGIN X-----\nMIIBVgIBADANB\n-----END X-----\"\n");
        assert!(pem.iter().any(|value| value == "MIIBVgIBADANB"), "logs show it line by line: {pem:?}");
        let broken = found("A=\"not closed\nTOKEN=0123456789\n");
        assert!(broken.iter().any(|value| value == "0123456789"), "{broken:?}");
        assert!(found("AEGIS_NODE_ID=\"edge-one-two\"\n").is_empty() && found("").is_empty());
    }

    #[test]
    fn what_a_stack_was_given_is_hidden_and_our_own_names_are_not() {
        let text = "AEGIS_NODE_ID=\"edge-number-one\"\nTUNNEL_TOKEN=\"hunter2\\$hunter2\"\nCOMPOSE_FILE=\"abcdefghi\"\nX=short\n";
        let secrets = secrets(text);
        assert_eq!(secrets.iter().map(Secret::reveal).collect::<Vec<_>>(), ["hunter2$hunter2"]);
    }

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
        for key in ["COMPOSE_FILE", "DOCKER_HOST", "PATH", "PWD", "LD_PRELOAD", "A B", "1A", "", "A=B", "A\n"]
        {
            assert!(file.set(key, "x").is_err(), "{key:?}");
        }
        for key in ["DOCKER_INFLUXDB_INIT_PASSWORD", "LD_CLIENT_ID", "DOCKER_GID"] {
            assert!(file.set(key, "x").is_ok(), "{key}: an application's own");
        }
    }

    #[test]
    fn values_never_show_in_debug() {
        let mut file = EnvFile::default();
        file.set("TOKEN", "hunter2").unwrap();
        assert!(!format!("{file:?}").contains("hunter2"));
    }

    #[test]
    fn an_operators_file_is_read_as_compose_reads_it() {
        let text = "# c\n\nA=1 # c\nexport B = 'x $A # y' # c\nC=\"a\\n\\\"$A\\$A\"\nD=${A}2\nE: yaml\nALONE\nF=\"two\nlines\"\nA=3\nG=\nH=a#b\nI=#c\nJ=ends-with$\nK=\"^/api$\"\n";
        let entries = parse(text).unwrap();
        let entries: Vec<(&str, &str)> =
            entries.iter().map(|(key, value)| (key.as_str(), value.reveal())).collect();
        assert_eq!(
            entries,
            [
                ("B", "x $A # y"),
                ("C", "a\n\"1$A"),
                ("D", "12"),
                ("E", "yaml"),
                ("F", "two\nlines"),
                ("A", "3"),
                ("G", ""),
                ("H", "a#b"),
                ("I", ""),
                ("J", "ends-with$"),
                ("K", "^/api$"),
            ]
        );
        for (bad, says) in [("A=1\nB=\"x", "line 2"), ("A=1\n\nB C=x", "line 3"), ("A=${X:?why}", "why")] {
            assert!(parse(bad).unwrap_err().contains(says), "{bad}");
        }
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
