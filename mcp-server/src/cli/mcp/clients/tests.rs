use std::process::Command;

use super::*;

/// Path with all difficult characters.
const HARD: &str = "/opt/it's a \"test\" $HOME `id` \\n é;&%+/aegis";

fn server() -> Server {
    let args = ["--data-dir", "/srv/aegis data", "mcp"].map(str::to_owned).to_vec();
    Server { command: HARD.to_owned(), args }
}

fn addition(client: ClientKind) -> Addition {
    Addition::of(client, &server()).unwrap()
}

/// Splits a line into words with a real shell.
fn words(line: &str) -> Vec<String> {
    let script = format!("printf '%s\\0' {line}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{line}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn unescaped(text: &str) -> String {
    let pairs = url::form_urlencoded::parse(text.as_bytes());
    pairs.map(|(name, _)| name.into_owned()).collect()
}

#[test]
fn lines_survive_a_shell() {
    let start: Vec<String> = server().words().map(str::to_owned).collect();
    for (client, program) in [(ClientKind::ClaudeCode, "claude"), (ClientKind::Codex, "codex")] {
        let words = words(&addition(client).line.unwrap());
        assert_eq!(words[..5], [program, "mcp", "add", NAME, "--"]);
        assert_eq!(words[5..], start);
    }
    let words = words(&addition(ClientKind::Vscode).line.unwrap());
    assert_eq!(words[..2], ["code", "--add-mcp"]);
    assert_eq!(serde_json::from_str::<Value>(&words[2]).unwrap(), server().named());
    assert_eq!(quoted("/opt/aegis"), "/opt/aegis");
}

#[test]
fn links_decode_to_the_same_entry() {
    let link = url::Url::parse(&addition(ClientKind::Cursor).link.unwrap()).unwrap();
    assert_eq!((link.scheme(), link.host_str()), ("cursor", Some("anysphere.cursor-deeplink")));
    assert_eq!(link.path(), "/mcp/install");
    let query: Vec<_> = link.query_pairs().collect();
    assert_eq!(query[0], ("name".into(), NAME.into()));
    assert_eq!(query[1].0, "config");
    let config: Value = serde_json::from_slice(&STANDARD.decode(&*query[1].1).unwrap()).unwrap();
    assert_eq!(config, json!(server()));

    let link = addition(ClientKind::Vscode).link.unwrap();
    let object: Value =
        serde_json::from_str(&unescaped(link.strip_prefix("vscode:mcp/install?").unwrap())).unwrap();
    assert_eq!(object, server().named());
}

#[test]
fn files_parse_and_hold_the_entry() {
    for client in ClientKind::value_variants().iter().copied() {
        let content = addition(client).file.content;
        let (document, key): (Value, _) = match client.form() {
            FileForm::Json(key) => (serde_json::from_str(&content).unwrap(), key),
            FileForm::Toml(key) => (toml::from_str(&content).unwrap(), key),
        };
        let entry = &document[key][NAME];
        assert_eq!(entry["command"], HARD, "{client:?}");
        assert_eq!(entry["args"], json!(server().args), "{client:?}");
        assert_eq!(document.as_object().unwrap().len(), 1, "{client:?}");
    }
}

#[test]
fn another_data_directory_is_named_and_no_token_is() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("aegis data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join(HTTP_TOKEN), "a-token-that-nobody-may-see").unwrap();
    let clients = Clients::of(&data).unwrap();
    assert_eq!(clients.server.args, ["--data-dir", data.to_str().unwrap(), "mcp"]);
    assert!(clients.http_token_file.ends_with("http.token"));
    let text = format!("{}{}", clients.text(), json!(clients));
    assert!(!text.contains("nobody-may-see"));
    for client in ClientKind::value_variants().iter().copied() {
        assert!(text.contains(client.title()), "{text}");
    }
}

#[test]
fn what_a_client_is_called_is_told_once() {
    for client in ClientKind::value_variants() {
        let name = client.to_possible_value().unwrap().get_name().to_owned();
        assert_eq!(json!(client), name, "JSON and the command line name it alike");
    }
}
