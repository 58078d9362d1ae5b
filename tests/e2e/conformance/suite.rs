//! The official conformance suite at each revision of the protocol, against fixtures behind our own HTTP
//! stack, and against the product.

use std::{net::SocketAddr, time::Duration};

use aegis::transport::{
    guard::{Guard, guard},
    http::{mcp_routes, serve_tcp},
};
use axum::middleware;
use cluster_core::{
    config::{self, Overrides, Settings},
    controller::access::TokenTable,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::fixtures::Fixtures;
use crate::support::{
    controller::{Controller, Setup},
    npm,
    poll::within,
};

const SUITE: &str = "@modelcontextprotocol/conformance/dist/index.js";
/// Files that say what is missing: `fixtures.yaml` and `product.yaml`.
const MISSING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/e2e/conformance");
const LIMIT: Duration = Duration::from_secs(180);

const NEWEST: &str = "2026-07-28";
const OLDER: &str = "2025-11-25";
const OLDEST: &str = "2025-06-18";

/// The fixtures, served until it is dropped.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Served {
    async fn start() -> Self {
        // As the product may be configured on loopback; the suite has no token to show.
        let text = "spec:\n  node: {id: fixtures, type: orchestrator}\n  mcp: {auth: none}\n";
        let overrides = Overrides { data_dir: Some("/nonexistent".into()), ..Overrides::default() };
        let settings = Settings::of(&config::parse(text).expect("YAML"), &overrides).expect("settings");
        let (fixtures, stop) = (Fixtures::new(), CancellationToken::new());
        let rules = Guard::new(&settings, TokenTable::default()).expect("rules");
        let router = mcp_routes(move || fixtures.clone(), &settings, stop.clone())
            .layer(middleware::from_fn_with_state(rules, guard));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(serve_tcp(listener, None, router, stop.clone()));
        Self { address, stop, task: Some(task) }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        let task = self.task.take().expect("it runs");
        within("the fixtures stop", LIMIT, task).await.expect("no panic");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs the suite; its own status decides, and what it says is shown.
///
/// All of a revision's scenarios are run, also those that it does not require.
/// With a file of what is missing, it takes a warning for a failure.
async fn run(address: &str, revision: &str, missing: &str) {
    let results = tempfile::tempdir().expect("a directory");
    let mut suite = npm::script_of_package(SUITE);
    suite.args(["server", "--url", &format!("http://{address}/mcp")]);
    suite.args(["--suite", "all", "--spec-version", revision, "--expected-failures"]);
    suite.arg(format!("{MISSING}/{missing}.yaml")).arg("--output-dir").arg(results.path());
    let output = within("the conformance suite", LIMIT, suite.output()).await.expect("node starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{missing} at {revision}\n{}", summary(&said));
}

/// The end of what the suite says: one line a scenario, and the totals.
fn summary(said: &str) -> &str {
    said.rfind("=== SUMMARY").map_or(said, |start| &said[start..])
}

async fn fixtures_pass(revision: &str) {
    let served = Served::start().await;
    run(&served.address.to_string(), revision, "fixtures").await;
    served.stop().await;
}

/// But for the fixtures, which it does not have.
async fn the_product_passes(revision: &str) {
    let setup = Setup { mcp: "{auth: none}", ..Setup::default() };
    let controller = Controller::start(&setup).await;
    let address = controller.address().expect("HTTP is served");
    run(&address, revision, "product").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_stack_conforms_to_2026_07_28() {
    fixtures_pass(NEWEST).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_stack_conforms_to_2025_11_25() {
    fixtures_pass(OLDER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_stack_conforms_to_2025_06_18() {
    fixtures_pass(OLDEST).await;
}

#[tokio::test]
async fn the_product_conforms_to_2026_07_28() {
    the_product_passes(NEWEST).await;
}

#[tokio::test]
async fn the_product_conforms_to_2025_11_25() {
    the_product_passes(OLDER).await;
}

#[tokio::test]
async fn the_product_conforms_to_2025_06_18() {
    the_product_passes(OLDEST).await;
}
