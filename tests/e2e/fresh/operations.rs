//! The life of a node after its first deployment, as an assistant and a person lead it: a plan that is
//! carried out, an earlier release, logs, a removal while work runs, and the same machine once more.

use serde_json::json;

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    work::{counting, deploy_ready, deployment_of, follow, id_of, read_to_end, run, script, statuses, with},
};

#[tokio::test]
async fn a_plan_an_earlier_release_logs_and_a_removal() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "operations").await;

    let arguments = deployment_of(host, ONE, &["edge", "first"]);
    let planned = client.call("deploy_edge_node", with(arguments.clone(), json!({ "dry_run": true }))).await;
    let digest = planned["plan"]["digest"].as_str().expect("a digest").to_owned();
    let bound = with(arguments.clone(), json!({ "plan_digest": digest }));
    let first = deploy_ready(&mut client, bound.clone()).await;
    let first_id = id_of(&first, "deployment_id");
    let stale = client.call("deploy_edge_node", with(bound, json!({ "wait_seconds": 45 }))).await;
    assert_eq!(
        (&stale["state"], &stale["failure"]["code"]),
        (&json!("failed"), &json!("FailedPrecondition"))
    );

    deploy_ready(&mut client, deployment_of(host, ONE, &["edge", "second"])).await;
    let releases = controller.cli(&["node", "releases", ONE, "--output", "json"]).await.json();
    assert_eq!(releases["releases"].as_array().map(Vec::len), Some(2), "{releases:#}");
    // A person sees each step in a line of its own.
    let back = controller.cli(&["node", "rollback", ONE]).await;
    assert_eq!(back.status, 0, "{back:?}");
    assert!(back.stdout.contains(ONE) && back.stdout.contains("ready"), "{back:?}");
    for step in ["switch", "images", "health", "join", "proof", "settle"] {
        assert!(back.stderr.lines().any(|line| line.starts_with(step) && line.contains("done")), "{back:?}");
    }
    let ended = run(&mut client, script("echo back", &["first"])).await;
    assert_eq!(ended.stdout, "back\n", "{:#}", ended.view);
    let forth = json!({ "node_id": ONE, "to": "comet-edge-node-1-1" });
    let unknown = client.call("rollback_edge_node", with(forth, json!({ "wait_seconds": 45 }))).await;
    assert_eq!(unknown["state"], "failed", "{unknown:#}");
    let remedy = unknown["failure"]["remedy"].as_str().expect("what to do");
    assert!(remedy.contains("comet-edge-node-") && !remedy.contains(&first_id), "{remedy}");

    let logs = client.call("get_node_logs", json!({ "node_id": ONE, "services": ["node"] })).await;
    assert!(logs["untrusted_logs"].as_str().is_some_and(|text| text.contains("node-1")), "{logs:#}");
    let by_person = controller.cli(&["node", "logs", ONE, "-n", "5"]).await.succeeded();
    assert!((1..=5).contains(&by_person.trim().lines().count()), "{by_person}");

    // It is removed while something runs there, which is cancelled at the deadline.
    let started = client.call("submit_execution", script(&counting(1_000, 0), &["first"])).await;
    let execution = id_of(&started, "execution_id");
    let order = json!({ "node_id": ONE, "deadline_seconds": 1, "wait_seconds": 0 });
    let removal = client.call("remove_edge_node", order).await;
    let removed = follow(&mut client, &id_of(&removal, "deployment_id")).await;
    assert_eq!(
        (&removed["state"], &removed["operation"]),
        (&json!("removed"), &json!("remove")),
        "{removed:#}"
    );
    assert_eq!(read_to_end(&mut client, &execution).await.view["state"], "cancelled");
    assert!(!statuses(&mut client).await.contains_key(ONE), "it is no member any more");
    assert_eq!(host.sh("docker ps -aq; ls -d /opt/aitheros-edge 2>/dev/null || true"), "");
    assert!(host.sh("docker volume ls -q").contains("aitheros-edge_node_data"), "volumes stay");

    deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
    let gone =
        controller.cli(&["node", "remove", ONE, "--force", "--volumes", "--output", "json"]).await.json();
    assert_eq!(gone["state"], "removed", "{gone:#}");
    assert_eq!(host.sh("docker volume ls -q"), "");
}
