//! Checks the files of `packaging/` with the programs that read them.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    cli,
    controller::{Controller, Setup},
};

const NOTICE_TIME_MAX: Duration = Duration::from_secs(30);

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

fn text(file: &str) -> String {
    let path = tree().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(file: &str) -> Value {
    serde_json::from_str(&text(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn versions_and_names_agree_with_cargos() {
    let version = env!("CARGO_PKG_VERSION");
    let server = json("server.json");
    assert_eq!(server["version"], version);
    let package = &server["packages"][0];
    let identifier = package["identifier"].as_str().expect("text");
    assert!(identifier.ends_with(&format!(":{version}")), "{identifier}");
    assert_eq!(json("packaging/claude-code-plugin/.claude-plugin/plugin.json")["version"], version);
    let dockerfile = text("packaging/Dockerfile");
    assert!(dockerfile.contains(&format!("ARG VERSION={version}\n")), "{dockerfile}");
    let name = server["name"].as_str().expect("text");
    let label = format!("io.modelcontextprotocol.server.name=\"{name}\"");
    assert!(dockerfile.contains(&label), "the registry wants {label}");
    assert!(text("packaging/README.md").contains(&format!("aegis:{version}\n")));
}

/// Checks the fields that the schema of the registry requires.
#[test]
fn the_registry_would_take_server_json() {
    let server = json("server.json");
    let of = |key: &str| server[key].as_str().unwrap_or_else(|| panic!("{key} is missing"));
    assert!(of("$schema").ends_with("/server.schema.json"));
    let (space, name) = of("name").split_once('/').expect("one slash");
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    assert!(plain(space, ".-") && plain(name, "._-"), "{space}/{name}");
    assert!((1..=100).contains(&of("description").len()) && (1..=100).contains(&of("title").len()));
    for package in server["packages"].as_array().expect("packages") {
        assert_eq!(package["registryType"], "oci");
        assert_eq!(package["transport"]["type"], "stdio");
        // An image's version is in its name, and a client that is told how to run it is told with what.
        assert!(package.get("version").is_none() && package["runtimeHint"] == "docker", "{package:#}");
        for argument in ["runtimeArguments", "packageArguments"] {
            for argument in package[argument].as_array().expect("arguments") {
                let needed = if argument["type"] == "named" { "name" } else { "value" };
                assert!(argument[needed].is_string(), "{argument}");
            }
        }
    }
}

#[test]
fn the_plugin_and_the_tree_start_the_pipe() {
    let marketplace = json(".claude-plugin/marketplace.json");
    let plugin = &marketplace["plugins"][0];
    let source = tree().join(plugin["source"].as_str().expect("text"));
    let manifest: Value = serde_json::from_str(
        &std::fs::read_to_string(source.join(".claude-plugin/plugin.json")).expect("a manifest"),
    )
    .expect("JSON");
    assert_eq!(manifest["name"], plugin["name"]);
    for file in [".mcp.json", "packaging/claude-code-plugin/.mcp.json"] {
        let server = &json(file)["mcpServers"]["aegis"];
        let program = Path::new(server["command"].as_str().expect("text"));
        assert_eq!(program.file_name().expect("a name"), "aegis", "{file}");
        assert_eq!(server["args"], serde_json::json!(["mcp"]), "{file}");
    }
}

#[test]
fn systemd_takes_the_unit() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        return println!("there is no systemd-analyze here: not verified");
    };
    assert!(version.status.success());
    let directory = tempfile::tempdir().expect("a directory");
    let unit = text("packaging/aegis.service");
    let start = "ExecStart=/usr/local/bin/aegis ";
    assert!(unit.contains(start), "{unit}");
    // The program has to be there, and is at another place.
    let unit = unit.replace(start, &format!("ExecStart={} ", cli::BINARY));
    let file = directory.path().join("aegis.service");
    std::fs::write(&file, unit).expect("the unit");
    let verified =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("aegis.service")).collect();
    // docker.service need not be installed where this is tested.
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

#[tokio::test]
async fn systemd_is_told_when_the_daemon_listens_and_when_it_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(NOTICE_TIME_MAX)).expect("a limit");
    let heard = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).expect("a notice in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let environment = vec![("NOTIFY_SOCKET", path.to_str().expect("UTF-8").to_owned())];
    let mut controller = Controller::prepare(&Setup { environment, ..Setup::default() });
    controller.launch();
    assert_eq!(heard().trim(), "READY=1");
    let health = controller.api("/health/ready").await.expect("it answers once it said so");
    assert_eq!(health["ready"], true, "{health}");
    controller.stop().await;
    assert_eq!(heard().trim(), "STOPPING=1");
}
