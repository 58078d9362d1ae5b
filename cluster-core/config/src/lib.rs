//! Configuration of a node: its location, its parsing, and the resulting settings.
//!
//! - [`read`], [`schema`], [`settings`]: the file.
//! - [`layers`]: layers that a controller stores for its nodes, merged below the file.
//! - [`pushed`]: keys that a layer may and may not set.
//! - [`applied`]: the configuration that a running node applies.

pub mod applied;
pub mod audit;
pub mod cluster_port;
pub mod document;
pub mod endpoint;
pub mod executions;
pub mod hooks;
pub mod layers;
pub mod policy;
pub mod pushed;
mod read;
pub mod registries;
pub mod schema;
mod secrets;
pub mod settings;

use std::path::{Path, PathBuf};

use aegis_types::error::{Error, ErrorCode, Result};

pub use schema::NodeConfig;
pub use settings::{Overrides, Settings};

/// Configuration with its origin.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Path of the file; `None` for the defaults, if no file was found.
    pub path: Option<PathBuf>,
    pub config: NodeConfig,
}

/// Starter of the process. An assistant may run in a directory that another party filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedBy {
    Person,
    Assistant,
}

/// Configuration that a start requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConfigChoice {
    /// This file.
    Named(PathBuf),
    /// No file: the defaults.
    Defaults,
    /// The file of `AEGIS_CONFIG_PATH`, else the file of the last start, else the first of the usual places.
    #[default]
    Usual,
}

/// Finds and reads the configuration.
///
/// `recorded` is the file that the last daemon of this data directory ran with. A node that is started again
/// without a choice runs with that file, so that no restriction in it is lost.
///
/// # Errors
///
/// Fails if the chosen or recorded file is missing or cannot be read as a configuration.
pub fn load(choice: &ConfigChoice, recorded: Option<&Path>, started_by: StartedBy) -> Result<Loaded> {
    let from_env = std::env::var_os("AEGIS_CONFIG_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    match (choice, from_env, recorded) {
        (ConfigChoice::Named(path), _, _) => read_file(path.clone()),
        (ConfigChoice::Defaults, _, _) => Ok(Loaded { path: None, config: NodeConfig::default() }),
        (ConfigChoice::Usual, Some(path), _) => read_file(path),
        (ConfigChoice::Usual, None, Some(path)) if !path.exists() => Err(Error::new(
            ErrorCode::ConfigInvalid,
            format!("{}, with which this node ran last, is missing", path.display()),
        )
        .remedy(
            "restore the file, or start once with `aegis up --config FILE`, or with `aegis up --no-config` for the \
             defaults",
        )),
        (ConfigChoice::Usual, None, Some(path)) => read_file(path.to_owned()),
        (ConfigChoice::Usual, None, None) => search(started_by),
    }
}

fn search(started_by: StartedBy) -> Result<Loaded> {
    let home = directories::BaseDirs::new().map(|dirs| dirs.home_dir().join(".aegis/aegis-config.yaml"));
    let here = (started_by == StartedBy::Person).then(|| PathBuf::from("aegis-config.yaml"));
    let places = [here, home, Some(PathBuf::from("/etc/aegis/aegis-config.yaml"))];
    match places.into_iter().flatten().find(|path| path.exists()) {
        Some(path) => read_file(path),
        None => Ok(Loaded { path: None, config: NodeConfig::default() }),
    }
}

fn read_file(path: PathBuf) -> Result<Loaded> {
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Error::new(ErrorCode::ConfigInvalid, format!("the configuration {} cannot be read", path.display()))
            .source(e)
    })?;
    let config = parse(&text).map_err(|e| {
        let located = Error::new(e.code(), format!("{}: {}", path.display(), e.message()));
        match e.remedy_text() {
            Some(remedy) => located.remedy(remedy),
            None => located,
        }
    })?;
    Ok(Loaded { path: Some(path), config })
}

/// Reads a configuration from its text.
pub fn parse(text: &str) -> Result<NodeConfig> {
    read::parse(text)
}

#[cfg(test)]
mod tests;
