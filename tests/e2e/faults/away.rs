//! A node that is away for longer than it is waited for, and then comes back with what it ran.

use serde_json::json;

use super::{BACK_LIMIT, all_are_active, becomes, begin, submit, view};
use crate::support::{
    fleet::{ONE, TWO, fleet_of_its_own},
    poll::until,
    testbed::{Disturbed, containers_of},
    work::{counted, counting, read_to_end, script, wait_for_a_node, with},
};

const LINES: u32 = 60;
const CUT: &str = "iptables -I INPUT -p tcp --dport 22 -j DROP; iptables -I OUTPUT -p tcp --sport 22 -j DROP";
const HEAL: &str =
    "iptables -D INPUT -p tcp --dport 22 -j DROP; iptables -D OUTPUT -p tcp --sport 22 -j DROP";

#[tokio::test]
async fn absent_nodes_work_is_lost_or_restarted_with_one_outcome() {
    let fleet = fleet_of_its_own(|setup| setup.cluster += "\n    lost_after_secs: 3").await;
    let mut client = fleet.client().await;
    let here = fleet.host_of(ONE);
    let counts = script(&counting(LINES, 5), &["one"]);
    let once = begin(&mut client, counts.clone()).await;
    let cancelled = begin(&mut client, script("echo on; sleep 600", &["one"])).await;
    let movable = with(
        script("echo on; sleep 600", &["edge"]),
        json!({ "preferred_tags": ["one"], "max_attempts": 2 }),
    );
    let moved = begin(&mut client, movable).await;
    assert_eq!(view(&mut client, &moved).await["node_id"], ONE);

    let cut = Disturbed::new(here, CUT, HEAL);
    let lost = becomes(&mut client, &once, "lost", 1).await;
    assert_eq!(lost["failure"]["code"], "Lost", "{lost:#}");
    let elsewhere = becomes(&mut client, &moved, "running", 2).await;
    assert_eq!(elsewhere["node_id"], TWO, "{elsewhere:#}");
    becomes(&mut client, &cancelled, "lost", 1).await;
    client.call("cancel_execution", json!({ "execution_id": cancelled, "reason": "enough" })).await;
    becomes(&mut client, &cancelled, "cancelled", 1).await;
    for id in [&once, &moved, &cancelled] {
        assert_eq!(containers_of(here, id).len(), 1, "the machine goes on, and nobody can tell it otherwise");
    }
    drop(cut);

    for id in [&moved, &cancelled] {
        until("what nobody wants any more is ended there", BACK_LIMIT, async || {
            containers_of(here, id).is_empty().then_some(())
        })
        .await;
    }
    // The outcome of a lost execution is reported as it was.
    let ended = until("its outcome is told", BACK_LIMIT, async || {
        (view(&mut client, &once).await["state"] == "failed").then_some(())
    });
    ended.await;
    let ended = read_to_end(&mut client, &once).await;
    assert_eq!(
        (&ended.view["exit_code"], &ended.view["attempt"]),
        (&json!(5), &json!(1)),
        "{:#}",
        ended.view
    );
    assert_eq!(ended.stdout, counted(LINES));
    assert_eq!(view(&mut client, &cancelled).await["state"], "cancelled");

    let still = view(&mut client, &moved).await;
    assert_eq!((&still["state"], &still["node_id"]), (&json!("running"), &json!(TWO)), "{still:#}");
    client.call("cancel_execution", json!({ "execution_id": moved })).await;
    let ended = read_to_end(&mut client, &moved).await;
    assert_eq!((&ended.view["state"], ended.stdout.as_str()), (&json!("cancelled"), "on\non\n"));
    until("nothing is left of it", BACK_LIMIT, async || {
        containers_of(fleet.host_of(TWO), &moved).is_empty().then_some(())
    })
    .await;
    all_are_active(&mut client).await;
}

/// Before the execution has a node, and while its image is pulled: it ends at once and leaves nothing.
#[tokio::test]
async fn what_does_not_run_yet_is_cancelled() {
    let fleet = fleet_of_its_own(|_| ()).await;
    let mut client = fleet.client().await;
    let host = fleet.host_of(ONE);
    let (network, _) = host.ip.rsplit_once('.').expect("an IPv4 address");
    // A registry that takes connections and never says a word.
    let silent = std::net::TcpListener::bind(format!("{network}.1:0")).expect("the network's gateway");
    let address = silent.local_addr().expect("an address");
    // By name, since a policy allows no registry by address.
    host.sh(&format!("echo '{} silent.test' >>/etc/hosts", address.ip()));
    let image = format!("silent.test:{}/x/agent:1", address.port());
    let starting = submit(&mut client, with(script("true", &["one"]), json!({ "image": image }))).await;
    becomes(&mut client, &starting, "starting", 1).await;

    client.call("drain_node", json!({ "node_id": TWO, "deadline_seconds": 0 })).await;
    let (queued, why) = wait_for_a_node(&mut client, script("true", &["two"])).await;
    assert!(why.contains("drain"), "{why}");

    for id in [starting, queued] {
        client.call("cancel_execution", json!({ "execution_id": id, "reason": "enough" })).await;
        let ended = read_to_end(&mut client, &id).await;
        assert_eq!(ended.view["state"], "cancelled", "{:#}", ended.view);
        assert!(ended.view["failure"].is_null(), "{:#}", ended.view);
        assert_eq!(containers_of(host, &id), [""; 0]);
    }
}
