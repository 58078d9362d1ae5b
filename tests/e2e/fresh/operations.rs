//! The life of a node after its first deployment, as an assistant and a person lead it: a plan that is
//! carried out, an earlier release, logs, a removal while work runs, and the same machine once more.

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    sse,
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

    let public_key = || host.sh("cat /opt/aitheros-edge/run/node.pub");
    let revoked = public_key();
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

    let again = client.call("deploy_edge_node", deployment_of(host, ONE, &["edge"])).await;
    told_by_its_resource(&controller, &id_of(&again, "deployment_id")).await;
    assert_ne!(public_key(), revoked, "the key in the volume was revoked");
    let gone =
        controller.cli(&["node", "remove", ONE, "--force", "--volumes", "--output", "json"]).await.json();
    assert_eq!(gone["state"], "removed", "{gone:#}");
    assert_eq!(host.sh("docker volume ls -q"), "");
}

/// A deployment that has begun, as a client of each era hears of it, to its end.
async fn told_by_its_resource(controller: &Controller, id: &str) {
    let uri = format!("deployment://{id}");
    let (older, newer) = (sse::Client::older(controller).await, sse::Client::newer(controller));
    let (mut older, _) = tokio::join!(told_to_its_end(older, &uri), told_to_its_end(newer, &uri));
    let template = json!({"type": "ref/resource", "uri": "deployment://{id}"});
    let asked = json!({"ref": template, "argument": {"name": "id", "value": &id[..id.len() - 1]}});
    let completed = older.ask("completion/complete", asked).await;
    assert_eq!(completed["completion"]["values"], json!([id]), "{completed}");
    let listed = older.ask("resources/list", json!({})).await;
    let listed = listed["resources"].as_array().expect("a list").iter().find(|it| it["uri"] == uri).cloned();
    let title = id_of(&listed.expect("the newest are listed"), "title");
    assert!(title.contains(ONE) && title.contains("ready"), "{title}");
}

/// Reads the document each time when it is told of news, until it has ended.
async fn told_to_its_end(mut client: sse::Client, uri: &str) -> sse::Client {
    let steps = |document: &Value| {
        let steps = document["steps"].as_array().expect("steps").iter();
        steps.map(|step| id_of(step, "state")).collect::<Vec<_>>()
    };
    let done = |steps: &[String]| steps.iter().filter(|state| *state == "done").count();
    let (mut stream, _) = client.subscribe(&[uri.to_owned()]).await;
    let mut seen = vec![steps(&client.document(uri).await)];
    let last = loop {
        let note = stream.note("notifications/resources/updated").await;
        assert_eq!(note["params"]["uri"], uri, "{note}");
        let document = client.document(uri).await;
        seen.push(steps(&document));
        if !matches!(document["state"].as_str(), Some("planned" | "running")) {
            break document;
        }
    };
    assert_eq!((&last["state"], &last["node_id"]), (&json!("ready"), &json!(ONE)), "{last:#}");
    assert!(seen.windows(2).all(|two| done(&two[0]) <= done(&two[1])), "{seen:?}");
    assert_eq!(seen.last().map(|steps| done(steps) == steps.len()), Some(true), "{seen:?}");
    seen.dedup();
    assert!(seen.len() > 3, "it is told of steps, and not of the end alone: {seen:?}");
    client
}
