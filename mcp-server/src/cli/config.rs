//! `aegis config check`: whether a configuration file can be used, without using it.

use std::path::PathBuf;

use clap::Subcommand;
use cluster_core::{
    Result,
    config::{self, Settings, StartedBy},
};
use serde_json::json;

use super::{Context, node, shown};
use crate::tools::Catalogue;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Read a file as `serve` would, and say what is wrong with it
    Check {
        /// [default: the file that `serve` would take]
        file: Option<PathBuf>,
    },
}

impl Config {
    pub fn run(self, context: &Context) -> Result<()> {
        let Config::Check { file } = self;
        let loaded = config::load(file.as_deref(), StartedBy::Person)?;
        let settings = Settings::of(&loaded.config, &context.overrides)?;
        Catalogue::of(&settings.mcp)?;
        let data = json!({
            "valid": true,
            "file": loaded.path.as_deref().map(shown),
            "role": settings.role,
            "node_id": settings.node_id,
            "data_dir": shown(&settings.data_dir),
            "listens_on": format!("{}:{}", settings.bind_address, settings.rest_port),
            "not_used": settings.unused,
        });
        context.output.show(&data, || {
            let file = loaded.path.as_deref().map_or("no file; the defaults".to_owned(), shown);
            let mut text = format!("{file}: good for a {} node.", node::name(&settings.role));
            if !settings.unused.is_empty() {
                text.push_str(&format!("\nNot used by this node: {}.", settings.unused.join(", ")));
            }
            text
        })
    }
}
