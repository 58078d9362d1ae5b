//! Keys of node tokens: rotated under a running session, and kept by an OpenBao that is away.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    controller::{Controller, Setup, free_port},
    pair::{Pair, worker_setup},
    poll::until,
};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_rotated_key_disturbs_no_session_and_signs_the_next() {
    let Pair { mut controller, mut worker } = Pair::joined().await;
    let keys = controller.api("/v1/cluster/token-keys").await.expect("the keys");
    assert_eq!(keys["signer"], "local", "{keys}");
    for count in 2..=3 {
        let words = ["node", "token", "rotate-key", "--output", "json"];
        let rotated = controller.cli(&words).await.json();
        assert_eq!(rotated["verifies"].as_array().map(Vec::len), Some(count), "{rotated}");
        // Both directions, in the session that was open before: the node is asked, and acknowledges.
        for verb in ["drain", "resume"] {
            controller.cli(&["node", verb, "by-hand"]).await.succeeded();
            until("the node acknowledges", LIMIT, async || {
                let view = controller.api("/v1/cluster/nodes/by-hand/drain").await.ok()?;
                (view["acknowledged"] == true).then_some(())
            })
            .await;
        }
        let log = worker.log();
        assert_eq!(log.matches(" joined ").count(), 1, "it joined anew: {log}");
    }
    // Attested anew by it, and the keys outlive the controller.
    worker.stop().await;
    controller.kill();
    controller.start_again().await;
    worker.launch();
    until("the worker is back", LIMIT, async || {
        let health = worker.api("/health").await.ok()?;
        (health["ready"] == true || health["subsystems"][0]["ok"] == true).then_some(())
    })
    .await;
    let keys = controller.api("/v1/cluster/token-keys").await.expect("the keys");
    assert_eq!(keys["verifies"].as_array().map(Vec::len), Some(3), "{keys}");
}

#[tokio::test]
async fn without_openbao_the_controller_starts_and_joins_wait() {
    let secret = "s3cret-of-the-role";
    let backend = format!(
        "min_free_disk_gb: 1\n  secrets: {{backend: {{address: 'http://127.0.0.1:{}', auth_method: approle, \
         approle: {{role_id: r, secret_id: '{secret}'}}}}}}",
        free_port()
    );
    let port = free_port();
    let cluster = format!("role: hybrid\n    cluster_grpc_port: {port}");
    let setup = Setup { deploy: backend, cluster, ..Setup::default() };
    let controller = Controller::start(&setup).await;
    let keys = controller.api("/v1/cluster/token-keys").await.expect("the keys");
    assert_eq!(keys, json!({"signer": "transit", "verifies": []}));
    let words = ["node", "token", "create", "--node-id", "by-hand", "--output", "json"];
    let token = controller.cli(&words).await.json()["token"].as_str().expect("a token").to_owned();
    let mut worker = Controller::prepare(&worker_setup(port, &token));
    worker.launch();
    until("the worker says what it waits for", LIMIT, async || {
        worker.log().contains("cannot be signed now").then_some(())
    })
    .await;
    let rotate = controller.cli(&["node", "token", "rotate-key"]).await;
    assert!(rotate.stderr.contains("OpenBao"), "{rotate:?}");
    for text in [controller.log(), worker.log(), rotate.stderr] {
        assert!(!text.contains(secret), "{text}");
    }
}
