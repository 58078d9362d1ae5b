//! Resources, their subscriptions and prompts through `aegis mcp`, with a real execution.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    raw::{Pipe, discover, initialize, modern},
    work::{counted, counting, id_of, script},
};

const UPDATED: &str = "notifications/resources/updated";
const LINES: u32 = 8;
/// Far below the five seconds for which the protocol's library waits for requests in flight.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// Assistant of one era.
struct Assistant {
    pipe: Pipe,
    is_newer: bool,
    asked: u64,
}

impl Assistant {
    async fn older(controller: &Controller) -> Self {
        let mut pipe = Pipe::open(controller);
        pipe.ask(&initialize()).await;
        pipe.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
        Self { pipe, is_newer: false, asked: 1 }
    }

    async fn newer(controller: &Controller) -> Self {
        let mut pipe = Pipe::open(controller);
        pipe.ask(&discover()).await;
        Self { pipe, is_newer: true, asked: 1 }
    }

    fn request(&mut self, method: &str, mut params: Value) -> Value {
        self.asked += 1;
        if self.is_newer {
            params["_meta"] = modern();
        }
        json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params})
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = self.request(method, params);
        let answer = self.pipe.ask(&request).await;
        assert!(answer.get("error").is_none(), "{request}: {answer}");
        answer["result"].clone()
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let result = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await;
        assert_ne!(result["isError"], true, "{tool}: {result}");
        result["structuredContent"].clone()
    }

    async fn read(&mut self, uri: &str) -> Value {
        self.ask("resources/read", json!({"uri": uri})).await["contents"][0].clone()
    }

    async fn document(&mut self, uri: &str) -> Value {
        let content = self.read(uri).await;
        serde_json::from_str(content["text"].as_str().expect("text")).expect("JSON")
    }

    /// Subscribes in the way of its era.
    async fn subscribe(&mut self, uris: &[&str]) {
        if self.is_newer {
            let filter = json!({"notifications": {"resourceSubscriptions": uris}});
            let request = self.request("subscriptions/listen", filter);
            self.pipe.send(&request).await;
            let told = self.pipe.note("notifications/subscriptions/acknowledged").await;
            assert_eq!(told["params"]["notifications"]["resourceSubscriptions"], json!(uris), "{told}");
            return;
        }
        for uri in uris {
            self.ask("resources/subscribe", json!({"uri": uri})).await;
        }
    }
}

/// Returns the text between the delimiters of this stream.
pub fn quoted(text: &str, stream: &str) -> String {
    let Some((before, rest)) = text.split_once(&format!(" what=\"{stream}\">\n")) else {
        return String::new();
    };
    let mark = before.rsplit_once("<untrusted-").expect("a mark").1;
    rest.split_once(&format!("</untrusted-{mark}>")).expect("its end").0.to_owned()
}

/// Reads range by range, each time after a notification, until the execution has ended and all is read.
async fn follow(assistant: &mut Assistant, id: &str) -> (String, u32) {
    let (mut written, mut told) = (String::new(), 0);
    let mut uri = format!("execution://{id}/output?limit=3");
    loop {
        let content = assistant.read(&uri).await;
        let (text, meta) = (content["text"].as_str().expect("text"), &content["_meta"]);
        assert!(text.len() < 20 * 1024 && meta["aegis/untrusted"] == true, "{content}");
        written.push_str(&quoted(text, "stdout"));
        uri = id_of(meta, "aegis/next");
        if meta["aegis/hasMore"] == false {
            if text.contains("the execution has ended") {
                return (written, told);
            }
            let note = assistant.pipe.note(UPDATED).await;
            assert!(note["params"]["uri"].as_str().is_some_and(|uri| uri.contains(id)), "{note}");
            told += 1;
        }
    }
}

#[tokio::test]
async fn an_execution_is_followed_by_its_resources_in_both_eras() {
    let controller = Controller::start(&Setup::default()).await;
    for mut assistant in [Assistant::older(&controller).await, Assistant::newer(&controller).await] {
        let started = assistant.call("submit_execution", script(&counting(LINES, 3), &["home"])).await;
        let id = id_of(&started, "execution_id");
        let output = format!("execution://{id}/output");
        assistant.subscribe(&[&output]).await;
        let (written, told) = follow(&mut assistant, &id).await;
        assert_eq!(written, counted(LINES), "the ranges join to the whole");
        // It writes for four seconds, and nobody is told more than once a second.
        assert!((2..=8).contains(&told), "{told} notes");
        let ended = assistant.document(&format!("execution://{id}")).await;
        assert_eq!(
            (&ended["state"], &ended["exit_code"], &ended["output"]),
            (&json!("failed"), &json!(3), &json!(output))
        );

        let listed = assistant.ask("resources/list", json!({})).await;
        let uris = listed["resources"].as_array().expect("a list").iter().map(|resource| &resource["uri"]);
        let expected = [json!("peers://"), json!(format!("execution://{id}"))];
        assert_eq!(uris.take(2).collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
        let template = json!({"type": "ref/resource", "uri": "execution://{id}"});
        let asked = json!({"ref": template, "argument": {"name": "id", "value": id[..9]}});
        let completed = assistant.ask("completion/complete", asked).await;
        assert_eq!(completed["completion"]["values"][0], id, "{completed}");
        assert_eq!(assistant.pipe.close().await, 0);
    }
}

#[tokio::test]
async fn a_drain_is_told_and_the_prompts_tell_what_is_so() {
    let controller = Controller::start(&Setup::default()).await;
    let (mut older, mut newer) = (Assistant::older(&controller).await, Assistant::newer(&controller).await);
    older.subscribe(&["peers://"]).await;
    newer.subscribe(&["peers://"]).await;
    // Told once at the beginning, when it is watched.
    newer.pipe.note(UPDATED).await;
    let started = older.call("submit_execution", script("sleep 600", &["home"])).await;
    let id = id_of(&started, "execution_id");
    let drain = json!({"name": "drain_for_maintenance", "arguments": {"node_id": "home"}});
    let told = older.ask("prompts/get", drain.clone()).await["messages"][0]["content"]["text"].to_string();
    assert!(told.contains(&id) && told.contains("NO other node"), "{told}");

    controller.cli(&["node", "drain", "home", "--on-deadline", "leave"]).await.succeeded();
    for assistant in [&mut older, &mut newer] {
        let note = assistant.pipe.note(UPDATED).await;
        assert_eq!(note["params"]["uri"], "peers://", "{note}");
        let peers = assistant.document("peers://").await;
        assert_eq!(peers["peers"][0]["status"], "draining", "{peers}");
    }
    let told = newer.ask("prompts/get", drain).await["messages"][0]["content"]["text"].to_string();
    assert!(told.contains("it drains already"), "{told}");
    newer.call("cancel_execution", json!({"execution_id": id})).await;
    // One listens still, and nobody waits for it.
    let closing = Instant::now();
    assert_eq!((newer.pipe.close().await, older.pipe.close().await), (0, 0));
    assert!(closing.elapsed() < CLOSE_LIMIT, "{:?}", closing.elapsed());
}
