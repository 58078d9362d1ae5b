//! Row 7: verified heartbeats, handled by the controller's own code without the network.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_proto::aegis::cluster::{v1 as pb, v1::node_cluster_service_server::NodeClusterService as _};
use cluster_core::{
    controller::{
        api::{
            nodes::{ControllerApi, ControllerApiSettings},
            operator::Operators,
        },
        handle::{ChallengeAnswer, ChallengeSignature, Controller, HealthSettings, TokenOrder},
        membership::{Registration, Staleness},
        nodes::{NodeConnections, direct::DirectAccess},
    },
    fs::DataDirectory,
    identity::{Attestation, EnrolmentToken, NodeKey, statement},
    metrics::Metrics,
    rpc::{
        ClusterClock, Sealer,
        places::Authenticated,
        via::{PeerInfo, PeerTransport},
    },
    store::Store,
    types::{clock::Clock, ids::NodeId, node::Role},
};
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{line, support::capabilities};

const NODES: usize = 100;
const BEATS_PER_NODE: usize = 100;
const AT_ONCE: usize = 64;

pub async fn run() {
    let directory = tempfile::tempdir().unwrap();
    let data = Arc::new(DataDirectory::own(directory.path()).unwrap());
    let store = Store::open(data).await.unwrap();
    let health = HealthSettings {
        staleness: Staleness { threshold: Duration::from_secs(90), is_set: false },
        sweep_interval: Duration::from_secs(10),
        clock: Clock::default(),
    };
    let (home, key) = (NodeId::parse("home").unwrap(), Arc::new(NodeKey::generate().unwrap()));
    let stop = CancellationToken::new();
    let controller = Controller::start(home, key, directory.path(), store, health, None, stop).await.unwrap();
    let (nodes, _streams) = NodeConnections::new(controller.clone(), None, DirectAccess::default());
    let settings = ControllerApiSettings {
        allow_unsealed_context: false,
        operators: Operators::default(),
        endpoint: String::new(),
        authority: None,
    };
    let api = ControllerApi::new(controller.clone(), nodes, Metrics::default(), settings);

    let mut calls = Vec::with_capacity(NODES * BEATS_PER_NODE);
    let mut sample = None;
    for number in 0..NODES {
        let (sealer, key) = member(&controller, number).await;
        for beat in 0..BEATS_PER_NODE {
            let node_id = format!("n{number}");
            let inner = pb::NodeHeartbeatInner { node_id, ..Default::default() };
            let mut call = sealer.seal(inner, |e| pb::NodeHeartbeatRequest { envelope: Some(e) }).unwrap();
            call.extensions_mut()
                .insert(PeerInfo { via: PeerTransport::Unix, proven: Authenticated::default() });
            sample.get_or_insert_with(|| (call.get_ref().envelope.clone().unwrap(), key.public()));
            calls.push((beat, call));
        }
    }
    // In order of arrival: one of each node after the other.
    calls.sort_by_key(|(beat, _)| *beat);
    let calls: Vec<_> = calls.into_iter().map(|(_, call)| call).collect();
    let (envelope, public_key) = sample.unwrap();

    // The floor: both signatures of each call, and nothing else.
    let start = Instant::now();
    let now_secs = now_secs();
    for _ in 0..calls.len() {
        controller.token_keys().verify(&envelope.node_security_token, now_secs).unwrap();
        public_key.verify(&envelope.payload, &envelope.signature).unwrap();
    }
    let floor = calls.len() as f64 / start.elapsed().as_secs_f64();

    let beats = calls.len();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let answers = futures::stream::iter(calls).map(|call| {
        let api = api.clone();
        tokio::spawn(async move { api.heartbeat(call).await.map(drop) })
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    while let Some(answered) = answers.next().await {
        answered.unwrap().unwrap();
    }
    let both = beats as f64 / start.elapsed().as_secs_f64();
    let ours = beats as f64 / (cpu_seconds() - cpu);
    line(
        "7",
        "verified heartbeats a core (on both, 64 at once)",
        &format!("{ours:.0}/s ({both:.0}/s)"),
        &format!("{floor:.0}/s for the signatures"),
        &format!("{:.2}", ours / floor),
    );
    line(
        "7",
        "10,000 nodes at 10 s: share of one core",
        &format!("{:.1} %", 1_000.0 / ours * 100.0),
        "goal 10 %",
        &format!("{:.2}", 10_000.0 / ours),
    );
}

/// Returns the CPU time that this process has used on all cores, in seconds. The kernel counts ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // After the name, which may hold spaces: state is field 3, utime and stime are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Makes a node that has attested and registered, below the wire.
async fn member(controller: &Controller, number: usize) -> (Sealer, Arc<NodeKey>) {
    let node_id = NodeId::parse(format!("n{number}")).unwrap();
    let key = Arc::new(NodeKey::generate().unwrap());
    let lifetime = Duration::from_secs(60);
    let order = TokenOrder { node_id: None, role: Role::Worker, lifetime, tags: None };
    let (issued, _) = controller.issue_enrolment_token(order, None).await.unwrap();
    let attestation = Attestation {
        node_id: node_id.clone(),
        role: Role::Worker,
        public_key: key.public(),
        nonce: None,
        token: None,
        capabilities_hash: String::new(),
        software_version: String::new(),
    };
    let token = EnrolmentToken::parse(&issued.text).unwrap();
    let challenge = controller.attest(attestation, Some(token)).await.unwrap();
    let (cluster, home) = (controller.cluster_id(), controller.id());
    let signed = statement(cluster, home, &node_id, &key.public(), &challenge.bytes, &[]);
    let answer = ChallengeAnswer {
        challenge_id: challenge.id,
        node_id: node_id.clone(),
        signature: ChallengeSignature::Statement(key.sign(&signed).to_vec()),
        certificate_request: Vec::new(),
    };
    let admission = controller.answer(answer).await.unwrap();
    let registration = Registration { capabilities: capabilities(), address: String::new(), interval: None };
    controller.register(node_id.clone(), registration).await.unwrap();
    let clock = ClusterClock::new(now_secs() * 1000, tokio::time::Instant::now());
    let sealer = Sealer::new(
        key.clone(),
        node_id,
        cluster.to_string(),
        admission.token,
        admission.session_id,
        controller.epoch(),
        clock,
    );
    (sealer, key)
}
