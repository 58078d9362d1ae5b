//! Checks which assistants' clients of this user have an entry of this program, and whether its command exists. The
//! files hold other programs' secrets, so only the command of the own entry is shown.

use std::{
    ffi::OsStr,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::ValueEnum as _;
use serde_json::Value;

use super::{Check, Finding, machine};
use crate::cli::mcp::clients::{ClientKind, FileForm, NAME};

/// Claude Code keeps its history in the same file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Facts {
    client: ClientKind,
    file: PathBuf,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// No file, or no entry of this program in it.
    Absent,
    Unreadable,
    /// Command of each entry, and whether the command exists; `None` for an entry that connects over HTTP.
    Present(Vec<Option<(String, bool)>>),
}

pub fn look() -> Vec<Facts> {
    let Some(home) = std::env::home_dir() else { return Vec::new() };
    let path = std::env::var_os("PATH");
    ClientKind::value_variants().iter().flat_map(|client| look_at(*client, &home, path.as_deref())).collect()
}

/// Returns the facts of a client's entries, and of its plugin if it supports plugins.
fn look_at(client: ClientKind, home: &Path, path: Option<&OsStr>) -> Vec<Facts> {
    let (linux, macos) = client.user_files();
    let file = home.join(if cfg!(target_os = "macos") { macos } else { linux });
    let state = found_in(&file, |text| entries(client, text), path);
    let mut facts = vec![Facts { client, file, state }];
    facts.extend(client.plugin_file().map(|file| {
        let file = home.join(file);
        let state = found_in(&file, plugins, path);
        Facts { client, file, state }
    }));
    facts
}

fn found_in(
    file: &Path,
    entries: impl Fn(&str) -> Option<Vec<Option<String>>>,
    path: Option<&OsStr>,
) -> State {
    match read(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => State::Absent,
        Err(_) => State::Unreadable,
        Ok(text) => match entries(&text) {
            None => State::Unreadable,
            Some(entries) if entries.is_empty() => State::Absent,
            Some(entries) => State::Present(
                entries
                    .into_iter()
                    .map(|command| {
                        let command = command?;
                        let there = machine::find(Path::new(&command), path.map(OsStr::to_owned)).is_some();
                        Some((command, there))
                    })
                    .collect(),
            ),
        },
    }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns the command of each entry of this program; `None` if the text cannot be parsed.
fn entries(client: ClientKind, text: &str) -> Option<Vec<Option<String>>> {
    let (document, key): (Value, _) = match client.form() {
        _ if text.trim().is_empty() => return Some(Vec::new()),
        FileForm::Json(key) => (serde_json::from_str(text).ok()?, key),
        FileForm::Toml(key) => (toml::from_str(text).ok()?, key),
    };
    // Claude Code also has entries of single projects, which `claude mcp add` writes.
    let projects = document.get("projects").and_then(Value::as_object);
    let places = std::iter::once(&document).chain(projects.into_iter().flat_map(|all| all.values()));
    let ours = places.filter_map(|place| place.get(key)?.get(NAME));
    let command = |entry: &Value| entry.get("command").and_then(Value::as_str).map(str::to_owned);
    Some(ours.map(command).collect())
}

/// Returns the command of the plugin, if it is installed and enabled; `None` if the text cannot be parsed.
fn plugins(text: &str) -> Option<Vec<Option<String>>> {
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    let document: Value = serde_json::from_str(text).ok()?;
    let enabled = document.get("enabledPlugins").and_then(Value::as_object).into_iter().flatten();
    let ours = enabled.filter(|(name, on)| {
        name.split_once('@').is_some_and(|(plugin, _)| plugin == NAME) && on.as_bool() == Some(true)
    });
    // As in packaging/claude-code-plugin/.mcp.json: by name, from PATH.
    Some(ours.map(|_| Some(NAME.to_owned())).collect())
}

pub fn judge(facts: &[Facts]) -> Vec<Finding> {
    let check = Check::Clients;
    let mut findings = Vec::new();
    let mut with = Vec::new();
    for Facts { client, file, state } in facts {
        let (title, file) = (client.title(), file.display());
        match state {
            State::Absent => {}
            State::Unreadable => findings.push(
                check.warn(format!("{title}: {file} cannot be read"), "correct it: the client reads it too"),
            ),
            State::Present(entries) => {
                if !with.contains(&title) {
                    with.push(title);
                }
                let gone = entries.iter().flatten().filter(|(_, there)| !there);
                findings.extend(gone.map(|(command, _)| {
                    let command = cluster_core::types::text::shown(command);
                    check.fail(
                        format!("{title} is to start {command}, which is not there ({file})"),
                        "put it there, or change the entry: aegis mcp --print-config",
                    )
                }));
            }
        }
    }
    if findings.is_empty() {
        findings.push(check.ok(match with.as_slice() {
            [] => "none of this user's has aegis: `aegis mcp --print-config` says how".to_owned(),
            with => format!("in {}", with.join(", ")),
        }));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{Fail, Ok as Good, Warn};

    fn at(client: ClientKind, text: &str) -> Facts {
        let home = tempfile::tempdir().unwrap();
        let (linux, macos) = client.user_files();
        let file = home.path().join(if cfg!(target_os = "macos") { macos } else { linux });
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
        look_at(client, home.path(), Some("/bin".as_ref())).remove(0)
    }

    #[test]
    fn a_plugin_is_found_where_it_is_switched_on() {
        let (home, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let settings = home.path().join(ClientKind::ClaudeCode.plugin_file().unwrap());
        std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
        let look = |text: &str| {
            std::fs::write(&settings, text).unwrap();
            look_at(ClientKind::ClaudeCode, home.path(), Some(bin.path().as_os_str()))
        };
        let on =
            r#"{"enabledPlugins": {"other@aegis": true, "aegis@aegis": true}, "env": {"KEY": "s3cret"}}"#;
        let found = look(on);
        assert_eq!((&found[0].state, &found[1].state), (&State::Absent, &started(NAME, false)));
        let told = judge(&found);
        assert!(told[0].result == Fail && told[0].detail.contains(".claude/settings.json"), "{told:?}");
        assert!(!format!("{told:?}").contains("s3cret"), "{told:?}");
        std::fs::copy("/bin/sh", bin.path().join(NAME)).unwrap();
        let found = look(on);
        assert_eq!(found[1].state, started(NAME, true));
        assert_eq!(judge(&found)[0].detail, "in Claude Code");
        for without in
            [r#"{"enabledPlugins": {"aegis@aegis": false}}"#, r#"{"enabledPlugins": {}}"#, "{}", ""]
        {
            assert_eq!(look(without)[1].state, State::Absent, "{without}");
        }
        assert_eq!(look("{")[1].state, State::Unreadable);
    }

    fn started(command: &str, there: bool) -> State {
        State::Present(vec![Some((command.to_owned(), there))])
    }

    #[test]
    fn entries_are_found_in_each_clients_form() {
        let json = r#"{"mcpServers": {"aegis": {"command": "/bin/sh", "args": ["mcp"]}}}"#;
        for client in [ClientKind::ClaudeCode, ClientKind::ClaudeDesktop, ClientKind::Cursor] {
            assert_eq!(at(client, json).state, started("/bin/sh", true), "{client:?}");
        }
        let project = r#"{"projects": {"/p": {"mcpServers": {"aegis": {"command": "sh"}}}}}"#;
        assert_eq!(at(ClientKind::ClaudeCode, project).state, started("sh", true));
        let vscode = r#"{"servers": {"aegis": {"type": "http", "url": "http://127.0.0.1:8088/mcp"}}}"#;
        assert_eq!(at(ClientKind::Vscode, vscode).state, State::Present(vec![None]));
        let codex = "[mcp_servers.aegis]\ncommand = \"/gone/aegis\"\n";
        assert_eq!(at(ClientKind::Codex, codex).state, started("/gone/aegis", false));
        assert_eq!(at(ClientKind::Codex, "model = \"x\"").state, State::Absent);
        assert_eq!(at(ClientKind::Cursor, "").state, State::Absent);
    }

    #[test]
    fn what_cannot_start_is_told_and_nothing_else_of_the_file() {
        let good = at(ClientKind::Cursor, r#"{"mcpServers": {"aegis": {"command": "/bin/sh"}}}"#);
        let other =
            r#"{"mcpServers": {"x": {"env": {"KEY": "s3cret"}}, "aegis": {"command": "/gone/aegis"}}}"#;
        let (gone, broken) = (at(ClientKind::ClaudeCode, other), at(ClientKind::Codex, "key = s3cret"));
        assert_eq!(judge(&[])[0].result, Good);
        assert_eq!(judge(&[good])[0].result, Good);
        let findings = judge(&[gone, broken]);
        assert_eq!(findings.iter().map(|it| it.result).collect::<Vec<_>>(), [Fail, Warn]);
        assert!(findings[0].detail.contains("/gone/aegis"), "{findings:?}");
        assert!(!format!("{findings:?}").contains("s3cret"), "{findings:?}");
    }
}
