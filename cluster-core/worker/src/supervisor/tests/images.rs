//! Images that cannot be pulled, from a registry of this machine that keeps to the protocol and not to its
//! word.

use std::{sync::Arc, time::Duration};

use aegis_identity::sha256;
use aegis_types::{
    registry::{PullLogin, Registry as ImageRegistry},
    secret::Secret,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Under the digest that is asked for, another manifest.
    OtherManifest,
    /// Under the layer's digest, other bytes of the same length.
    OtherLayer,
    /// The layer begins, and does not go on.
    Stalls,
    /// No fault: requests with the right login are answered, and no others.
    Private,
}

const USER: &str = "puller";
const PASSWORD: &str = "marker-pull-5c1";
/// An archive without entries.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// One image, `x/agent:1`, of one layer.
struct Registry {
    fault: Fault,
    manifest: String,
    config: String,
    layer: Vec<u8>,
    unexpected: mpsc::UnboundedSender<String>,
}

struct Served {
    address: String,
    layer_digest: String,
    unexpected: mpsc::UnboundedReceiver<String>,
}

fn basic(password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha256(bytes)))
}

impl Registry {
    async fn serve(fault: Fault) -> Served {
        let layer = match fault {
            Fault::Private => EMPTY_TAR.to_vec(),
            _ => b"bytes that are no archive".to_vec(),
        };
        let rootfs = json!({ "type": "layers", "diff_ids": [digest(&layer)] });
        let config =
            json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs }).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": config.len(), "digest": digest(config.as_bytes()),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": layer.len(), "digest": digest(&layer),
            }],
        });
        let (unexpected, told_unexpected) = mpsc::unbounded_channel();
        let layer_digest = digest(&layer);
        let registry = Arc::new(Self { fault, manifest: manifest.to_string(), config, layer, unexpected });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let registry = registry.clone();
                tokio::spawn(async move { registry.answer(stream).await });
            }
        });
        Served { address, layer_digest, unexpected: told_unexpected }
    }

    /// One request a connection.
    async fn answer(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut request = String::new();
        let _ = stream.read_line(&mut request).await;
        // Engines try TLS first, and do without on loopback.
        if request.is_empty() {
            return;
        }
        let (mut header, mut is_known) = (String::new(), self.fault != Fault::Private);
        while stream.read_line(&mut header).await.is_ok_and(|read| read > 2) {
            is_known |=
                header.trim_end().eq_ignore_ascii_case(&format!("authorization: {}", basic(PASSWORD)));
            header.clear();
        }
        if !is_known {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                           Content-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(refusal.as_bytes()).await;
            return;
        }
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let config = format!("/v2/x/agent/blobs/{}", digest(self.config.as_bytes()));
        let layer = format!("/v2/x/agent/blobs/{}", digest(&self.layer));
        let (kind, mut body) = match (method, path) {
            ("GET", "/v2/") => ("application/json", b"{}".to_vec()),
            ("GET" | "HEAD", path) if path.starts_with("/v2/x/agent/manifests/") => {
                (MANIFEST, self.manifest.clone().into_bytes())
            }
            ("GET", path) if path == config => ("application/octet-stream", self.config.clone().into_bytes()),
            ("GET", path) if path == layer => ("application/octet-stream", self.layer.clone()),
            _ => {
                let _ = self.unexpected.send(request);
                return;
            }
        };
        if path == layer && self.fault == Fault::OtherLayer {
            body.reverse();
        }
        let mut head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Docker-Distribution-Api-Version: registry/2.0\r\n",
            body.len()
        );
        if kind == MANIFEST && self.fault != Fault::OtherManifest {
            head += &format!("Docker-Content-Digest: {}\r\n", digest(&body));
        }
        let stalls = path == layer && self.fault == Fault::Stalls;
        if method == "HEAD" {
            body.clear();
        } else if stalls {
            body.truncate(1);
        }
        let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
        let _ = stream.write_all(&body).await;
        let _ = stream.flush().await;
        if stalls {
            // Until the engine hangs up, which 20.10 leaves for later.
            let _ = stream.read_line(&mut String::new()).await;
        }
    }
}

/// A registry named by address is used only where it is listed.
fn loopback_registry() -> Policy {
    Policy { allowed_images: Some(vec!["127.0.0.1:*".into()]), ..Policy::default() }
}

async fn pulling(setting: &Setting) -> Supervisor {
    let engine = Engine::new(None).unwrap().with_pull_silence(SILENCE);
    engine.info().await.expect("these tests need Docker: run tests/run");
    let (policy, network) = (loopback_registry(), "aegis-net".to_owned());
    Supervisor::recover(&setting.data, setting.node_id.clone(), engine, policy, network, vec![]).unwrap()
}

fn order_of(image: String) -> Order {
    order("true", "", |request| request.image = Some(image))
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn what_is_not_what_its_digest_says_is_refused_by_name() {
    let setting = Setting::new();
    let supervisor = pulling(&setting).await;
    for fault in [Fault::OtherManifest, Fault::OtherLayer] {
        let mut registry = Registry::serve(fault).await;
        let (image, named) = match fault {
            Fault::OtherManifest => {
                let asked = digest(b"what was pushed");
                (format!("{}/x/agent@{asked}", registry.address), asked)
            }
            _ => (format!("{}/x/agent:1", registry.address), registry.layer_digest.clone()),
        };
        let all = events(&supervisor, &order_of(image), 0).await;
        let EventKind::Failed { failure, exit_code: None } = &all.last().unwrap().kind else {
            panic!("{all:?}")
        };
        assert_eq!(failure.code, ErrorCode::ImageNotFound, "{failure:?}");
        assert!(failure.message.contains(&named) && failure.message.contains("verification"), "{failure:?}");
        assert_eq!(registry.unexpected.try_recv().ok(), None, "{fault:?}");
    }
    assert!(supervisor.engine().ours(supervisor.owner()).await.unwrap().is_empty());
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn stalled_pull_times_out_and_cancelled_pull_ends() {
    let setting = Setting::new();
    let supervisor = pulling(&setting).await;
    let mut registry = Registry::serve(Fault::Stalls).await;
    // Its own timeout counts from the start of the container.
    let stalling = order("true", "", |request| {
        (request.image, request.timeout_seconds) = (Some(format!("{}/x/agent:1", registry.address)), Some(1));
    });
    let all = events(&supervisor, &stalling, 0).await;
    let EventKind::Failed { failure, .. } = &all.last().unwrap().kind else { panic!("{all:?}") };
    assert_eq!(failure.code, ErrorCode::ImageNotFound, "{failure:?}");
    assert!(
        failure.message.contains("x/agent:1") && failure.message.contains("no progress for 2 s"),
        "{failure:?}"
    );
    assert_eq!(registry.unexpected.try_recv().ok(), None);

    drop(supervisor);
    let supervisor = setting.with(loopback_registry()).await;
    let order = order_of(format!("{}/x/agent:1", registry.address));
    let mut stream = Box::pin(supervisor.accept(order.clone(), 0).await.unwrap());
    let mut end = None;
    while let Some(event) = stream.next().await {
        match event.unwrap().kind {
            EventKind::ImageProgress { .. } => {
                supervisor.cancel(&order.execution_id, 1, "enough").unwrap();
            }
            kind => end = Some(kind),
        }
    }
    assert!(matches!(end, Some(EventKind::Cancelled { .. })), "{end:?}");
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn private_image_is_pulled_with_the_orders_login() {
    let setting = Setting::new();
    let supervisor = pulling(&setting).await;
    let registry = Registry::serve(Fault::Private).await;
    let image = format!("{}/x/agent:1", registry.address);
    let key = format!("spec.deploy.registries.\"{}\"", registry.address);
    let failure_with = async |password: Option<&str>| {
        let mut order = order_of(image.clone());
        order.login = password.map(|password| PullLogin {
            registry: ImageRegistry::of(&image),
            username: USER.to_owned(),
            password: Secret::new(password),
        });
        let all = events(&supervisor, &order, 0).await;
        let left = setting.directory.path().join("executions").join(order.execution_id.as_str());
        // The end is told before the login goes.
        let is_gone = async {
            while left.join("login.json").exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is_gone).await.unwrap();
        let EventKind::Failed { failure, .. } = &all.last().unwrap().kind else { panic!("{all:?}") };
        failure.clone()
    };
    for (password, why) in [(None, "without a login"), (Some("marker-wrong"), "to the configured login")] {
        let failure = failure_with(password).await;
        assert_eq!(failure.code, ErrorCode::ImageNotFound, "{failure:?}");
        assert!(failure.message.contains(why), "{failure:?}");
        assert!(failure.remedy.as_ref().is_some_and(|remedy| remedy.contains(&key)), "{failure:?}");
        assert!(!format!("{failure:?}").contains("marker-"), "{failure:?}");
    }
    // The image is there, and has no program.
    let failure = failure_with(Some(PASSWORD)).await;
    let _ = Command::new("docker").args(["rmi", "-f", &image]).output();
    assert_eq!(failure.code, ErrorCode::ContainerFailed, "{failure:?}");
}
