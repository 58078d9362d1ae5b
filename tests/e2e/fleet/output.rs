//! Output for readers: complete, in order and bounded, with progress.

use serde_json::json;

use crate::support::{
    IMAGE,
    fleet::fleet,
    http,
    mcp::{Client, Era},
    poll::until,
    work::{RUN_LIMIT, counted, counting, id_of, read_to_end, run, script, with},
};

#[tokio::test]
async fn long_output_is_read_page_by_page_without_a_gap() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let ended = run(&mut client, script("seq 1 20000", &["edge"])).await;
    let expected: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(ended.stdout == expected, "{} bytes of {}", ended.stdout.len(), expected.len());
}

/// Twenty seconds of output, more than its connection buffers.
#[tokio::test]
async fn a_reader_that_stops_reading_holds_up_nobody() {
    const SECONDS: i64 = 20;
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let text = format!(
        "i=0; while [ $i -lt {SECONDS} ]; do i=$((i+1)); head -c 200000 /dev/zero | tr '\\0' x; echo; sleep 1; done"
    );
    let started = client.call("submit_execution", script(&text, &["edge"])).await;
    let id = id_of(&started, "execution_id");
    let path = format!("/v1/executions/{id}/events");
    let stopped = fleet.controller.unread(&path).await;
    let is_over = |text: &str| text.contains("event: end");
    let another = fleet.controller.text(&path, is_over).await;
    let view = fleet.controller.api(&format!("/v1/executions/{id}")).await.expect("the execution");
    assert_eq!(view["state"], "succeeded", "{view:#}");
    let took_ms =
        view["ended_at_ms"].as_i64().zip(view["started_at_ms"].as_i64()).map(|(end, start)| end - start);
    assert!(took_ms.is_some_and(|ms| (SECONDS * 1000..SECONDS * 1500).contains(&ms)), "{view:#}");
    let ids = |text: &str| -> Vec<u64> {
        text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect()
    };
    let all: Vec<u64> = (1..=view["last_sequence"].as_u64().expect("a number")).collect();
    assert_eq!(ids(&another), all);
    // It reads on, and has missed nothing.
    assert_eq!(ids(&http::read(stopped, &path, is_over).await), all);
}

#[tokio::test]
async fn input_of_a_mebibyte_arrives_whole_and_a_byte_more_is_refused() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let input = "0123456789abcdef".repeat(64 * 1024);
    let arguments = with(script("wc -c; echo \"${AEGIS_INPUT:+set}\"", &["edge"]), json!({"input": input}));
    let ended = run(&mut client, arguments).await;
    assert!(ended.stdout.starts_with("1048576\n"), "{}", ended.stdout);
    let arguments = with(script("true", &["edge"]), json!({"input": input + "x"}));
    let text = client.refused("submit_execution", arguments).await;
    assert!(text.contains("input") && text.contains("1048576"), "{text}");
}

#[tokio::test]
async fn progress_is_told_while_a_call_waits() {
    let fleet = fleet().await;
    for mut client in [
        fleet.client().await,
        Client::http(&fleet.controller, Era::Session, "fleet").await,
        Client::http(&fleet.controller, Era::Stateless, "fleet").await,
    ] {
        let arguments = with(script(&counting(6, 0), &["edge"]), json!({"wait_seconds": 30}));
        let answer = client.call("submit_execution", arguments).await;
        assert_eq!(answer["state"], "succeeded", "{answer}");
        let heard = client.listener().messages();
        assert!(heard.len() >= 2, "{heard:?}");
        assert!(heard.windows(2).all(|two| two[0].0 < two[1].0), "the counter rises: {heard:?}");
        assert!(heard.iter().all(|(_, message)| !message.is_empty()), "{heard:?}");
    }
}

#[tokio::test]
async fn a_container_is_hardened_and_a_cancelled_one_ends() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let text = "grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; touch /x 2>/dev/null && echo writable; \
                ls /sys/class/net; ls /var/run/docker.sock 2>/dev/null; touch /tmp/x && echo tmp";
    let ended = run(&mut client, script(text, &["edge"])).await;
    assert_eq!(ended.stdout, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nlo\ntmp\n");
    let arguments = with(script("sleep 600", &["edge"]), json!({"timeout_seconds": 1}));
    let ended = run(&mut client, arguments).await;
    assert_eq!(ended.view["failure"]["code"], "Timeout", "{:#}", ended.view);
    let started = client.call("submit_execution", script("echo on; sleep 600", &["edge"])).await;
    let id = id_of(&started, "execution_id");
    client.call("cancel_execution", json!({"execution_id": id, "reason": "enough"})).await;
    assert_eq!(read_to_end(&mut client, &id).await.view["state"], "cancelled");
}

#[tokio::test]
async fn the_same_key_is_the_same_execution() {
    let fleet = fleet().await;
    let mut client = fleet.client().await;
    let request = with(script("echo once", &["edge"]), json!({"idempotency_key": "once"}));
    let first = run(&mut client, request.clone()).await;
    let second = client.call("submit_execution", request).await;
    assert_eq!(second["execution_id"], first.view["execution_id"]);
    let other = json!({"image": IMAGE, "command": ["true"], "idempotency_key": "once"});
    let text = client.refused("submit_execution", other).await;
    assert!(text.contains("idempotency_key"), "{text}");
}

#[tokio::test]
async fn a_client_that_vanishes_takes_no_work_with_it() {
    let fleet = fleet().await;
    let lines = 8;
    let request = with(script(&counting(lines, 0), &["edge"]), json!({"wait_seconds": 30}));
    for (over_http, key) in [(false, "vanishes-1"), (true, "vanishes-2")] {
        let request = with(request.clone(), json!({"idempotency_key": key}));
        let mut client = match over_http {
            false => fleet.client().await,
            true => Client::http(&fleet.controller, Era::Session, "fleet").await,
        };
        let heard = client.listener();
        {
            let call = client.call("submit_execution", request.clone());
            let runs = until("it runs", RUN_LIMIT, async || {
                heard.messages().iter().any(|(_, message)| message.contains("running")).then_some(())
            });
            tokio::select! {
                answer = call => panic!("it ended before the client could vanish: {answer}"),
                () = runs => {}
            }
        }
        drop(client);
        let mut client = fleet.client().await;
        // The same key: the same execution, not a second one.
        let known = client.call("submit_execution", with(request, json!({"wait_seconds": 0}))).await;
        let ended = read_to_end(&mut client, &id_of(&known, "execution_id")).await;
        assert_eq!((&ended.view["state"], ended.stdout), (&json!("succeeded"), counted(lines)));
    }
}
