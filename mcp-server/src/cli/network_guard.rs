//! `aegis network-guard`: runs in a container of its own and closes a container's network towards the node's
//! surroundings. The worker starts it.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use cluster_core::{
    engine::network_guard,
    types::{error::Result, network},
};

#[derive(Debug, Args)]
pub struct NetworkGuard {
    /// Networks that stay open
    #[arg(long, value_name = "CIDR")]
    open: Vec<String>,
    /// Services that stay open, by TCP
    #[arg(long, value_name = "ADDRESS:PORT")]
    service: Vec<SocketAddr>,
    /// Addresses of the node
    #[arg(long, value_name = "ADDRESS")]
    own: Vec<IpAddr>,
}

impl NetworkGuard {
    pub async fn run(self) -> Result<()> {
        let open = network::parse_open(&self.open)?;
        network_guard::run(&network_guard::rules(&self.service, &open, &self.own)).await
    }
}
