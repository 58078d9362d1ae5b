//! What the tests of this crate share.

use std::sync::Arc;

use cluster_core::{
    config::{self, Overrides, Settings},
    core::Core,
    store::DataDirectory,
};

use crate::{server::AegisServer, tools::Catalogue};

/// A controller that runs no containers, on a port of its own.
const CONFIG: &str = "
spec:
  node: { id: ctrl, type: orchestrator }
  cluster: { role: controller, cluster_grpc_port: 0 }
  network: { port: 0 }
";

pub fn settings() -> Settings {
    let overrides = Overrides { data_dir: Some("/nonexistent".into()), ..Overrides::default() };
    Settings::of(&config::parse(CONFIG).unwrap(), &overrides).unwrap()
}

/// A real one, in a directory that is gone once it is started: the open files are enough.
pub async fn core() -> Core {
    let directory = tempfile::tempdir().unwrap();
    let data = Arc::new(DataDirectory::own(directory.path()).unwrap());
    Core::start(settings(), data, None).await.unwrap()
}

pub async fn server() -> AegisServer {
    AegisServer::new(core().await, Arc::new(Catalogue::all()))
}
