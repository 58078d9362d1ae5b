//! A node whose uplink is slow, while one of its containers writes more than the uplink carries.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    fleet::{ONE, fleet},
    mcp::Client,
    poll::until,
    testbed::Disturbed,
    work::{RUN_LIMIT, id_of, read_to_end, script, statuses},
};

const NARROW: &str = "tc qdisc add dev eth0 root tbf rate RATE burst 4kb latency 2s";
const WIDE: &str = "tc qdisc del dev eth0 root 2>/dev/null; ! tc qdisc show dev eth0 | grep -q tbf";
/// Writes 2 MB: four minutes at 64 kbit/s, and more than sshd and its socket hold.
const LAST_NUMBER: u32 = 300_000;
/// A node is called unhealthy after 90 s without a heartbeat.
const SILENCE: Duration = Duration::from_secs(100);
/// From the submission to the first line, and from the cancel to the end.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn output_does_not_delay_work_on_a_slow_link() {
    flood_at("256kbit", Duration::ZERO).await;
}

#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn output_does_not_delay_heartbeats_at_64_kbit() {
    flood_at("64kbit", SILENCE).await;
}

/// Floods a narrow link. The node stays active for `lasting`; then a small job starts and is cancelled in time.
async fn flood_at(rate: &str, lasting: Duration) {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let narrow = Disturbed::new(fleet.host_of(ONE), &NARROW.replace("RATE", rate), WIDE);
    let flood = submit(&mut client, &format!("seq 1 {LAST_NUMBER}")).await;
    until("output has come", RUN_LIMIT, async || output_of(&mut client, &flood).await.then_some(())).await;
    let begun = Instant::now();
    while begun.elapsed() < lasting {
        assert_eq!(statuses(&mut client).await[ONE], "active", "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    for _ in 0..3 {
        let at = Instant::now();
        let small = submit(&mut client, "trap exit TERM; echo on; sleep 600 & wait").await;
        until("a small job writes", ANSWER_LIMIT, async || {
            output_of(&mut client, &small).await.then_some(())
        })
        .await;
        let (started, at) = (at.elapsed(), Instant::now());
        client.call("cancel_execution", json!({ "execution_id": small, "reason": "enough" })).await;
        until("its cancel has ended it", ANSWER_LIMIT, async || {
            let view = client.call("get_execution", json!({ "execution_id": small })).await;
            (view["state"] == "cancelled").then_some(())
        })
        .await;
        println!("{rate}: started after {started:?}, cancelled after {:?}", at.elapsed());
    }
    assert_eq!(statuses(&mut client).await[ONE], "active");

    drop(narrow);
    let ended = read_to_end(&mut client, &flood).await;
    assert_eq!(ended.view["state"], "succeeded", "{:#}", ended.view);
    let expected: String = (1..=LAST_NUMBER).map(|number| format!("{number}\n")).collect();
    assert!(ended.stdout == expected, "{} bytes of {}", ended.stdout.len(), expected.len());
}

async fn submit(client: &mut Client, text: &str) -> String {
    id_of(&client.call("submit_execution", script(text, &["one"])).await, "execution_id")
}

async fn output_of(client: &mut Client, execution_id: &str) -> bool {
    let view = client.call("get_execution", json!({ "execution_id": execution_id })).await;
    view["output"]["stdout"].as_str().is_some_and(|text| !text.is_empty())
}
