//! Whether the configuration can be used, read as the daemon reads it.

use std::path::{Path, PathBuf};

use cluster_core::{
    config::{self, ConfigChoice, Overrides, Settings, StartedBy},
    types::error::Error,
};

use super::{Check, Finding};
use crate::{cli::shown, daemon::files, tools::ToolRegistry};

pub struct Read {
    pub path: Option<PathBuf>,
    pub settings: Settings,
}

/// Reads the named file, else the one that the next daemon would start with.
pub fn look(named: Option<PathBuf>, data_dir: &Path, overrides: &Overrides) -> Result<Read, Error> {
    let choice = named.map_or(ConfigChoice::Usual, ConfigChoice::Named);
    let loaded = config::load(&choice, files::config_path(data_dir).as_deref(), StartedBy::Person)?;
    let settings = Settings::of(&loaded.config, overrides)?;
    ToolRegistry::of(&settings.mcp)?;
    Ok(Read { path: loaded.path, settings })
}

pub fn judge(facts: &Result<Read, Error>) -> Vec<Finding> {
    let finding = match facts {
        Ok(Read { path, settings }) => {
            let file = path.as_deref().map_or("no file: the defaults".to_owned(), shown);
            match settings.unused.as_slice() {
                [] => Check::Configuration.ok(file),
                unused => {
                    Check::Configuration.ok(format!("{file}; not used by this node: {}", unused.join(", ")))
                }
            }
        }
        Err(error) => Check::Configuration.fail(
            format!("{} (ports, engine, ssh and certificates were not looked at)", error.message()),
            error.remedy_text().unwrap_or("correct the file; `aegis config check FILE` tries it"),
        ),
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_file_is_judged_as_the_daemon_would() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("aegis.yaml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            judge(&look(Some(file.clone()), dir.path(), &Overrides::default())).remove(0)
        };
        assert_eq!(read("spec: {node: {id: home}}").result, Verdict::Ok);
        let unused = read("spec: {cortex: {}}");
        assert!(unused.result == Verdict::Ok && unused.detail.contains("cortex"), "{unused:?}");
        let unknown = read("spec: {clustr: {}}");
        assert!(unknown.result == Verdict::Fail && unknown.detail.contains("spec.clustr"), "{unknown:?}");
        let tool = read("spec: {mcp: {tools: [rm_rf]}}");
        assert!(tool.result == Verdict::Fail && tool.detail.contains("rm_rf"), "{tool:?}");
    }

    #[test]
    fn the_file_of_the_last_daemon_counts_before_the_usual_ones() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.path"), "/nowhere/aegis.yaml\n").unwrap();
        let found = judge(&look(None, dir.path(), &Overrides::default())).remove(0);
        assert!(found.result == Verdict::Fail && found.detail.contains("/nowhere/aegis.yaml"), "{found:?}");
    }
}
