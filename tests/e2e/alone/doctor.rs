//! `aegis doctor`: its findings about a machine, with and without a daemon.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::support::{
    cli::{self, Answer},
    controller::{Controller, Setup, free_port},
};

/// Writes a configuration with free ports.
fn configuration(directory: &Path, more: &str) -> PathBuf {
    let file = directory.join("aegis.yaml");
    let text = format!(
        "apiVersion: 100monkeys.ai/v1\nkind: NodeConfig\nspec:\n  network: {{port: 0}}\n  \
         cluster: {{role: hybrid, cluster_grpc_port: {}}}\n{more}",
        free_port()
    );
    std::fs::write(&file, text).expect("the configuration");
    file
}

/// Runs with a home directory without any configuration.
async fn doctor(data: &Path, home: &Path, words: &[&str]) -> Answer {
    let words = [&["doctor"], words].concat();
    let data = data.to_str().expect("UTF-8");
    let words = [words.as_slice(), &["--data-dir", data]].concat();
    let home_path = home.to_str().expect("UTF-8");
    cli::run(home, &words, &[("HOME", home_path), ("SSH_AUTH_SOCK", ""), ("AEGIS_CONFIG_PATH", "")], b"")
        .await
}

async fn report(data: &Path, home: &Path, words: &[&str]) -> (i32, Value) {
    let answer = doctor(data, home, &[words, &["-o", "json"]].concat()).await;
    let report: Value = serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    assert_eq!(report["healthy"], answer.status == 0, "{answer:?}");
    (answer.status, report)
}

/// Returns the first finding of a check with this result.
fn finding<'a>(report: &'a Value, check: &str, result: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|it| it["check"] == check && it["result"] == result);
    found.unwrap_or_else(|| panic!("{check} is not {result}: {report:#}"))
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

#[tokio::test]
async fn healthy_daemon_passes_and_no_secret_is_shown() {
    let controller = Controller::start(&Setup::default()).await;
    let home = controller.data.parent().expect("a parent");
    mode(&controller.data, 0o700);
    let (status, found) = report(&controller.data, home, &[]).await;
    assert_eq!(status, 0, "{found:#}");
    assert!(finding(&found, "daemon", "ok")["detail"].as_str().expect("text").contains("home"));
    // The daemon's configuration file, though the command does not name it.
    let file = controller.config();
    assert_eq!(finding(&found, "configuration", "ok")["detail"], json!(file));
    let ports = finding(&found, "ports", "ok")["detail"].as_str().expect("text").to_owned();
    assert!(ports.contains(&controller.address().expect("HTTP is served")), "{ports}");
    for check in ["data_directory", "certificates", "clock", "clients"] {
        finding(&found, check, "ok");
    }
    let shown = doctor(&controller.data, home, &[]).await;
    assert!(!format!("{shown:?}{found}").contains(&controller.token()), "the token is shown");
    assert!(shown.stdout.contains("CHECK"), "{shown:?}");

    mode(&controller.data, 0o755);
    let (status, open) = report(&controller.data, home, &[]).await;
    assert_eq!(status, 6, "{open:#}");
    let remedy = format!("chmod 700 {}", controller.data.display());
    assert_eq!(finding(&open, "data_directory", "fail")["remedy"], remedy);
    let shown = doctor(&controller.data, home, &[]).await;
    assert!(shown.stdout.contains("What to do:") && shown.stdout.contains(&remedy), "{shown:?}");
}

#[tokio::test]
async fn hanging_daemon_is_the_only_failure_and_keeps_its_ports() {
    let controller = Controller::start(&Setup::default()).await;
    let home = controller.data.parent().expect("a parent");
    mode(&controller.data, 0o700);
    let daemon = Pid::from_raw(controller.owner().expect("a daemon"));
    // The kernel still accepts connections for it.
    kill(daemon, Signal::SIGSTOP).expect("it runs");
    let (status, found) = report(&controller.data, home, &[]).await;
    kill(daemon, Signal::SIGCONT).expect("it runs");
    assert_eq!(status, 6, "{found:#}");
    let process = format!("process {daemon}");
    assert!(finding(&found, "daemon", "fail")["detail"].to_string().contains(&process), "{found:#}");
    assert!(finding(&found, "ports", "ok")["detail"].to_string().contains(&process), "{found:#}");
}

#[tokio::test]
async fn without_a_daemon_it_says_so_and_makes_nothing() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let config = configuration(home.path(), "");
    let named = ["--config", config.to_str().expect("UTF-8")];
    let before = std::fs::read_dir(home.path()).expect("a directory").count();
    let (status, found) = report(&data, home.path(), &named).await;
    assert_eq!(status, 0, "{found:#}");
    assert!(finding(&found, "daemon", "warn")["remedy"].as_str().expect("text").contains("aegis up"));
    finding(&found, "data_directory", "ok");
    finding(&found, "ports", "ok");
    finding(&found, "ssh", "warn");
    assert_eq!(std::fs::read_dir(home.path()).expect("a directory").count(), before, "it made something");

    // A client that would start what is not there.
    let cursor = home.path().join(".cursor");
    std::fs::create_dir(&cursor).expect("a directory");
    let entry = json!({"mcpServers": {"aegis": {"command": "/gone/aegis", "env": {"KEY": "s3cret"}}}});
    std::fs::write(cursor.join("mcp.json"), entry.to_string()).expect("the client's file");
    let (status, found) = report(&data, home.path(), &named).await;
    assert_eq!(status, 6, "{found:#}");
    assert!(finding(&found, "clients", "fail")["detail"].as_str().expect("text").contains("/gone/aegis"));
    assert!(!found.to_string().contains("s3cret"), "{found:#}");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_fails_with_its_key() {
    let home = tempfile::tempdir().expect("a directory");
    let config = configuration(home.path(), "  clustr: {}\n");
    let named = ["--config", config.to_str().expect("UTF-8")];
    let (status, found) = report(&home.path().join("data"), home.path(), &named).await;
    assert_eq!(status, 6, "{found:#}");
    let detail = finding(&found, "configuration", "fail")["detail"].as_str().expect("text");
    assert!(detail.contains("spec.clustr") && detail.contains("cluster"), "{detail}");
    // What needs no configuration is looked at all the same.
    finding(&found, "clock", "ok");
}

#[tokio::test]
async fn a_port_that_another_program_has_fails() {
    let home = tempfile::tempdir().expect("a directory");
    let config = configuration(home.path(), "");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = taken.local_addr().expect("an address").port().to_string();
    let home_path = home.path().to_str().expect("UTF-8");
    let words = ["doctor", "--config", config.to_str().expect("UTF-8"), "-o", "json"];
    let environment = [("HOME", home_path), ("AEGIS_PORT", port.as_str())];
    mode(home.path(), 0o700);
    let answer = cli::run(home.path(), &words, &environment, b"").await;
    assert_eq!(answer.status, 6, "{answer:?}");
    let found: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    assert!(finding(&found, "ports", "fail")["detail"].as_str().expect("text").contains(&port), "{found:#}");
}

#[tokio::test]
async fn each_client_gets_its_format_and_wrong_name_lists_clients() {
    let home = tempfile::tempdir().expect("a directory");
    let print = async |client: &str| {
        cli::run(home.path(), &["mcp", "--print-config", client, "-o", "json"], &[], b"").await
    };
    for client in ["claude-code", "claude-desktop", "cursor", "vscode", "codex"] {
        let addition = print(client).await.json();
        assert_eq!(addition["client"], client, "{addition:#}");
        let content = addition["file"]["content"].as_str().expect("text");
        assert!(content.contains(cli::BINARY) && content.contains("mcp"), "{content}");
    }
    let wrong = print("emacs").await;
    assert_eq!(wrong.status, 2, "{wrong:?}");
    for client in ["emacs", "claude-code", "claude-desktop", "cursor", "vscode", "codex"] {
        assert!(wrong.stderr.contains(client), "{wrong:?}");
    }
}
