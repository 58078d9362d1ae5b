//! Builds the image of `packaging/`, and runs it on the engine whose socket it gets.

use std::{
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::support::{IMAGE, poll::until, raw::initialize};

const SOCKET: &str = "/var/run/docker.sock";
/// The daemon starts in well under a second.
const HEALTHY_TIME_MAX: Duration = Duration::from_secs(30);

/// Container with its own volume; both are removed when the test ends.
struct Container {
    name: String,
}

impl Container {
    fn start(image: &str) -> Self {
        let name = format!("aegis-image-{}", std::process::id());
        let group = std::fs::metadata(SOCKET).expect("an engine's socket").gid().to_string();
        let container = Self { name };
        docker(&[
            "run",
            "--detach",
            "--name",
            &container.name,
            "--health-interval",
            "1s",
            "--group-add",
            &group,
            "--volume",
            &format!("{}:/var/lib/aegis", container.name),
            "--volume",
            &format!("{SOCKET}:{SOCKET}"),
            image,
        ]);
        container
    }

    async fn until_healthy(&self) {
        until("the container is healthy", HEALTHY_TIME_MAX, async || {
            let status = docker(&["inspect", "--format", "{{.State.Health.Status}}", &self.name]);
            (status == "healthy").then_some(())
        })
        .await;
    }

    fn aegis(&self, words: &[&str]) -> String {
        docker(&[&["exec", self.name.as_str(), "aegis"], words].concat())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.aegis(&["status", "-o", "json"])).expect("JSON")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for words in [["rm", "--force"], ["volume", "rm"]] {
            // It may not have come to be.
            let _ = Command::new("docker").args(words).arg(&self.name).output();
        }
    }
}

fn docker(words: &[&str]) -> String {
    said("docker", Command::new("docker").args(words).output().expect("a client of Docker"))
}

fn said(what: &str, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{err}");
    out.trim().to_owned()
}

#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn the_image_is_a_hybrid_node_that_keeps_itself_in_its_volume() {
    let image = "aegis:e2e";
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/image");
    said("packaging/image", Command::new(script).arg(image).output().expect("the script"));
    let version = docker(&["run", "--rm", image, "--version"]);
    assert_eq!(version, format!("aegis {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(docker(&["inspect", "--format", "{{.Config.User}}", image]), "65532:65532");

    let container = Container::start(image);
    container.until_healthy().await;
    let before = container.status();
    let said_by_it = container.aegis(&["run", "--image", IMAGE, "--", "echo", "from the image"]);
    assert_eq!(said_by_it, "from the image");
    let doctor = container.aegis(&["doctor", "-o", "json"]);
    assert!(doctor.contains("\"healthy\": true"), "{doctor}");

    // An assistant's pipe.
    let mut pipe = Command::new("docker")
        .args(["exec", "--interactive", &container.name, "aegis", "mcp"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client of Docker");
    let mut input = pipe.stdin.take().expect("a pipe");
    writeln!(input, "{}", initialize()).expect("it reads");
    drop(input);
    let answer = said("aegis mcp", pipe.wait_with_output().expect("output"));
    assert!(answer.contains("serverInfo"), "{answer}");

    docker(&["stop", &container.name]);
    let ended = docker(&["inspect", "--format", "{{.State.ExitCode}}", &container.name]);
    assert_eq!(ended, "0", "{}", docker(&["logs", &container.name]));
    docker(&["start", &container.name]);
    container.until_healthy().await;
    let after = container.status();
    assert_eq!(after["cluster_id"], before["cluster_id"], "another cluster: {before:#} {after:#}");
}
