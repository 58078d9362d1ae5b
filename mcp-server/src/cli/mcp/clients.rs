//! Instructions for clients to start `aegis mcp`: a line to paste, a link to open, or a file with the entry. Each uses
//! the client's own format.
//!
//! All of them use stdio, which needs no token, so no token is ever printed. Only this module knows the clients' files;
//! `doctor` reads the same files.

use std::{fmt::Write as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use cluster_core::{
    config::{NodeConfig, Overrides, Settings},
    types::error::{Error, ErrorCode, Result},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{own_path, segment, shown},
    daemon::{HTTP_ADDRESS, HTTP_TOKEN},
};

/// Name of this server in a client.
pub const NAME: &str = "aegis";

/// Client that supports servers over stdio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    ClaudeCode,
    ClaudeDesktop,
    Cursor,
    Vscode,
    Codex,
}

/// Formats of the clients' files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileForm {
    /// JSON, with the servers below this key.
    Json(&'static str),
    /// TOML, with the servers below this key.
    Toml(&'static str),
}

impl ClientKind {
    /// Name of the client for people.
    pub const fn title(self) -> &'static str {
        match self {
            ClientKind::ClaudeCode => "Claude Code",
            ClientKind::ClaudeDesktop => "Claude Desktop",
            ClientKind::Cursor => "Cursor",
            ClientKind::Vscode => "VS Code",
            ClientKind::Codex => "Codex",
        }
    }

    pub const fn form(self) -> FileForm {
        match self {
            ClientKind::Vscode => FileForm::Json("servers"),
            ClientKind::Codex => FileForm::Toml("mcp_servers"),
            ClientKind::ClaudeCode | ClientKind::ClaudeDesktop | ClientKind::Cursor => {
                FileForm::Json("mcpServers")
            }
        }
    }

    /// Paths of the user's entries, relative to the home directory: on Linux, and on macOS.
    pub const fn user_files(self) -> (&'static str, &'static str) {
        match self {
            ClientKind::ClaudeCode => (".claude.json", ".claude.json"),
            ClientKind::ClaudeDesktop => (
                ".config/Claude/claude_desktop_config.json",
                "Library/Application Support/Claude/claude_desktop_config.json",
            ),
            ClientKind::Cursor => (".cursor/mcp.json", ".cursor/mcp.json"),
            ClientKind::Vscode => {
                (".config/Code/User/mcp.json", "Library/Application Support/Code/User/mcp.json")
            }
            ClientKind::Codex => (".codex/config.toml", ".codex/config.toml"),
        }
    }

    /// Path of the user's plugins, relative to the home directory: JSON, with `NAME@MARKETPLACE: true` below
    /// `enabledPlugins`.
    pub const fn plugin_file(self) -> Option<&'static str> {
        match self {
            ClientKind::ClaudeCode => Some(".claude/settings.json"),
            ClientKind::ClaudeDesktop | ClientKind::Cursor | ClientKind::Vscode | ClientKind::Codex => None,
        }
    }
}

/// Command that a client has to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    pub command: String,
    pub args: Vec<String>,
}

/// Ways to add the server to one client; each of them suffices.
#[derive(Debug, Serialize)]
pub struct Addition {
    client: ClientKind,
    /// Line for a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<String>,
    /// Link for a browser.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    file: File,
}

/// File with the entry alone, to be merged with existing content.
#[derive(Debug, Serialize)]
struct File {
    linux: String,
    macos: String,
    content: String,
}

impl Addition {
    fn of(client: ClientKind, server: &Server) -> Result<Self> {
        let words = || server.words().map(quoted).collect::<Vec<_>>().join(" ");
        let line = match client {
            ClientKind::ClaudeCode => Some(format!("claude mcp add {NAME} -- {}", words())),
            ClientKind::Codex => Some(format!("codex mcp add {NAME} -- {}", words())),
            ClientKind::Vscode => Some(format!("code --add-mcp {}", quoted(&server.named().to_string()))),
            ClientKind::ClaudeDesktop | ClientKind::Cursor => None,
        };
        let link = match client {
            ClientKind::Cursor => {
                let config = segment(&STANDARD.encode(json!(server).to_string()));
                Some(format!("cursor://anysphere.cursor-deeplink/mcp/install?name={NAME}&config={config}"))
            }
            ClientKind::Vscode => {
                Some(format!("vscode:mcp/install?{}", segment(&server.named().to_string())))
            }
            ClientKind::ClaudeCode | ClientKind::ClaudeDesktop | ClientKind::Codex => None,
        };
        let (linux, macos) = match client {
            // The file in the home directory is Claude Code's own state, and not to be edited by hand.
            ClientKind::ClaudeCode => ("PROJECT/.mcp.json".to_owned(), "PROJECT/.mcp.json".to_owned()),
            _ => {
                let (linux, macos) = client.user_files();
                (format!("~/{linux}"), format!("~/{macos}"))
            }
        };
        let file = File { linux, macos, content: server.entry(client)? };
        Ok(Self { client, line, link, file })
    }

    pub fn text(&self) -> String {
        let mut text = format!("{}:\n", self.client.title());
        // Writing to a string does not fail.
        for way in self.line.iter().chain(&self.link) {
            let _ = writeln!(text, "\n  {way}\n\nor");
        }
        let File { linux, macos, content } = &self.file;
        let place = if linux == macos { linux.clone() } else { format!("{linux} (macOS: {macos})") };
        let _ = write!(text, "\nin {place}, beside what is there:\n\n{}", content.trim_end());
        text
    }
}

impl Server {
    fn words(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.command.as_str()).chain(self.args.iter().map(String::as_str))
    }

    /// Entry in the format of VS Code's links and commands.
    fn named(&self) -> Value {
        json!({ "name": NAME, "type": "stdio", "command": self.command, "args": self.args })
    }

    fn entry(&self, client: ClientKind) -> Result<String> {
        let entry = match client {
            ClientKind::Vscode => json!({ "type": "stdio", "command": self.command, "args": self.args }),
            _ => json!(self),
        };
        let unwritten =
            |e: &dyn std::fmt::Display| Error::internal(format!("an entry cannot be written: {e}"));
        match client.form() {
            FileForm::Json(key) => {
                serde_json::to_string_pretty(&json!({ key: { NAME: entry } })).map_err(|e| unwritten(&e))
            }
            FileForm::Toml(key) => {
                toml::to_string(&json!({ key: { NAME: entry } })).map_err(|e| unwritten(&e))
            }
        }
    }
}

/// Ways in which assistants connect.
#[derive(Debug, Serialize)]
pub struct Clients {
    /// Common beginning of all commands.
    command: String,
    data_dir: String,
    server: Server,
    clients: Vec<Addition>,
    http_url: String,
    http_token_file: String,
}

impl Clients {
    pub fn of(data_dir: &Path) -> Result<Self> {
        let command = text_of(&own_path()?)?;
        let dir = text_of(data_dir)?;
        // Named only if it is not the default, so that the command works in any environment.
        let is_default = Settings::of(&NodeConfig::default(), &Overrides::default())
            .is_ok_and(|settings| settings.data_dir == data_dir);
        let mut args = Vec::new();
        if !is_default {
            args.extend(["--data-dir".to_owned(), dir.clone()]);
        }
        let mut server = Server { command, args };
        let prefix = server.words().map(quoted).collect::<Vec<_>>().join(" ");
        server.args.push("mcp".to_owned());
        let address = std::fs::read_to_string(data_dir.join(HTTP_ADDRESS))
            .map_or_else(|_| "127.0.0.1:8088".to_owned(), |text| text.trim().to_owned());
        let origin = if address.contains("://") { address } else { format!("http://{address}") };
        let clients = ClientKind::value_variants().iter().map(|client| Addition::of(*client, &server));
        Ok(Self {
            clients: clients.collect::<Result<_>>()?,
            http_url: format!("{origin}/mcp"),
            http_token_file: shown(&data_dir.join(HTTP_TOKEN)),
            command: prefix,
            data_dir: dir,
            server,
        })
    }

    /// Returns the ways to add the server to one client.
    pub fn one(&self, client: ClientKind) -> Result<Addition> {
        Addition::of(client, &self.server)
    }

    /// Returns the shortest way for each client, and the next steps.
    pub fn text(&self) -> String {
        let mut text = "Add it to an assistant:\n".to_owned();
        for Addition { client, line, link, file } in &self.clients {
            let way = line.clone().or_else(|| link.clone());
            let way = way.unwrap_or_else(|| {
                format!("{} in {}", json!({ "mcpServers": { NAME: self.server } }), file.linux)
            });
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {:<16}{way}", client.title());
        }
        let _ = write!(
            text,
            "  {:<16}{}  (bearer token in {})\n  \
             (files and links: {} mcp --print-config CLIENT)\n\n\
             Deploy a first machine:\n  \
             {} host approve HOST\n  \
             then ask the assistant, which calls deploy_edge_node {{\"host\": \"HOST\"}}, or: {} deploy HOST",
            "over HTTP", self.http_url, self.http_token_file, self.command, self.command, self.command,
        );
        text
    }
}

/// Returns a path as text, since clients' files, links and lines hold only text.
fn text_of(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorCode::FailedPrecondition, format!("{} is not UTF-8", path.display()))
            .remedy("put it where a client's configuration can name it")
    })
}

/// Quotes a word for a shell line that a person pastes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ':' | '=' | '+');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
