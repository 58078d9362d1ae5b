//! A node's container engine, and its machine, restarted while executions run there.

use serde_json::json;

use super::{BACK_LIMIT, becomes, begin, view};
use crate::support::{
    fleet::{ONE, fleet_of_its_own},
    poll::until,
    testbed::{Disturbed, Host, RESTART_DOCKER, containers_of, own_engine},
    work::{counted, counting, read_to_end, script, with},
};

const LINES: u32 = 60;

/// Its containers end with the engine, including the worker's. Their end is reported as a fault of the engine.
#[tokio::test]
async fn an_engine_started_anew() {
    what_ran_there_is_told_and_begins_again_where_it_may(|host| drop(host.sh(RESTART_DOCKER))).await;
}

/// Simulates a power cut: no process deregisters, and no execution stays running.
#[tokio::test]
async fn a_machine_started_anew() {
    what_ran_there_is_told_and_begins_again_where_it_may(|host| {
        own_engine(&["kill", &host.name]);
        own_engine(&["start", &host.name]);
    })
    .await;
}

async fn what_ran_there_is_told_and_begins_again_where_it_may(start_anew: impl FnOnce(&Host)) {
    let fleet = fleet_of_its_own(|_| ()).await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let once = begin(&mut client, script("echo on; sleep 600", &["one"])).await;
    let twice = script("echo on; sleep 600", &["one"]);
    let twice = begin(&mut client, with(twice, json!({ "max_attempts": 2 }))).await;
    start_anew(host);

    let ended = read_to_end(&mut client, &once).await;
    let failure = &ended.view["failure"];
    assert_eq!((&ended.view["state"], &failure["code"]), (&json!("failed"), &json!("Engine")), "{failure}");
    assert!(failure["message"].as_str().is_some_and(|text| text.contains("engine stopped")), "{failure}");
    assert_eq!((&ended.view["attempt"], ended.stdout.as_str()), (&json!(1), "on\n"));

    becomes(&mut client, &twice, "running", 2).await;
    until("one container is left of two attempts", BACK_LIMIT, async || {
        (containers_of(host, &twice).len() == 1).then_some(())
    })
    .await;
    client.call("cancel_execution", json!({ "execution_id": twice })).await;
    let ended = read_to_end(&mut client, &twice).await;
    assert_eq!((&ended.view["state"], ended.stdout.as_str()), (&json!("cancelled"), "on\non\n"));
    for id in [once, twice] {
        until("no container is left", BACK_LIMIT, async || containers_of(host, &id).is_empty().then_some(()))
            .await;
    }
}

/// If the engine leaves its containers running, nothing happens. This engine makes a new socket, which a container with
/// the old one sees only after a restart; systemd keeps the socket.
#[tokio::test]
async fn an_engine_that_leaves_its_containers_running() {
    let fleet = fleet_of_its_own(|_| ()).await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let live_restore = "mkdir -p /etc/docker; echo '{\"live-restore\": true}' >/etc/docker/daemon.json; \
                        kill -HUP $(pidof dockerd); \
                        until docker info --format '{{.LiveRestoreEnabled}}' | grep -q true; do sleep 0.1; done";
    let _live_restore = Disturbed::new(host, live_restore, "rm /etc/docker/daemon.json");
    let id = begin(&mut client, script(&counting(LINES, 5), &["one"])).await;
    let before = containers_of(host, &id);
    host.sh("touch /run/hold-dockerd; pkill -x dockerd");
    let told = until("the answer names the engine", BACK_LIMIT, async || {
        let view = view(&mut client, &id).await;
        view["waiting"].as_str().is_some_and(|why| why.contains("engine")).then_some(view)
    })
    .await;
    assert_eq!(told["state"], "running", "{told:#}");
    host.sh("rm /run/hold-dockerd; until docker info >/dev/null 2>&1; do sleep 0.1; done");
    host.sh("docker restart $(docker ps -q --filter label=com.docker.compose.project=aitheros-edge)");
    assert!(
        host.holds(&format!("[ \"$(docker inspect -f '{{{{.State.Running}}}}' {})\" = true ]", before[0]))
    );
    let ended = read_to_end(&mut client, &id).await;
    let view = &ended.view;
    assert_eq!((&view["state"], &view["exit_code"]), (&json!("failed"), &json!(5)), "{view:#}");
    assert_eq!(view["failure"]["code"], "ContainerFailed", "{view:#}");
    assert_eq!((&view["attempt"], ended.stdout), (&json!(1), counted(LINES)));
}
