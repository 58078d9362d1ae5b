//! Directories and images of the controller's machine on a deployed node, and what comes back.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use super::killed::{kill_worker, worker_is_back};
use crate::support::{
    IMAGE,
    fleet::{Lent, ONE, fleet},
    http,
    poll::until,
    testbed::{containers_of, own_engine},
    work::{id_of, read_to_end, script, with},
};

const SENT_LIMIT: Duration = Duration::from_secs(60);
/// Compressed, it does not get smaller: it takes a while on its way.
const NOISE_BYTES: usize = 24 * 1024 * 1024;

fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("src")).expect("a directory");
    fs::create_dir_all(at("target")).expect("a directory");
    fs::write(at("src/number"), "42\n").expect("a file");
    fs::write(at("target/big"), "not sent\n").expect("a file");
    fs::write(at(".gitignore"), "/target\n").expect("a file");
    let text = "set -e; cat src/number; [ ! -e target ]; mkdir -p out/deep; \
         sed s/42/43/ src/number > out/deep/number; echo '{\"answer\": 42}'";
    fs::write(at("run.sh"), text).expect("a file");
    directory
}

/// Submitted as a person; gives the id.
async fn submit(fleet: &Lent, request: Value) -> String {
    let socket = fleet.controller.data.join("api.sock");
    let view = http::post_unix(&socket, "/v1/executions", &request).await.expect("accepted");
    id_of(&view, "execution_id")
}

fn request(project: &Path, text: &str) -> Value {
    with(script(text, &["one"]), json!({"workspace": project, "artifacts": ["out"], "wait_seconds": null}))
}

async fn unpacked(fleet: &Lent, id: &str, into: &Path) {
    let into = into.to_string_lossy();
    fleet.controller.cli(&["executions", "artifacts", id, &into]).await.succeeded();
}

#[tokio::test]
async fn a_directory_runs_there_and_its_artifacts_come_back() {
    let fleet = fleet().await;
    let (project, into) = (project(), tempfile::tempdir().expect("a directory"));
    let (from, to) = (project.path().to_string_lossy(), into.path().to_string_lossy());
    let words = [
        "run",
        "--image",
        IMAGE,
        "--tag",
        "one",
        "--workspace",
        &from,
        "--artifact",
        "out",
        "--artifact",
        "absent",
        "--artifacts-to",
        &to,
        "--",
        "sh",
        "run.sh",
    ];
    let answer = fleet.controller.cli(&words).await;
    assert!(answer.stderr.contains("nothing at absent"), "{}", answer.stderr);
    assert_eq!(answer.succeeded(), "42\n{\"answer\": 42}\n");
    assert_eq!(fs::read_to_string(into.path().join("out/deep/number")).expect("it came"), "43\n");
    let again = fleet.controller.cli(&words).await;
    assert!(again.failed().contains("it exists"), "{}", again.stderr);
    until("the node has let go of all of it", SENT_LIMIT, async || {
        let left = "docker volume ls -q | grep workspace; docker ps -aq --filter label=aegis.execution_id";
        fleet.host_of(ONE).sh(&format!("{left}; true")).trim().is_empty().then_some(())
    })
    .await;
    let kept = fs::read_dir(fleet.controller.data.join("workspaces")).expect("a directory").count();
    assert_eq!(kept, 0, "packed files go with their executions");
}

#[tokio::test]
async fn an_image_that_only_this_machine_has_is_sent() {
    let fleet = fleet().await;
    let image = format!("only-here:{}", std::process::id());
    own_engine(&["tag", IMAGE, &image]);
    let host = fleet.host_of(ONE);
    let has = format!("docker image inspect {image}");
    assert!(!host.holds(&has));
    let words = ["run", "--image", &image, "--tag", "one", "--", "echo", "there"];
    let answer = fleet.controller.cli(&words).await;
    own_engine(&["rmi", &image]);
    assert_eq!(answer.succeeded(), "there\n");
    host.sh(&format!("docker rmi {image}"));
    let log = fleet.controller.log();
    let sent = log.lines().filter(|line| line.contains("content was sent") && line.contains(&image));
    assert_eq!(sent.count(), 1, "once");
}

#[tokio::test]
async fn an_assistant_sends_nothing_that_no_operator_named() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let project = project();
    for path in [project.path(), Path::new("/etc"), Path::new("/nowhere"), Path::new("/")] {
        let arguments = with(script("true", &["one"]), json!({"workspace": path}));
        let text = client.refused("submit_execution", arguments).await;
        assert!(text.contains("spec.deploy.workspace_roots"), "{text}");
    }
    let arguments = with(script("true", &["one"]), json!({"workspace": "relative"}));
    let text = client.refused("submit_execution", arguments).await;
    assert!(text.contains("absolute"), "{text}");
}

#[tokio::test]
async fn the_controller_killed_once_a_directory_was_sent() {
    let mut fleet = fleet().await;
    let project = project();
    let mut noise = Vec::with_capacity(NOISE_BYTES);
    while noise.len() < NOISE_BYTES {
        noise.extend_from_slice(uuid::Uuid::new_v4().as_bytes());
    }
    fs::write(project.path().join("noise"), noise).expect("a file");
    let before = fleet.controller.log().matches("content was sent").count();
    let id = submit(&fleet, request(project.path(), "sh run.sh; ls -l noise | wc -l")).await;
    until("its directory was sent", SENT_LIMIT, async || {
        (fleet.controller.log().matches("content was sent").count() > before).then_some(())
    })
    .await;
    fleet.controller.kill();
    fleet.controller.start_again().await;
    let mut client = fleet.client().await;
    let ended = read_to_end(&mut client, &id).await;
    assert_eq!(ended.view["state"], "succeeded", "{:#}", ended.view);
    assert_eq!(ended.stdout, "42\n{\"answer\": 42}\n1\n");
    let into = tempfile::tempdir().expect("a directory");
    unpacked(&fleet, &id, into.path()).await;
    assert_eq!(fs::read_to_string(into.path().join("out/deep/number")).expect("it came"), "43\n");
}

#[tokio::test]
async fn the_node_killed_while_artifacts_wait() {
    let mut fleet = fleet().await;
    let host = fleet.host_of(ONE).clone();
    let project = project();
    let id = submit(&fleet, request(project.path(), "sh run.sh; sleep 3; exit 7")).await;
    until("its container runs", SENT_LIMIT, async || {
        let view = fleet.controller.api(&format!("/v1/executions/{id}")).await.ok()?;
        (view["state"] == "running").then_some(())
    })
    .await;
    assert_eq!(containers_of(&host, &id).len(), 1);
    fleet.controller.kill();
    until("the container has ended", SENT_LIMIT, async || {
        host.sh(&format!("docker ps -q --filter label=aegis.execution_id={id}"))
            .trim()
            .is_empty()
            .then_some(())
    })
    .await;
    let killed = kill_worker(&host);
    fleet.controller.start_again().await;
    let mut client = fleet.client().await;
    worker_is_back(&mut client, &host, &killed).await;
    let ended = read_to_end(&mut client, &id).await;
    assert_eq!((&ended.view["state"], &ended.view["exit_code"]), (&json!("failed"), &json!(7)));
    let into = tempfile::tempdir().expect("a directory");
    unpacked(&fleet, &id, into.path()).await;
    assert_eq!(fs::read_to_string(into.path().join("out/deep/number")).expect("it came"), "43\n");
}
