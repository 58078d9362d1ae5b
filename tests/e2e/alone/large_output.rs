//! Output far larger than an answer, as the resource gives it: range by range, each bounded and marked.

use super::resources::quoted;
use crate::support::{
    controller::{Controller, Setup},
    poll::until,
    sse::Client,
    work::{RUN_LIMIT, id_of, script},
};

/// A result has about 20 KB.
const RANGE_BYTES_MAX: usize = 20 * 1024;
const LINES: u32 = 15_000;
/// A line of 200 bytes with its number.
const REST: &str = "the quick brown fox jumps over the lazy dog; the quick brown fox jumps over the lazy dog; \
                    the quick brown fox jumps over the lazy dog; the quick brown fox jumps over the lazy dog and rests.";
const EUROS: usize = 350_000;

#[tokio::test]
async fn ranges_of_large_output_are_bounded_and_join_to_the_whole() {
    let controller = Controller::start(&Setup::default()).await;
    let lines: String = (0..LINES).map(|number| format!("{} {REST}\n", 1_000_000 + number)).collect();
    let in_lines = format!("seq 1000000 {} | sed 's/$/ {REST}/'", 1_000_000 + LINES - 1);
    // One line: no place to cut it but within, where a character has three bytes. It has no end, which the
    // engine's own log loses where a line is longer than 16 KB.
    let in_one = format!("yes € | head -n {EUROS} | tr -d '\\n'");
    let line = "€".repeat(EUROS);
    for (client, command, expected) in
        [(Client::older(&controller).await, in_lines, lines), (Client::newer(&controller), in_one, line)]
    {
        let written = written_by(client, &command).await;
        assert!(written == expected, "{command}: {} bytes of {}", written.len(), expected.len());
    }
}

async fn written_by(mut client: Client, command: &str) -> String {
    let started = client.call("submit_execution", script(command, &["home"])).await;
    let id = id_of(&started, "execution_id");
    until("the execution has ended", RUN_LIMIT, async || {
        (client.document(&format!("execution://{id}")).await["state"] == "succeeded").then_some(())
    })
    .await;
    let (mut written, mut uri) = (String::new(), format!("execution://{id}/output?limit=1000"));
    loop {
        let content = client.read(&uri).await;
        let (text, meta) = (content["text"].as_str().expect("text"), &content["_meta"]);
        assert!(text.len() <= RANGE_BYTES_MAX, "{uri}: {} bytes", text.len());
        assert_eq!(meta["aegis/untrusted"], true, "{meta}");
        assert!(!text.contains("left out"), "{uri}: {}", text.lines().last().unwrap_or_default());
        written.push_str(&quoted(text, "stdout"));
        if meta["aegis/hasMore"] == false {
            return written;
        }
        uri = id_of(meta, "aegis/next");
    }
}
