//! Many machines in one call, by an assistant and by a person.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    cli::BINARY,
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, TWO, fresh},
    http,
    mcp::{Client, Era},
    poll::{until, within},
    testbed::Host,
    work::{DEPLOY_LIMIT, statuses, with},
};

const STEP_LIMIT: Duration = Duration::from_secs(60);

fn rollout_of(hosts: &[Host; 2]) -> Value {
    json!({
        "hosts": [
            { "host": hosts[0].ip, "identity": ONE, "tags": ["one"], "ssh_port": hosts[0].port },
            { "host": hosts[1].ip, "identity": TWO, "tags": ["two"], "ssh_port": hosts[1].port },
        ],
        "shared": { "ssh_user": hosts[0].user, "ssh_key_path": hosts[0].key(), "tags": ["edge"], "services": "node" },
        "wait_seconds": 0,
    })
}

async fn follow(client: &mut Client, begun: &Value) -> Value {
    let followed = async {
        loop {
            let order = json!({ "rollout_id": begun["rollout_id"], "wait_seconds": 45 });
            let view = client.call("get_rollout", order).await;
            if view["state"] != "running" {
                return view;
            }
        }
    };
    within("the end of a rollout", DEPLOY_LIMIT, followed).await
}

/// Returns the state by host, since the answer lists failures first.
fn state_of<'a>(view: &'a Value, host: &str) -> &'a Value {
    let hosts = view["hosts"].as_array().expect("hosts");
    &hosts.iter().find(|line| line["host"] == host).unwrap_or_else(|| panic!("{host} is not in {view:#}"))["state"]
}

#[tokio::test]
async fn two_machines_become_nodes_by_one_call() {
    let Fresh { hosts, _machines } = fresh().await;
    let mut setup = Setup::for_hosts(&hosts);
    let (network, _) = hosts[0].ip.rsplit_once('.').expect("an address");
    let nobody = format!("{network}.250");
    setup.deploy.push_str(&format!("\n    approved_hosts: ['{nobody}']"));
    let controller = Controller::start(&setup).await;
    let mut client = Client::stdio(&controller, Era::Session, "rollout").await;

    // Nothing is begun while one of them is not admitted; all are named.
    controller.approve(&hosts[0]).await;
    let refused = client.refused("deploy_edge_nodes", rollout_of(&hosts)).await;
    assert!(refused.contains("1 of 2 hosts") && refused.contains(&hosts[1].ip), "{refused}");
    assert!(refused.contains(&format!("aegis host approve {}", hosts[1].ip)), "{refused}");
    assert_eq!(hosts.each_ref().map(Host::traces).concat(), "");
    controller.approve(&hosts[1]).await;
    let planned =
        client.call("deploy_edge_nodes", with(rollout_of(&hosts), json!({ "dry_run": true }))).await;
    assert_eq!(planned["summary"], "2 of 2 hosts would get past their checks", "{planned:#}");
    assert_eq!(hosts.each_ref().map(Host::traces).concat(), "");

    // Over REST the same, for a person.
    let mut body = with(rollout_of(&hosts), json!({ "dry_run": true }));
    body["shared"]["plan_digest"] = json!("0123456789ab");
    let refused = http::post_unix(&controller.data.join("api.sock"), "/deploy/edge-nodes", &body).await;
    assert_eq!(
        refused.expect("an answer")["code"],
        "InvalidArgument",
        "one plan cannot be that of two hosts"
    );

    let keyed = with(rollout_of(&hosts), json!({ "idempotency_key": "both" }));
    let begun = client.call("deploy_edge_nodes", keyed.clone()).await;
    let same = client.call("deploy_edge_nodes", keyed).await;
    assert_eq!(same["rollout_id"], begun["rollout_id"]);
    let ended = follow(&mut client, &begun).await;
    assert_eq!(
        (&ended["state"], &ended["summary"]),
        (&json!("succeeded"), &json!("2 hosts: 2 succeeded")),
        "{ended:#}"
    );
    // A rollout's key is none of a removal's, which asks as ever.
    let borrowed = json!({"node_id": ONE, "idempotency_key": "both"});
    let shown = client.unconfirmed("remove_edge_node", borrowed).await;
    assert_eq!(shown["state"], "needs_confirmation", "{shown}");
    let nodes = statuses(&mut client).await;
    assert!(
        [ONE, TWO].iter().all(|node| nodes.get(*node).is_some_and(|status| status == "active")),
        "{nodes:?}"
    );

    // The image that travels is the executable, in memory twice while it is made, and the same for both.
    let (peak, executable) =
        (controller.memory_kb("VmHWM"), std::fs::metadata(BINARY).expect("it").len() / 1024);
    assert!(peak < 3 * executable, "{peak} KB, of an executable of {executable} KB");

    // The same again over the command line, with a machine that nobody answers for.
    let (key, port) = (hosts[0].key(), hosts[0].port.to_string());
    let mut words = vec!["deploy", &nobody, &hosts[0].ip, "--ssh-user", &hosts[0].user, "--ssh-port", &port];
    words.extend(["--ssh-key", &key, "--services", "node", "--tag", "edge"]);
    let stopped = controller.cli(&[words.as_slice(), &["--max-parallel", "1"]].concat()).await;
    assert_eq!(stopped.status, 22, "an unreachable host's: {stopped:?}");
    assert!(stopped.stdout.contains("2 hosts: 1 failed, 1 skipped"), "{stopped:?}");
    assert!(
        stopped.stderr.lines().any(|line| line.starts_with(&nobody) && line.contains("failed")),
        "{stopped:?}"
    );
    let listed = controller.cli(&["rollouts", "--output", "json"]).await.json();
    assert_eq!(listed["rollouts"].as_array().map(Vec::len), Some(2), "{listed:#}");
    let id = begun["rollout_id"].as_str().expect("an id");
    let told = controller.text(&format!("/rollouts/{id}/events"), |text| text.contains("event: end")).await;
    assert_eq!(told.matches("event: member").count(), 2, "{told}");
}

/// The controller is killed while the first host runs and the second waits: both end.
#[tokio::test]
async fn a_killed_controller_takes_a_rollout_up_again() {
    let Fresh { hosts, _machines } = fresh().await;
    let mut controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    for host in &hosts {
        controller.approve(host).await;
    }
    let mut client = Client::stdio(&controller, Era::Session, "rollout").await;
    let begun =
        client.call("deploy_edge_nodes", with(rollout_of(&hosts), json!({ "max_parallel": 1 }))).await;
    let path = format!("/rollouts/{}", begun["rollout_id"].as_str().expect("an id"));
    until("the first is under way", STEP_LIMIT, async || {
        let view = controller.api(&path).await.ok()?;
        (view["members"][0]["step"] == "images").then_some(())
    })
    .await;
    controller.kill();
    drop(client);
    controller.start_again().await;
    let mut client = Client::stdio(&controller, Era::Session, "rollout").await;
    let ended = follow(&mut client, &begun).await;
    assert_eq!(ended["state"], "succeeded", "{ended:#}");
    for host in &hosts {
        assert_eq!(state_of(&ended, &host.ip), "succeeded");
        assert_eq!(host.sh("docker ps -q").lines().count(), 1);
    }
}
