//! What the tests of this crate share.

use std::sync::Arc;

use cluster_core::{
    config::{NodeConfig, Overrides, Settings},
    core::Core,
};

use crate::{server::AegisServer, tools::Catalogue};

/// A core for tests that never reach it: listing tools, refusing arguments, checking callers.
pub fn core() -> Core {
    Core {}
}

pub fn settings() -> Settings {
    let overrides = Overrides { data_dir: Some("/nonexistent".into()), ..Overrides::default() };
    Settings::of(&NodeConfig::default(), &overrides).unwrap()
}

pub fn server() -> AegisServer {
    AegisServer::new(core(), Arc::new(Catalogue::all()))
}
