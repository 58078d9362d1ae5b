//! Nodes that reach each other directly, under TLS on both sides.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::support::{
    IMAGE,
    controller::{Controller, Setup, free_port},
    files,
    poll::until,
};

const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// A node that is cut off gets no new work after this.
const ABSENCE_LIMIT: Duration = Duration::from_secs(20);
const RUN: [&str; 9] =
    ["run", "--image", IMAGE, "--node", "by-hand", "--", "sh", "-c", "echo on $AEGIS_NODE_ID"];

fn controller(port: u16, more: &str) -> Setup {
    let cluster = format!("role: hybrid\n    advertise_address: 'https://127.0.0.1:{port}'{more}");
    Setup { cluster, ..Setup::default() }
}

fn worker(controller_port: u16, token: &str, more: &str) -> Setup {
    let cluster = format!(
        "role: worker\n    advertise_address: 'https://127.0.0.1:{}'\n    \
         controller: {{endpoint: 'https://127.0.0.1:{controller_port}', token: '{token}'}}{more}",
        free_port()
    );
    Setup { id: "by-hand", cluster, ..Setup::default() }
}

async fn token(controller: &Controller) -> String {
    let words = ["node", "token", "create", "--node-id", "by-hand", "--ttl", "5m", "--output", "json"];
    controller.cli(&words).await.json()["token"].as_str().expect("a token").to_owned()
}

async fn peer(controller: &Controller) -> Option<Value> {
    let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
    peers["nodes"].as_array()?.iter().find(|known| known["node_id"] == "by-hand").cloned()
}

async fn is_active(controller: &Controller) {
    until("the worker is active", JOIN_LIMIT, async || {
        let peer = peer(controller).await?;
        (peer["status"] == "active" && peer["link_up"] == true).then_some(())
    })
    .await;
}

async fn says(worker: &Controller, why: &str) {
    let health = until("the worker says why it is not let in", JOIN_LIMIT, async || {
        // It may be refused before it listens.
        let health = worker.api("/health").await.ok()?;
        worker.log().contains(why).then_some(health)
    })
    .await;
    assert_eq!(health["ready"], json!(false), "{health}");
}

#[tokio::test]
async fn node_joins_by_token_and_returns_by_certificate() {
    let port = free_port();
    let mut controller = Controller::start(&controller(port, "")).await;
    let token = token(&controller).await;
    let mut worker = Controller::start(&worker(port, &token, "")).await;
    is_active(&controller).await;
    assert_eq!(peer(&controller).await.expect("known")["link"], "direct");
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
    // The data directory itself may be open to others, as a volume of Docker's is.
    for (node, file) in [(&controller, "ca-key.pem"), (&worker, "node-certificate.json")] {
        assert!(node.data.join(file).exists(), "{file} is kept");
        for entry in std::fs::read_dir(&node.data).expect("a directory").map(|entry| entry.expect("an entry"))
        {
            let mode = entry.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{entry:?} has mode {mode:o}");
        }
    }
    let kept = std::fs::read(worker.data.join("node-certificate.json")).expect("the certificate");

    // Killed: it gets no new work, and its own end is not waited for.
    worker.kill();
    until("its absence is noticed", ABSENCE_LIMIT, async || {
        (peer(&controller).await?["link_up"] == false).then_some(())
    })
    .await;
    worker.start_again().await;
    is_active(&controller).await;
    // Both of them: the certificate is the same, the CA too.
    worker.kill();
    controller.kill();
    controller.start_again().await;
    worker.start_again().await;
    is_active(&controller).await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
    assert_eq!(
        std::fs::read(worker.data.join("node-certificate.json")).expect("it"),
        kept,
        "not asked for anew"
    );

    // Without its certificate it attests by key, and gets another.
    worker.stop().await;
    std::fs::remove_file(worker.data.join("node-certificate.json")).expect("it was there");
    worker.start_again().await;
    is_active(&controller).await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
    for (path, content) in controller.everything_written() {
        assert!(!files::holds(&content, &token), "the token is in {}", path.display());
    }
}

#[tokio::test]
async fn removal_cuts_connections_and_voids_the_certificate() {
    let port = free_port();
    let controller = Controller::start(&controller(port, "")).await;
    let spent = token(&controller).await;
    let mut worker = Controller::start(&worker(port, &spent, "")).await;
    is_active(&controller).await;
    let revoked = std::fs::read(worker.data.join("node-keypair.pem")).expect("its key");
    assert!(controller.cli(&["node", "remove", "by-hand"]).await.succeeded().contains("is removed"));
    // Far sooner than its next heartbeat.
    says(&worker, "the connection to the controller was lost").await;
    // The key belongs to no node now. The spent token is only a note.
    says(&worker, "NodeRemoved").await;
    assert!(peer(&controller).await.is_none());
    let health = worker.api("/health").await.expect("it answers");
    assert_eq!(health["ready"], false, "{health}");

    // A new token admits it with a new key.
    worker.stop().await;
    let config = std::fs::read_to_string(worker.config()).expect("its configuration");
    let fresh = token(&controller).await;
    std::fs::write(worker.config(), config.replace(&spent, &fresh)).expect("the new token");
    worker.start_again().await;
    is_active(&controller).await;
    assert_ne!(std::fs::read(worker.data.join("node-keypair.pem")).expect("its key"), revoked);
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
}

#[tokio::test]
async fn controller_with_another_ca_than_the_token_is_not_joined() {
    let port = free_port();
    let controller = Controller::start(&controller(port, "")).await;
    let token = token(&controller).await;
    let (start, fingerprint) = token.rsplit_once('.').expect("three parts");
    assert_eq!(fingerprint.len(), 64, "of the built-in CA");
    for wrong in ["ab".repeat(32), "none".to_owned()] {
        let mut worker = Controller::prepare(&worker(port, &format!("{start}.{wrong}"), ""));
        worker.launch();
        says(&worker, "UntrustedCA").await;
        assert!(worker.log().contains("is not signed by a CA that this node trusts"), "{}", worker.log());
    }
    assert!(peer(&controller).await.is_none());
    let counted = controller.text("/metrics", |text| text.ends_with("# EOF\n")).await;
    assert!(counted.contains(r#"{call="TlsHandshake",outcome="UntrustedCA"}"#), "{counted}");
    // The token was not spent by it.
    let _worker = Controller::start(&self::worker(port, &token, "")).await;
    is_active(&controller).await;
}

#[tokio::test]
async fn controller_with_a_new_ca_is_joined_with_token_and_old_key() {
    let port = free_port();
    let mut controller = Controller::start(&controller(port, "")).await;
    let mut worker = Controller::start(&worker(port, &token(&controller).await, "")).await;
    is_active(&controller).await;
    controller.stop().await;
    for file in ["ca-cert.pem", "ca-key.pem"] {
        std::fs::remove_file(controller.data.join(file)).expect("it was there");
    }
    controller.start_again().await;
    says(&worker, "UntrustedCA").await;
    let fresh = token(&controller).await;
    let config = std::fs::read_to_string(worker.config()).expect("its configuration");
    let (before, rest) = config.split_once("token: '").expect("the token");
    let (_, after) = rest.split_once('\'').expect("its end");
    std::fs::write(worker.config(), format!("{before}token: '{fresh}'{after}")).expect("it is written");
    worker.stop().await;
    worker.start_again().await;
    is_active(&controller).await;
    assert!(worker.log().contains("attesting by key"), "its old certificate was shown and refused");
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
}

/// An operator's CA.
struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "operator");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a CA").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Puts a node's files into a directory, each by a rename; gives the lines of the configuration.
    fn equip(&self, directory: &Path, names: &[&str]) -> String {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        for (name, text) in
            [("node.crt", certificate.pem()), ("node.key", key.serialize_pem()), ("ca.crt", self.pem.clone())]
        {
            let new = directory.join("incoming");
            std::fs::write(&new, text).and_then(|()| std::fs::rename(new, directory.join(name))).expect(name);
        }
        let path = |name: &str| directory.join(name).display().to_string();
        format!(
            "\n    tls: {{cert_path: {}, key_path: {}, ca_cert: {}}}",
            path("node.crt"),
            path("node.key"),
            path("ca.crt")
        )
    }
}

#[tokio::test]
async fn operator_certificates_serve_both_sides_and_reload() {
    let (pki, strange) = (Pki::new(), Pki::new());
    let (here, there) = (tempfile::tempdir().expect("here"), tempfile::tempdir().expect("there"));
    let port = free_port();
    let own_names = ["home", "127.0.0.1"];
    let controller = Controller::start(&controller(port, &pki.equip(here.path(), &own_names))).await;
    let token = token(&controller).await;
    assert!(token.contains(".none."), "no CA of ours, and the controller's key in its place");

    // Of another CA, and of another node: neither is let in, and each is told.
    let mut worker = Controller::prepare(&worker(port, &token, &strange.equip(there.path(), &["by-hand"])));
    worker.launch();
    says(&worker, "UntrustedCA").await;
    until("the controller says it by that name", JOIN_LIMIT, async || {
        controller.log().contains("UntrustedCA").then_some(())
    })
    .await;
    pki.equip(there.path(), &["somebody-else"]);
    says(&worker, "NotYours").await;
    // The right certificate is loaded without a restart.
    pki.equip(there.path(), &["by-hand"]);
    is_active(&controller).await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");

    // Nor does the next one cost the membership.
    let taken = |worker: &Controller| worker.log().matches("certificates were replaced").count();
    let (before, _) = (taken(&worker), pki.equip(there.path(), &["by-hand"]));
    until("the worker takes up its next certificate", JOIN_LIMIT, async || {
        (taken(&worker) > before).then_some(())
    })
    .await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
    assert!(!worker.log().contains("was lost"), "{}", worker.log());

    let health = async |node: &Controller| {
        let health = node.api("/health").await.ok()?;
        let parts = health["subsystems"].as_array()?.clone();
        parts.into_iter().find(|part| part["name"] == "certificates")
    };
    let good = std::fs::read_to_string(here.path().join("node.crt")).expect("the certificate");
    std::fs::write(here.path().join("node.crt"), &good[..good.len() / 2]).expect("half of it");
    until("a half-written certificate shows in the health", JOIN_LIMIT, async || {
        (health(&controller).await?["ok"] == false).then_some(())
    })
    .await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n", "the old one stays");
    pki.equip(here.path(), &own_names);
    until("a good one ends the alarm", JOIN_LIMIT, async || {
        (health(&controller).await?["ok"] == true).then_some(())
    })
    .await;
    assert_eq!(controller.cli(&RUN).await.succeeded(), "on by-hand\n");
}
