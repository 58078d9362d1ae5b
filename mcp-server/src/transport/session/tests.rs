use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn line(message: &Value) -> Bytes {
    message.to_string().into()
}

fn request(id: impl Into<Value>, method: &str) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "id": id.into(), "method": method, "params": {"name": "t", "uri": "u"}}))
}

fn note(method: &str, params: &Value) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
}

fn result(id: impl Into<Value>) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "id": id.into(), "result": {"protocolVersion": "2025-06-18"}}))
}

fn error(id: impl Into<Value>) -> Bytes {
    line(&json!({"jsonrpc": "2.0", "id": id.into(), "error": {"code": -1, "message": "no"}}))
}

fn acknowledged(id: impl Into<Value>) -> Bytes {
    let meta = json!({"io.modelcontextprotocol/subscriptionId": id.into()});
    note("notifications/subscriptions/acknowledged", &json!({ "_meta": meta }))
}

fn to_daemon(effects: &[Effect]) -> Vec<Bytes> {
    let lines = effects.iter().filter_map(|effect| match effect {
        Effect::ToDaemon(line) => Some(line.clone()),
        Effect::ToClient(_) | Effect::HangUp => None,
    });
    lines.collect()
}

fn to_client(effects: &[Effect]) -> Vec<Value> {
    let lines = effects.iter().filter_map(|effect| match effect {
        Effect::ToClient(line) => Some(serde_json::from_slice(line).unwrap()),
        Effect::ToDaemon(_) | Effect::HangUp => None,
    });
    lines.collect()
}

/// Session with a clock that stands still unless advanced.
struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { session: Session::new(), now: Instant::now() }
    }

    fn connected() -> Self {
        let mut bench = Self::new();
        assert!(bench.session.connected().is_empty());
        bench
    }

    /// Makes a session of an older client after its initialization.
    fn initialized() -> Self {
        let mut bench = Self::connected();
        bench.client(request(0, "initialize"));
        bench.daemon(result(0));
        bench.client(note("notifications/initialized", &json!({})));
        bench
    }

    fn client(&mut self, line: Bytes) -> Vec<Effect> {
        self.session.client_said(line, self.now)
    }

    fn daemon(&mut self, line: Bytes) -> Vec<Effect> {
        self.session.daemon_said(line, self.now)
    }

    fn lose(&mut self) -> Vec<Effect> {
        self.session.lost(self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now += time;
        self.session.tick(self.now, None)
    }
}

#[test]
fn what_waits_is_sent_when_there_is_a_daemon_and_answered_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.session.wants(), Want::Nothing);
    assert!(bench.client(request("a", "ping")).is_empty());
    assert_eq!(bench.session.wants(), Want::Launch);
    assert_eq!(bench.session.connected(), [Effect::ToDaemon(request("a", "ping"))]);
    assert_eq!(bench.daemon(result("a")), [Effect::ToClient(result("a"))]);
    assert!(bench.daemon(result("a")).is_empty(), "a second answer");
    assert!(!bench.session.is_owed());
}

#[test]
fn what_reads_is_sent_again_and_a_call_is_answered_by_us() {
    let mut bench = Bench::connected();
    bench.client(request(1, "tools/list"));
    bench.client(request(2, "tools/call"));
    let told = to_client(&bench.lose());
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["id"], &told[0]["result"]["isError"]), (&json!(2), &json!(true)));
    assert!(told[0]["result"].get("resultType").is_none(), "older results have none");
    let text = told[0]["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("idempotency_key") && text.contains("What to do"), "{text}");
    assert_eq!(bench.session.connected(), [Effect::ToDaemon(request(1, "tools/list"))]);
    assert!(bench.daemon(result(2)).is_empty(), "it has its answer");
}

#[test]
fn a_result_of_ours_for_the_newer_era_says_that_it_is_complete() {
    let mut bench = Bench::connected();
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    let params = json!({"name": "list_peers", "_meta": meta});
    bench.client(line(&json!({"jsonrpc": "2.0", "id": "x", "method": "tools/call", "params": params})));
    let told = to_client(&bench.lose());
    assert_eq!((&told[0]["id"], &told[0]["result"]["resultType"]), (&json!("x"), &json!("complete")));
}

#[test]
fn older_session_is_restored_before_other_requests() {
    let mut bench = Bench::initialized();
    for id in [8, 9] {
        bench.client(request(id, "logging/setLevel"));
        bench.daemon(result(id));
    }
    bench.lose();
    assert_eq!(bench.session.wants(), Want::Nothing, "a level tells nothing by itself");
    bench.session.connected();
    bench.daemon(result(0));
    bench.daemon(result(9));
    bench.client(request(1, "resources/subscribe"));
    bench.daemon(result(1));
    bench.lose();
    assert_eq!(bench.session.wants(), Want::Attach);
    bench.client(request(2, "tools/call"));
    assert_eq!(to_daemon(&bench.session.connected()), [request(0, "initialize")]);
    assert!(bench.client(request(3, "ping")).is_empty(), "not before the opening is answered");
    let resumed = bench.daemon(result(0));
    let expected = [
        note("notifications/initialized", &json!({})),
        request(9, "logging/setLevel"),
        request(1, "resources/subscribe"),
    ];
    assert_eq!(to_daemon(&resumed), expected);
    assert!(to_client(&resumed).is_empty(), "the assistant has that answer");
    assert!(bench.daemon(result(9)).is_empty(), "and that one");
    let ready = bench.daemon(result(1));
    assert_eq!(to_daemon(&ready), [request(2, "tools/call"), request(3, "ping")]);
    assert!(to_client(&ready).is_empty());
    assert_eq!(to_client(&bench.daemon(result(2))).len(), 1);
}

#[test]
fn unanswered_initialize_is_answered_by_the_next_daemon() {
    let mut bench = Bench::connected();
    bench.client(request(0, "initialize"));
    bench.lose();
    assert_eq!(to_daemon(&bench.session.connected()), [request(0, "initialize")]);
    assert_eq!(bench.daemon(result(0)), [Effect::ToClient(result(0))]);
    bench.lose();
    bench.session.connected();
    assert!(bench.daemon(result(0)).is_empty());
}

#[test]
fn daemon_that_rejects_the_session_fails_requests_and_is_left() {
    let mut bench = Bench::initialized();
    bench.lose();
    bench.client(request(1, "ping"));
    bench.session.connected();
    let effects = bench.daemon(error(0));
    assert_eq!(effects.last(), Some(&Effect::HangUp));
    assert!(to_client(&effects)[0]["error"]["message"].as_str().unwrap().contains("restart"));
    bench.lose();
    assert_eq!(bench.session.wants(), Want::Nothing);
}

#[test]
fn what_was_cancelled_is_not_answered() {
    let mut bench = Bench::connected();
    bench.client(request(1, "tools/call"));
    let cancel = note("notifications/cancelled", &json!({"requestId": 1}));
    assert_eq!(to_daemon(&bench.client(cancel.clone())), std::slice::from_ref(&cancel));
    assert!(bench.daemon(result(1)).is_empty());
    assert!(bench.lose().is_empty());
    bench.client(request(2, "ping"));
    let unsent = note("notifications/cancelled", &json!({"requestId": 2}));
    assert!(bench.client(unsent).is_empty(), "the daemon never heard of it");
    assert!(bench.session.connected().is_empty());
}

#[test]
fn a_request_that_breaks_the_daemon_each_time_is_given_up() {
    let mut bench = Bench::connected();
    bench.client(request(1, "tools/list"));
    for _ in 1..BREAKS_MAX {
        assert!(bench.lose().is_empty());
        assert_eq!(bench.session.connected().len(), 1);
    }
    assert_eq!(to_client(&bench.lose())[0]["error"]["code"], -32603);
    assert_eq!(bench.session.wants(), Want::Nothing);
}

#[test]
fn patience_ends_in_words_and_a_later_request_tries_again() {
    let mut bench = Bench::new();
    bench.client(request(1, "tools/call"));
    assert!(bench.pass(PATIENCE - Duration::from_millis(1)).is_empty());
    assert_eq!(bench.session.wakes_at(), Some(bench.now + Duration::from_millis(1)));
    let told = to_client(&bench.pass(Duration::from_millis(1)));
    assert_eq!((&told[0]["id"], &told[0]["error"]["code"]), (&json!(1), &json!(-32603)));
    assert_eq!((bench.session.wants(), bench.session.wakes_at()), (Want::Nothing, None));
    bench.client(request(2, "ping"));
    assert_eq!(bench.session.wants(), Want::Launch);
}

#[test]
fn an_open_listen_comes_back_and_is_acknowledged_once() {
    let mut bench = Bench::connected();
    bench.client(request("l", "subscriptions/listen"));
    assert_eq!(to_client(&bench.daemon(acknowledged("l"))).len(), 1);
    assert!(!bench.session.is_owed(), "nobody waits for its end");
    for _ in 0..=BREAKS_MAX {
        // A daemon that stops ends its subscriptions first.
        assert!(bench.daemon(result("l")).is_empty());
        assert!(bench.lose().is_empty());
        assert_eq!(bench.session.wants(), Want::Attach);
        assert_eq!(to_daemon(&bench.session.connected()), [request("l", "subscriptions/listen")]);
        assert!(bench.daemon(acknowledged("l")).is_empty());
    }
    // A daemon that continues has ended the subscription permanently.
    assert!(bench.daemon(result("l")).is_empty());
    assert_eq!(bench.pass(LISTEN_END_HELD), [Effect::ToClient(result("l"))]);
    assert!(bench.lose().is_empty());
    assert_eq!(bench.session.wants(), Want::Nothing);
}

#[test]
fn an_answer_to_a_question_of_the_last_connection_is_nobodys() {
    let mut bench = Bench::initialized();
    let ask = |bench: &mut Bench| to_client(&bench.daemon(request(0, "elicitation/create")))[0]["id"].clone();
    let first = ask(&mut bench);
    let told = to_client(&bench.lose());
    assert_eq!(told[0]["method"], "notifications/cancelled");
    assert_eq!(told[0]["params"]["requestId"], first);
    bench.session.connected();
    bench.daemon(result(0));
    let second = ask(&mut bench);
    assert_ne!(first, second);
    assert!(bench.client(result(first)).is_empty(), "a yes to another question");
    assert_eq!(to_daemon(&bench.client(result(second.clone()))), [result(0)]);
    assert!(bench.client(result(second)).is_empty(), "a second answer");
}

#[test]
fn bounds_are_kept_in_words() {
    let mut bench = Bench::new();
    for id in 0..REQUESTS_MAX {
        assert!(bench.client(request(id, "ping")).is_empty());
    }
    let told = to_client(&bench.client(request("over", "ping")));
    assert_eq!((&told[0]["id"], &told[0]["error"]["code"]), (&json!("over"), &json!(-32600)));
    let told = to_client(&bench.client(request(0, "ping")));
    assert_eq!(told[0]["id"], Value::Null, "an answer with the id would be taken for the first one's");
    assert_eq!(bench.session.connected().len(), REQUESTS_MAX);

    let mut bench = Bench::new();
    let large =
        json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": "x".repeat(REQUEST_BYTES_MAX)}});
    assert_eq!(to_client(&bench.client(line(&large))).len(), 1);
}

#[test]
fn what_the_daemon_says_beside_the_protocol_stays_here() {
    let mut bench = Bench::connected();
    assert!(bench.daemon(Bytes::from_static(b"thread 'main' panicked at src/main.rs")).is_empty());
    assert!(bench.daemon(result(99)).is_empty());
    let progress = note("notifications/progress", &json!({"progressToken": 1, "progress": 1}));
    assert_eq!(bench.daemon(progress.clone()), [Effect::ToClient(progress)]);
}

/// Random step of a run.
#[derive(Debug, Clone)]
enum Step {
    Ask {
        method: &'static str,
        text_id: bool,
    },
    /// Cancels one of the requests so far.
    Cancel(prop::sample::Index),
    /// Answers one of the daemon's questions on this connection.
    Answer {
        which: prop::sample::Index,
        failed: bool,
    },
    Acknowledge(prop::sample::Index),
    Repeat(prop::sample::Index),
    Connect,
    Break,
    Pass(u64),
    Refuse,
}

fn step() -> impl Strategy<Value = Step> {
    let methods = prop::sample::select(vec![
        "initialize",
        "tools/list",
        "tools/call",
        "tools/call",
        "resources/subscribe",
        "resources/unsubscribe",
        "logging/setLevel",
        "subscriptions/listen",
    ]);
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (methods, any::<bool>()).prop_map(|(method, text_id)| Step::Ask { method, text_id }),
        1 => index().prop_map(Step::Cancel),
        6 => (index(), prop::bool::weighted(0.2)).prop_map(|(which, failed)| Step::Answer { which, failed }),
        2 => index().prop_map(Step::Acknowledge),
        1 => index().prop_map(Step::Repeat),
        4 => Just(Step::Connect),
        3 => Just(Step::Break),
        1 => (0..20u64).prop_map(Step::Pass),
        1 => Just(Step::Refuse),
    ]
}

/// Both sides of a session, and the messages that each has seen.
struct World {
    bench: Bench,
    up: bool,
    /// All ids, with the requested method.
    asked: Vec<(Value, &'static str)>,
    cancelled: BTreeSet<String>,
    /// Number of answers by id.
    answers: BTreeMap<String, u32>,
    acknowledgements: BTreeMap<String, u32>,
    /// Requests that the daemon of this connection has to answer, in order.
    open: Vec<Value>,
    answered_by_daemon: Vec<Value>,
    calls_sent: BTreeMap<String, u32>,
}

impl World {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            up: false,
            asked: Vec::new(),
            cancelled: BTreeSet::new(),
            answers: BTreeMap::new(),
            acknowledgements: BTreeMap::new(),
            open: Vec::new(),
            answered_by_daemon: Vec::new(),
            calls_sent: BTreeMap::new(),
        }
    }

    fn see(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::ToDaemon(line) => {
                    assert!(self.up, "nothing is said where nobody hears it");
                    let message: Value = serde_json::from_slice(&line).unwrap();
                    if message["method"] == "tools/call" {
                        *self.calls_sent.entry(message["id"].to_string()).or_default() += 1;
                    }
                    if message.get("id").is_some() {
                        self.open.push(message);
                    }
                }
                Effect::ToClient(line) => {
                    let message: Value = serde_json::from_slice(&line).unwrap();
                    if message["method"] == "notifications/subscriptions/acknowledged" {
                        let id = &message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
                        *self.acknowledgements.entry(id.to_string()).or_default() += 1;
                    } else if message.get("method").is_none() {
                        let id = message["id"].to_string();
                        assert!(!self.cancelled.contains(&id), "{id} was cancelled and got an answer");
                        *self.answers.entry(id).or_default() += 1;
                    }
                }
                Effect::HangUp => self.break_off(),
            }
        }
    }

    fn break_off(&mut self) {
        if std::mem::take(&mut self.up) {
            self.open.clear();
            self.answered_by_daemon.clear();
            let effects = self.bench.lose();
            self.see(effects);
        }
    }

    fn connect(&mut self) {
        if !self.up {
            self.up = true;
            let effects = self.bench.session.connected();
            self.see(effects);
        }
    }

    fn answer(&mut self, at: usize, failed: bool) {
        let id = self.open.remove(at)["id"].clone();
        self.answered_by_daemon.push(id.clone());
        let effects = self.bench.daemon(if failed { error(id) } else { result(id) });
        self.see(effects);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask { method, text_id } => {
                let number = self.asked.len();
                let id = if text_id { json!(format!("r{number}")) } else { json!(number) };
                self.asked.push((id.clone(), method));
                let effects = self.bench.client(request(id, method));
                self.see(effects);
            }
            Step::Cancel(which) if !self.asked.is_empty() => {
                let (id, method) = which.get(&self.asked).clone();
                if method == "initialize" {
                    return;
                }
                let effects = self.bench.client(note("notifications/cancelled", &json!({ "requestId": id })));
                self.cancelled.insert(id.to_string());
                self.see(effects);
            }
            Step::Answer { which, failed } if !self.open.is_empty() => {
                self.answer(which.index(self.open.len()), failed);
            }
            Step::Acknowledge(which) => {
                let listens: Vec<_> =
                    self.open.iter().filter(|open| open["method"] == "subscriptions/listen").collect();
                if !listens.is_empty() {
                    let effects = self.bench.daemon(acknowledged(which.get(&listens)["id"].clone()));
                    self.see(effects);
                }
            }
            Step::Repeat(which) if !self.answered_by_daemon.is_empty() => {
                let effects = self.bench.daemon(result(which.get(&self.answered_by_daemon).clone()));
                self.see(effects);
            }
            Step::Connect => self.connect(),
            Step::Break => self.break_off(),
            Step::Pass(seconds) => {
                let effects = self.bench.pass(Duration::from_secs(seconds));
                self.see(effects);
            }
            Step::Refuse if !self.up => {
                let effects = self.bench.session.refused("no");
                self.see(effects);
            }
            Step::Cancel(_) | Step::Answer { .. } | Step::Repeat(_) | Step::Refuse => {}
        }
    }

    /// Runs a daemon that answers everything, with unlimited time.
    fn settle(&mut self) {
        for _ in 0..10 {
            self.connect();
            while self.up && !self.open.is_empty() {
                self.answer(0, false);
            }
            self.take(Step::Pass(5));
        }
    }
}

proptest! {
    #[test]
    fn every_request_gets_one_answer_whatever_breaks(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
        }
        world.settle();
        for (id, method) in &world.asked {
            let id = id.to_string();
            let answers = world.answers.get(&id).copied().unwrap_or_default();
            let cancelled = world.cancelled.contains(&id);
            prop_assert!(answers == 1 || (cancelled && answers == 0), "{id} {method}: {answers} answers");
            prop_assert!(world.calls_sent.get(&id).is_none_or(|sent| *sent == 1), "{id} was sent again");
            let acknowledged = world.acknowledgements.get(&id).copied().unwrap_or_default();
            prop_assert!(acknowledged <= 1, "{id}: {acknowledged} acknowledgements");
        }
        let asked: BTreeSet<_> = world.asked.iter().map(|(id, _)| id.to_string()).collect();
        prop_assert!(world.answers.keys().all(|id| asked.contains(id)), "an answer to nothing");
        prop_assert!(!world.bench.session.is_owed());
    }
}
