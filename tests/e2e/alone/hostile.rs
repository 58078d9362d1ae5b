//! A real container that prints the corpus of hostile output, and the text that reaches an assistant, a program and a
//! person at a terminal.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use nix::pty::openpty;
use serde_json::{Value, json};

#[path = "../../hostile/mod.rs"]
mod corpus;

use crate::support::{
    IMAGE,
    cli::{self, BINARY},
    controller::{Controller, Setup},
    mcp::{Client, Era},
    poll::{until, within},
    raw::{Pipe, discover, modern},
    work::{id_of, read_to_end, run},
};
use corpus::{CANARY, assert_fenced, assert_marked, assert_seen, cases};

const LIMIT: Duration = Duration::from_secs(60);
/// Size limit of a page of output. A whole resource has its own limit.
const PAGE_BYTES_MAX: usize = 16 * 1024;
const RESOURCE_BYTES_MAX: usize = 20 * 1024;
const PAGES_MAX: usize = 200;

/// Returns all cases, each preceded by its name.
fn everything() -> Vec<u8> {
    cases().into_iter().flat_map(|case| [case.name.as_bytes(), b": ", &case.bytes].concat()).collect()
}

/// Prints the corpus on both streams, and fails.
fn printing() -> Value {
    let script = "all=$(cat); echo \"$all\" | base64 -d; echo \"$all\" | base64 -d >&2; exit 3";
    json!({
        "image": IMAGE, "command": ["sh", "-c", script], "input": BASE64.encode(everything()),
        "target_tags": ["home"], "wait_seconds": 45
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_output_is_escaped_marked_and_bounded_everywhere() {
    let controller = Controller::start(&Setup::default()).await;
    let mut client = Client::http(&controller, Era::Stateless, "hostile").await;
    let submitted = client.call("submit_execution", printing()).await;
    assert_marked("submit_execution", &submitted, &["output.stdout", "output.stderr"]);
    assert_eq!((&submitted["state"], &submitted["exit_code"]), (&json!("failed"), &json!(3)), "{submitted}");
    assert_eq!(submitted["output"]["untrusted"], true);
    let id = id_of(&submitted, "execution_id");

    pages(&mut client, &id).await;
    resource(&controller, &id).await;
    programs(&controller, &id).await;
    terminal(&controller, &id).await;
}

/// Reads `get_execution` page by page, in both forms.
async fn pages(client: &mut Client, id: &str) {
    for format in ["concise", "detailed"] {
        let (mut after, mut more, mut told) = (0, true, String::new());
        for _ in 0..PAGES_MAX {
            let asked = json!({"execution_id": id, "after_sequence": after, "response_format": format});
            let page = client.call("get_execution", asked).await;
            assert_marked(
                format,
                &page,
                &["output.stdout", "output.stderr", "events[].text", "events[].stderr_tail"],
            );
            assert_eq!(page["output"]["untrusted"], true, "{page}");
            let events = page["events"].as_array().into_iter().flatten().map(|event| &event["text"]);
            let texts = [&page["output"]["stdout"], &page["output"]["stderr"]].into_iter().chain(events);
            let shown = texts.filter_map(Value::as_str).collect::<String>();
            assert!(shown.len() <= PAGE_BYTES_MAX, "{format}: {} bytes", shown.len());
            told += &shown;
            let next = page["next_after_sequence"].as_u64().expect("a number");
            more = page["has_more"] == true;
            assert!(!more || next > after, "it goes on: {page}");
            after = next;
            if !more {
                break;
            }
        }
        assert!(!more, "{format}: it comes to an end");
        // Cut only where one event is larger than a page as it is seen.
        let count = told.matches(CANARY).count();
        assert!(count >= cases().len(), "{format}: {count} of the container's words in {} bytes", told.len());
    }
}

/// Reads the resource of the output, range by range.
async fn resource(controller: &Controller, id: &str) {
    let mut pipe = Pipe::open(controller);
    pipe.ask(&discover()).await;
    let mut uri = format!("execution://{id}/output");
    for number in 10..10 + PAGES_MAX {
        let read = json!({"jsonrpc": "2.0", "id": number, "method": "resources/read",
            "params": {"uri": uri, "_meta": modern()}});
        let answer = pipe.ask(&read).await;
        let content = &answer["result"]["contents"][0];
        let text = content["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(text.len() <= RESOURCE_BYTES_MAX, "{} bytes", text.len());
        assert_eq!(content["_meta"]["aegis/untrusted"], true, "{content}");
        if text.contains("<untrusted-") {
            assert_fenced(&uri, text);
        }
        uri = id_of(&content["_meta"], "aegis/next");
        if content["_meta"]["aegis/hasMore"] == false {
            assert_eq!(pipe.close().await, 0);
            return;
        }
    }
    panic!("the output does not end");
}

/// REST, its stream and a pipe return the original text in an encoding that it cannot break.
async fn programs(controller: &Controller, id: &str) {
    let written = String::from_utf8_lossy(&everything()).into_owned();
    let path = format!("/v1/executions/{id}/events");
    let stream = controller
        .text(&path, |text| text.contains("\nevent: end\n") || text.starts_with("event: end"))
        .await;
    let (mut stdout, mut ends) = (String::new(), 0);
    for message in stream.split("\n\n").filter(|message| !message.trim().is_empty()) {
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(name), Some(data)) = (field("event:"), field("data:")) else { continue };
        let data: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {message}"));
        match name {
            "end" => ends += 1,
            _ if data["stream"] == "stdout" => stdout.push_str(data["text"].as_str().expect("text")),
            _ => {}
        }
    }
    assert_eq!(ends, 1, "the container's text ended no stream");
    let differs = stdout.chars().zip(written.chars()).take_while(|(got, meant)| got == meant).count();
    let around = |text: &str| text.chars().skip(differs.saturating_sub(20)).take(60).collect::<String>();
    assert_eq!(around(&stdout), around(&written), "a program gets what was written");
    assert_eq!(stdout.len(), written.len());
    let view = controller.api(&format!("/v1/executions/{id}")).await.expect("an execution");
    assert!(!view.to_string().contains(CANARY), "{view}");

    let logs = controller.cli(&["executions", "logs", id]).await;
    assert_eq!((logs.status, logs.stdout == written), (0, true), "a pipe gets what was written");
    let got = controller.cli(&["executions", "get", id]).await.succeeded();
    assert!(!got.contains(CANARY), "{got}");
}

/// A person at a terminal gets no sequence that the terminal obeys.
async fn terminal(controller: &Controller, id: &str) {
    for words in [vec!["executions", "logs", id], vec!["executions", "logs", id, "-f"]] {
        let shown = on_a_terminal(controller, &words).await;
        let about = words.join(" ");
        assert_seen(&about, &shown);
        // stdout and stderr are the same terminal.
        assert!(shown.matches(CANARY).count() >= 2 * cases().len(), "{about}: {shown}");
    }
}

/// Returns all output of a verb on a terminal, with normalised line ends.
async fn on_a_terminal(controller: &Controller, words: &[&str]) -> String {
    let pty = openpty(None, None).expect("a terminal");
    let (mut screen, output) = (std::fs::File::from(pty.master), pty.slave);
    let mut child = Command::new(BINARY)
        .args(words)
        .env("AEGIS_DATA_DIR", &controller.data)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a descriptor"))
        .stderr(output)
        .spawn()
        .expect("aegis starts");
    let reading = tokio::task::spawn_blocking(move || {
        let (mut shown, mut part) = (Vec::new(), [0; 4096]);
        // Once nobody holds the other end, reading is an error.
        while let Ok(count @ 1..) = screen.read(&mut part) {
            shown.extend_from_slice(&part[..count]);
        }
        child.wait().expect("it ends");
        shown
    });
    let shown = within("the terminal", LIMIT, reading).await.expect("no panic");
    String::from_utf8(shown).expect("UTF-8").replace("\r\n", "\n")
}

/// The value itself is masked, however it is cut. A value that the container encodes is not recognised.
#[tokio::test(flavor = "multi_thread")]
async fn printed_secret_is_masked_and_encoded_secret_is_not() {
    const VALUE: &str = "marker-4c1d-hunter22";
    let controller = Controller::start(&Setup::default()).await;
    let set = cli::run(&controller.data, &["secret", "set", "word"], &[], VALUE.as_bytes()).await;
    set.succeeded();
    let script = "echo whole $WORD; printf 'cut %s' ${WORD%hunter22}; sleep 1; echo hunter22; \
                  echo $WORD >&2; printf %s $WORD | base64";
    let arguments = json!({
        "image": IMAGE, "command": ["sh", "-c", script], "env": {"WORD": "secret:word"}, "target_tags": ["home"]
    });
    let mut client = Client::http(&controller, Era::Stateless, "secret").await;
    let ended = run(&mut client, arguments).await;
    let stars = "*".repeat(VALUE.len());
    let encoded = BASE64.encode(VALUE);
    assert_eq!(ended.stdout, format!("whole {stars}\ncut {stars}\n{encoded}\n"));
    assert_eq!(ended.stderr, format!("{stars}\n"));
    let id = id_of(&ended.view, "execution_id");
    let again = read_to_end(&mut client, &id).await;
    assert!(!again.view.to_string().contains(VALUE) && !again.stdout.contains(VALUE));
    // The node drops it once it has written the end.
    until("the secret is nowhere on disk", LIMIT, async || {
        let written = controller.everything_written();
        let found = written.iter().find(|(_, content)| crate::support::files::holds(content, VALUE));
        found.is_none().then_some(())
    })
    .await;
}
