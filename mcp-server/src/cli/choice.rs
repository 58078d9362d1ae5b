//! Options that choose the configuration file of a daemon.

use std::path::PathBuf;

use clap::Args;
use cluster_core::config::ConfigChoice;

#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file [default: $AEGIS_CONFIG_PATH, else the file of the last start, else the first of
    /// ./aegis-config.yaml, ~/.aegis/aegis-config.yaml, /etc/aegis/aegis-config.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run with the defaults, and forget the file of the last start
    #[arg(long, conflicts_with = "config")]
    no_config: bool,
}

impl ConfigArgs {
    pub fn choice(&self) -> ConfigChoice {
        match &self.config {
            Some(path) => ConfigChoice::Named(path.clone()),
            None if self.no_config => ConfigChoice::Defaults,
            None => ConfigChoice::Usual,
        }
    }
}
