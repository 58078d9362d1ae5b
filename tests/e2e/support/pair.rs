//! A controller and a worker on this machine, joined by a token. Needs no Docker.

use std::time::Duration;

use super::{
    controller::{Controller, Setup, free_port},
    poll::until,
};

const JOIN_LIMIT: Duration = Duration::from_secs(30);

pub struct Pair {
    pub controller: Controller,
    pub worker: Controller,
}

/// The worker `by-hand`, whose file names no tags.
pub fn worker_setup(controller_port: u16, token: &str) -> Setup {
    let cluster = format!(
        "role: worker\n    cluster_grpc_port: {}\n    controller: {{endpoint: 'http://127.0.0.1:{controller_port}', token: '{token}'}}",
        free_port()
    );
    Setup { id: "by-hand", tags: "", cluster, ..Setup::default() }
}

impl Pair {
    pub async fn joined() -> Self {
        Self::joined_with("{}", "{}").await
    }

    /// With `spec.runtime` of the controller and of the worker.
    pub async fn joined_with(controller: &'static str, worker: &'static str) -> Self {
        let (home_runtime, runtime) = (controller, worker);
        let port = free_port();
        let cluster = format!("role: hybrid\n    cluster_grpc_port: {port}");
        let controller =
            Controller::start(&Setup { cluster, runtime: home_runtime, ..Setup::default() }).await;
        let words = ["node", "token", "create", "--node-id", "by-hand", "--output", "json"];
        let token = controller.cli(&words).await.json()["token"].as_str().expect("a token").to_owned();
        let mut worker = Controller::prepare(&Setup { runtime, ..worker_setup(port, &token) });
        worker.launch();
        until("the worker is active", JOIN_LIMIT, async || {
            let peers = controller.cli(&["node", "peers", "--output", "json"]).await.json();
            let nodes = peers["nodes"].as_array()?.clone();
            let known = nodes.iter().find(|known| known["node_id"] == "by-hand")?;
            (known["status"] == "active").then_some(())
        })
        .await;
        Self { controller, worker }
    }
}
