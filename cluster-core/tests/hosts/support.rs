//! Testbed hosts, and stand-ins for the rest of the program.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_core::{
    deploy::{
        ApprovedHost, Deployed, DeploymentFilter, DeploymentSpec, Journal, Membership, RolloutState,
        link_settings,
        model::record::DeploymentRecord,
        rollout::{RolloutJournal, RolloutRecord},
    },
    ssh::{
        ConnectOptions, Connection, Dialer, HostAddress, HostKeyPolicy, HostKeyRules, LinkHandle, SshTarget,
        known_hosts::KnownHosts,
    },
    types::{
        error::{Error, ErrorCode, Result},
        ids::{DeploymentId, NodeId, RolloutId, UserName},
        link::NodeLink,
        resources::Amounts,
        secret::{Secret, SecretName},
    },
};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

pub const LIMIT: Duration = Duration::from_secs(20);

#[derive(serde::Deserialize, Clone)]
pub struct Host {
    pub ip: String,
    pub port: u16,
    pub user: String,
    pub key_path: PathBuf,
    pub known_hosts_path: PathBuf,
    /// The container that is the host, on this machine's own engine.
    pub container: String,
}

pub fn host(index: usize) -> Host {
    let path =
        std::env::var("AEGIS_TESTBED_HOSTS").expect("AEGIS_TESTBED_HOSTS names the list of testbed hosts");
    let text = std::fs::read_to_string(path).expect("the list of testbed hosts");
    let hosts: Vec<Host> = serde_json::from_str(&text).expect("a JSON list of hosts");
    hosts.get(index).expect("enough testbed hosts").clone()
}

impl Host {
    pub fn target(&self) -> SshTarget {
        SshTarget {
            host: HostAddress::parse(&self.ip, false).unwrap(),
            port: self.port,
            user: UserName::parse(self.user.clone()).unwrap(),
            key_path: Some(self.key_path.clone()),
        }
    }

    pub fn options(&self, known: KnownHosts, policy: HostKeyPolicy) -> ConnectOptions {
        ConnectOptions {
            rules: Arc::new(HostKeyRules { known, policy, ..Default::default() }),
            ..Default::default()
        }
    }

    pub fn known(&self) -> ConnectOptions {
        self.options(KnownHosts::read(&[&self.known_hosts_path]).unwrap(), HostKeyPolicy::Strict)
    }

    pub async fn connect(&self) -> Connection {
        Connection::open(&self.target(), &self.known()).await.unwrap()
    }

    pub fn dialer(&self) -> Dialer {
        let host = self.clone();
        Arc::new(move || {
            let host = host.clone();
            Box::pin(async move { Connection::open(&host.target(), &host.known()).await })
        })
    }
}

pub async fn run(connection: &Connection, script: &'static str, args: &[&str]) -> String {
    let output = connection.script(script, args, LIMIT).await.unwrap();
    assert!(output.success(), "{output:?}");
    output.stdout
}

pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let polled = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, polled).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

/// A static executable that behaves like a worker as far as a deployment can see.
pub fn stand_in_node(dir: &Path, name: &str, source: &str) -> PathBuf {
    let (text, binary) = (dir.join(format!("{name}.rs")), dir.join(name));
    std::fs::write(&text, source).unwrap();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-C",
            "target-feature=+crt-static",
            "-C",
            "strip=symbols",
            "--target",
            &target,
        ])
        .arg("-o")
        .args([&binary, &text])
        .status()
        .unwrap();
    assert!(status.success());
    binary
}

/// The first process of a container is not ended by SIGTERM unless it says so.
macro_rules! ends_when_told {
    () => {
        r#"
unsafe extern "C" { fn signal(number: i32, handler: extern "C" fn(i32)) -> usize; fn _exit(code: i32) -> !; }
extern "C" fn end(_: i32) { unsafe { _exit(0) } }
fn end_when_told() { unsafe { signal(15, end) }; }
"#
    };
}
pub(crate) use ends_when_told;

pub const GOOD_NODE: &str = concat!(
    ends_when_told!(),
    r#"
use std::{env, fs, io::{Read, Write}, net::{TcpListener, TcpStream}};
fn main() {
    end_when_told();
    let args: Vec<String> = env::args().collect();
    if args[1] == "probe" {
        let mut stream = TcpStream::connect("127.0.0.1:8090").unwrap();
        stream.write_all(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        std::process::exit(if text.contains(" 200 ") { 0 } else { 1 });
    }
    assert!(fs::read_to_string(&args[3]).unwrap().contains("NodeConfig"));
    fs::write("/var/lib/aegis/written", "x").unwrap();
    fs::metadata("/var/run/docker.sock").unwrap();
    fs::write("/run/aegis/node.pub", "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=").unwrap();
    eprintln!("llm {}", env::var("AEGIS_REMOTE_LLM_URL").unwrap());
    for stream in TcpListener::bind("127.0.0.1:8090").unwrap().incoming() {
        let mut stream = stream.unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).unwrap_or(0);
        // As the real one does.
        if !String::from_utf8_lossy(&request[..read]).to_lowercase().contains("\r\nhost: 127.0.0.1") {
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            continue;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
    }
}
"#
);

pub const BROKEN_NODE: &str = r#"
fn main() { eprintln!("cannot \x1b[31mstart: broken on purpose"); std::process::exit(3); }
"#;

/// Keeps records in memory.
#[derive(Default)]
pub struct MemoryJournal {
    records: Mutex<Vec<DeploymentRecord>>,
    hosts: Mutex<HashMap<(String, u16), ApprovedHost>>,
    rollouts: Mutex<Vec<RolloutRecord>>,
    pub secrets: Mutex<HashMap<SecretName, Secret>>,
}

impl MemoryJournal {
    pub fn deployments(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    fn rollouts_where(&self, wanted: impl Fn(&RolloutRecord) -> bool) -> Vec<RolloutRecord> {
        self.rollouts.lock().unwrap().iter().rev().filter(|record| wanted(record)).cloned().collect()
    }
}

impl RolloutJournal for MemoryJournal {
    fn put_rollout<'a>(&'a self, record: &'a RolloutRecord) -> BoxFuture<'a, Result<()>> {
        let mut rollouts = self.rollouts.lock().unwrap();
        rollouts.retain(|known| known.view.rollout_id != record.view.rollout_id);
        rollouts.push(record.clone());
        Box::pin(async { Ok(()) })
    }
    fn rollout<'a>(&'a self, id: &'a RolloutId) -> BoxFuture<'a, Result<Option<RolloutRecord>>> {
        let found = self.rollouts_where(|record| record.view.rollout_id == *id).pop();
        Box::pin(async { Ok(found) })
    }
    fn rollout_by_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<RolloutRecord>>> {
        let found = self.rollouts_where(|record| record.idempotency_key.as_deref() == Some(key)).pop();
        Box::pin(async { Ok(found) })
    }
    fn rollouts(&self, limit: u32) -> BoxFuture<'_, Result<Vec<RolloutRecord>>> {
        let newest = self.rollouts_where(|_| true).into_iter().take(limit as usize).collect();
        Box::pin(async { Ok(newest) })
    }
    fn unfinished_rollouts(&self) -> BoxFuture<'_, Result<Vec<RolloutRecord>>> {
        let found = self.rollouts_where(|record| record.view.state == RolloutState::Running);
        Box::pin(async { Ok(found) })
    }
}

impl Journal for MemoryJournal {
    fn put<'a>(&'a self, record: &'a DeploymentRecord) -> BoxFuture<'a, Result<()>> {
        let mut records = self.records.lock().unwrap();
        records.retain(|known| known.view.deployment_id != record.view.deployment_id);
        records.push(record.clone());
        Box::pin(async { Ok(()) })
    }
    fn get<'a>(&'a self, id: &'a DeploymentId) -> BoxFuture<'a, Result<Option<DeploymentRecord>>> {
        let found =
            self.records.lock().unwrap().iter().find(|record| record.view.deployment_id == *id).cloned();
        Box::pin(async { Ok(found) })
    }
    fn by_idempotency_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<DeploymentRecord>>> {
        let records = self.records.lock().unwrap();
        let found = records.iter().find(|record| record.idempotency_key.as_deref() == Some(key)).cloned();
        Box::pin(async { Ok(found) })
    }
    fn list<'a>(&'a self, _: &'a DeploymentFilter) -> BoxFuture<'a, Result<(Vec<DeploymentRecord>, usize)>> {
        let records: Vec<_> = self.records.lock().unwrap().iter().rev().cloned().collect();
        let total = records.len();
        Box::pin(async move { Ok((records, total)) })
    }
    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DeploymentRecord>>> {
        let records = self.records.lock().unwrap();
        let found = records.iter().filter(|record| !record.view.state.is_final()).cloned().collect();
        Box::pin(async { Ok(found) })
    }
    fn put_host<'a>(&'a self, host: &'a ApprovedHost) -> BoxFuture<'a, Result<()>> {
        self.hosts.lock().unwrap().insert((host.host.to_string(), host.port), host.clone());
        Box::pin(async { Ok(()) })
    }
    fn host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<Option<ApprovedHost>>> {
        let found = self.hosts.lock().unwrap().get(&(host.to_string(), port)).cloned();
        Box::pin(async { Ok(found) })
    }
    fn hosts(&self) -> BoxFuture<'_, Result<Vec<ApprovedHost>>> {
        let hosts = self.hosts.lock().unwrap().values().cloned().collect();
        Box::pin(async { Ok(hosts) })
    }
    fn forget_host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<bool>> {
        let forgotten = self.hosts.lock().unwrap().remove(&(host.to_string(), port)).is_some();
        Box::pin(async move { Ok(forgotten) })
    }
    fn use_secret<'a>(&'a self, name: &'a SecretName, _: &'a str) -> BoxFuture<'a, Result<Secret>> {
        let found = self.secrets.lock().unwrap().get(name).cloned();
        Box::pin(async move { found.ok_or_else(|| cluster_core::controller::secrets::unknown(name)) })
    }
}

/// A cluster in which every admitted node is Active at once; its links are real.
pub struct StandInCluster {
    pub host: Host,
    pub links: tokio::sync::Mutex<HashMap<NodeId, LinkHandle>>,
    pub admitted: Mutex<Vec<NodeId>>,
    pub resumed: Mutex<Vec<NodeId>>,
}

impl StandInCluster {
    pub fn new(host: Host) -> Self {
        Self { host, links: Default::default(), admitted: Mutex::default(), resumed: Mutex::default() }
    }
}

impl Membership for StandInCluster {
    fn check_identity<'a>(&'a self, node: &'a NodeId, _: &'a SshTarget) -> BoxFuture<'a, Result<()>> {
        let pinned = node.as_str() == "pinned-elsewhere";
        Box::pin(async move {
            if pinned { Err(Error::new(ErrorCode::Conflict, "pinned to edge7")) } else { Ok(()) }
        })
    }
    fn admit<'a>(
        &'a self,
        node: &'a NodeId,
        key: [u8; 32],
        _: &'a DeploymentSpec,
        _: &'a NodeLink,
        _: Option<Amounts>,
    ) -> BoxFuture<'a, Result<()>> {
        assert_eq!(key, [7; 32]);
        self.admitted.lock().unwrap().push(node.clone());
        Box::pin(async { Ok(()) })
    }
    fn revoked_keys<'a>(&'a self, _: &'a NodeId) -> BoxFuture<'a, Result<Vec<String>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn attach_link<'a>(
        &'a self,
        node: &'a NodeId,
        spec: &'a DeploymentSpec,
        link: &'a NodeLink,
        connection: Connection,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut links = self.links.lock().await;
            if let Some(old) = links.remove(node) {
                old.stop().await;
            }
            let settings = link_settings(&spec.node, &spec.base_dir, "test", link.ports());
            let link = LinkHandle::start(settings, self.host.dialer(), Some(connection), mpsc::channel(1).0);
            links.insert(node.clone(), link);
            Ok(())
        })
    }
    fn await_active<'a>(&'a self, _: &'a NodeId, _: Duration) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn prove<'a>(&'a self, _: &'a NodeId, image: &'a str) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move { Ok(format!("ran {image}")) })
    }
    fn remove_link_key<'a>(&'a self, _: &'a NodeId, _: &'a Connection) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn withdraw<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if let Some(link) = self.links.lock().await.remove(node) {
                link.stop().await;
            }
            self.admitted.lock().unwrap().retain(|known| known != node);
            Ok(())
        })
    }
    fn deployed<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<Deployed>> {
        let known = self.admitted.lock().unwrap().contains(node);
        let deployed = Deployed {
            target: self.host.target(),
            base_dir: "/opt/aitheros-edge".to_owned(),
            drained: false,
            join: true,
        };
        Box::pin(
            async move { if known { Ok(deployed) } else { Err(Error::not_found("node", node.as_str())) } },
        )
    }
    fn drain<'a>(&'a self, _: &'a NodeId, limit: Duration) -> BoxFuture<'a, Result<String>> {
        // What runs here never ends by itself.
        Box::pin(async move {
            tokio::time::sleep(limit).await;
            Ok("nothing runs there any more".to_owned())
        })
    }
    fn resume<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        self.resumed.lock().unwrap().push(node.clone());
        Box::pin(async { Ok(()) })
    }
    fn forget<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Result<()>> {
        self.withdraw(node)
    }
    fn controller_public_key(&self) -> [u8; 32] {
        [9; 32]
    }
}
