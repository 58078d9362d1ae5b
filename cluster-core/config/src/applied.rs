//! The configuration that this node runs with: its own file over what its controller pushed.
//!
//! What is pushed is checked, kept (`pushed-config.json`, whole or not at all), and only then applied. A
//! configuration that cannot be applied changes nothing: the last good one stays, and the next heartbeat
//! says why. One that was kept and no longer fits never stops a start: the file alone is used then.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use aegis_types::error::{Error, ErrorCode, Result};
use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    Settings,
    layers::{MergedConfig, merge, version_of},
    pushed::{self, missing_sections, redact},
    settings::Local,
};

const FILE: &str = "pushed-config.json";
/// Travels in every heartbeat.
const ERROR_CHARS_MAX: usize = 400;

/// The pushed configuration, and why a later one was refused.
#[derive(Debug, Clone)]
struct State {
    pushed: MergedConfig,
    error: Option<String>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    local: Arc<Local>,
    /// Settings at the start of the node. A change of a setting that is read only then waits for a restart.
    at_start: Settings,
    settings: watch::Sender<Arc<Settings>>,
    state: ArcSwap<State>,
    /// One at a time; held for the write of one small file.
    applying: Mutex<()>,
    listener: OnceLock<Listener>,
}

/// Applies changed settings to the running parts of the node.
struct Listener(Box<dyn Fn(&Settings) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// A cheap handle on the configuration of this node.
#[derive(Debug, Clone)]
pub struct AppliedConfig(Arc<Shared>);

/// The configuration of this node as people see it; secrets are left out.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EffectiveConfig {
    /// The node's own file, which wins.
    pub local: Value,
    /// Configuration that the controller pushed; an empty mapping before the first push.
    pub pushed: Value,
    pub version: String,
    /// Both in one.
    pub effective: Value,
    /// Why the newest push was not applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Keys whose pushed values are taken at the next start.
    pub waits_for_restart: Vec<String>,
    /// Sections that a node which serves an API should have.
    pub missing: Vec<String>,
}

impl AppliedConfig {
    /// The settings to start with: the file over the last good push, or the file alone.
    pub fn restore(settings: Settings, data: &Path) -> (Settings, Self) {
        let path = data.join(FILE);
        let local = settings.local.clone();
        let (settings, state) = match read(&path).and_then(|pushed| match pushed {
            Some(pushed) => pushed::settings(&local, &pushed).map(|settings| Some((settings, pushed))),
            None => Ok(None),
        }) {
            Ok(Some((merged, pushed))) => (merged, State { pushed, error: None }),
            Ok(None) => (settings, State { pushed: MergedConfig::none(), error: None }),
            Err(error) => {
                tracing::error!(
                    error = %error.chain(),
                    "the pushed configuration that was kept cannot be used: this node starts with its file alone"
                );
                (settings, State { pushed: MergedConfig::none(), error: Some(short(&error)) })
            }
        };
        let shared = Shared {
            path,
            local,
            at_start: settings.clone(),
            settings: watch::channel(Arc::new(settings.clone())).0,
            state: ArcSwap::from_pointee(state),
            applying: Mutex::default(),
            listener: OnceLock::new(),
        };
        (settings, Self(Arc::new(shared)))
    }

    /// Registers the function that applies changed settings to the running parts of the node. Called once, at the
    /// start. It runs after the settings are stored and before [`AppliedConfig::apply`] returns.
    pub fn listen(&self, listener: impl Fn(&Settings) + Send + Sync + 'static) {
        let _ = self.0.listener.set(Listener(Box::new(listener)));
    }

    /// Applies what the controller pushed, once: the same version again changes nothing. A refusal is
    /// remembered, for the next heartbeat.
    pub fn apply(&self, version: &str, json: &[u8]) -> Result<()> {
        let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.0.state.load_full();
        if known.pushed.version == version && known.error.is_none() {
            return Ok(());
        }
        match self.take(version, json) {
            Ok(pushed) => {
                tracing::info!(%version, "the pushed configuration is applied");
                self.0.state.store(Arc::new(State { pushed, error: None }));
                let waiting = self.waits_for_restart();
                if !waiting.is_empty() {
                    tracing::warn!(keys = ?waiting, "these take effect at the next start");
                }
                Ok(())
            }
            Err(error) => {
                tracing::error!(%version, error = %error.chain(), "the pushed configuration is refused: the last good one stays");
                let error_text = Some(format!("{}: {}", aegis_types::text::shown(version), short(&error)));
                self.0.state.store(Arc::new(State { pushed: known.pushed.clone(), error: error_text }));
                Err(error)
            }
        }
    }

    fn take(&self, version: &str, json: &[u8]) -> Result<MergedConfig> {
        if json.len() > pushed::LAYER_BYTES_MAX {
            return Err(Error::new(ErrorCode::ConfigInvalid, "the pushed configuration is too large"));
        }
        let json: Value = serde_json::from_slice(json).map_err(|e| {
            Error::new(ErrorCode::ConfigInvalid, "the pushed configuration is not JSON").source(e)
        })?;
        if version_of(&json) != version {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                "the pushed configuration is not the one that its version names",
            ));
        }
        let merged = MergedConfig { json, version: version.to_owned() };
        let settings = pushed::settings(&self.0.local, &merged)?;
        keep(&self.0.path, &merged)?;
        if let Some(Listener(listener)) = self.0.listener.get() {
            listener(&settings);
        }
        self.0.settings.send_replace(Arc::new(settings));
        Ok(merged)
    }

    /// Returns the current settings.
    pub fn settings(&self) -> Arc<Settings> {
        self.0.settings.borrow().clone()
    }

    /// Changes with every configuration that is applied.
    pub fn watch(&self) -> watch::Receiver<Arc<Settings>> {
        self.0.settings.subscribe()
    }

    /// The version that is applied, and why a newer one is not.
    pub fn report(&self) -> (String, Option<String>) {
        let state = self.0.state.load();
        (state.pushed.version.clone(), state.error.clone())
    }

    fn waits_for_restart(&self) -> Vec<String> {
        let (then, now) = (&self.0.at_start, self.settings());
        [
            ("spec.runtime.docker_socket_path", then.docker_socket != now.docker_socket),
            ("spec.runtime.container_network_mode", then.container_network != now.container_network),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key.to_owned())
        .collect()
    }

    pub fn view(&self) -> EffectiveConfig {
        let state = self.0.state.load_full();
        let local = match &self.0.local.document {
            Value::Null => Value::Object(serde_json::Map::new()),
            document => document.clone(),
        };
        let effective = merge([&state.pushed.json, &local]);
        let missing = missing_sections(&effective, self.settings().node_type);
        EffectiveConfig {
            local: redact(&local),
            pushed: redact(&state.pushed.json),
            version: state.pushed.version.clone(),
            effective: redact(&effective),
            error: state.error.clone(),
            waits_for_restart: self.waits_for_restart(),
            missing: missing.into_iter().map(str::to_owned).collect(),
        }
    }
}

fn short(error: &Error) -> String {
    error.to_string().chars().take(ERROR_CHARS_MAX).collect()
}

fn read(path: &Path) -> Result<Option<MergedConfig>> {
    let unusable = |why: &str| Error::new(ErrorCode::ConfigInvalid, format!("{} {why}", path.display()));
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable("cannot be read").source(e)),
    };
    let kept: MergedConfig = serde_json::from_slice(&bytes).map_err(|e| unusable("is damaged").source(e))?;
    if version_of(&kept.json) != kept.version {
        return Err(unusable("is damaged: its content is not of its version"));
    }
    Ok(Some(kept))
}

/// On disk before anything of it is applied.
fn keep(path: &Path, merged: &MergedConfig) -> Result<()> {
    let bytes = serde_json::to_vec(merged)
        .map_err(|e| Error::internal("the configuration cannot be written").source(e))?;
    aegis_fs::write_synced(path, &bytes).map_err(|e| {
        Error::new(ErrorCode::Storage, format!("{} cannot be written", path.display()))
            .remedy("free some disk space on the node")
            .source(e)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Overrides, parse};

    fn settings(file: &str, data: &Path) -> Settings {
        let overrides = Overrides { data_dir: Some(data.to_owned()), ..Default::default() };
        Settings::of(&parse(file).unwrap(), &overrides).unwrap()
    }

    fn push(applied: &AppliedConfig, json: Value) -> Result<String> {
        let merged = MergedConfig::of([&json]);
        applied.apply(&merged.version, merged.json.to_string().as_bytes()).map(|()| merged.version)
    }

    #[test]
    fn push_applies_to_the_running_node_and_after_restart() {
        let data = tempfile::tempdir().unwrap();
        let file = "spec: {node: {region: own}}";
        let (start, applied) = AppliedConfig::restore(settings(file, data.path()), data.path());
        assert!(start.tags.is_empty());
        let (seen, heard) = std::sync::mpsc::channel();
        applied.listen(move |settings| seen.send(settings.clone()).unwrap());
        let layer = json!({"spec": {
            "node": {"tags": ["gpu"], "region": "pushed", "resources": {"cpu_cores": 3}},
            "cluster": {"heartbeat_interval_secs": 7},
            "runtime": {"docker_socket_path": "/other.sock"},
        }});
        let version = push(&applied, layer.clone()).unwrap();
        let told = heard.try_recv().unwrap();
        assert_eq!((told.tags[0].as_str(), told.resources.cpu_cores), ("gpu", Some(3)));
        assert_eq!(applied.settings().heartbeat_interval.as_secs(), 7);
        assert_eq!(applied.settings().region.as_deref(), Some("own"), "the file wins");
        assert_eq!(applied.view().waits_for_restart, ["spec.runtime.docker_socket_path"]);
        assert_eq!(applied.report(), (version.clone(), None));
        let (started, again) = AppliedConfig::restore(settings(file, data.path()), data.path());
        assert_eq!((started.tags[0].as_str(), again.report().0), ("gpu", version));
        assert!(again.view().waits_for_restart.is_empty());
    }

    #[test]
    fn a_bad_push_leaves_the_last_good_one_and_is_told() {
        let data = tempfile::tempdir().unwrap();
        let (_, applied) = AppliedConfig::restore(settings("", data.path()), data.path());
        let good = push(&applied, json!({"spec": {"node": {"tags": ["a"]}}})).unwrap();
        let kept = fs::read(data.path().join(FILE)).unwrap();
        for bad in [
            json!({"spec": {"node": {"id": "x"}}}),
            json!({"spec": {"node": {"tags": 7}}}),
            json!({"spec": {"unheard_of": 1}}),
        ] {
            assert!(push(&applied, bad).is_err());
            let (version, error) = applied.report();
            assert_eq!(version, good);
            assert!(error.is_some_and(|error| error.contains("spec.")));
        }
        assert!(applied.apply("0123456789ab", b"{}").is_err(), "another version than its content");
        assert!(applied.apply("0123456789ab", b"{").is_err());
        assert_eq!(fs::read(data.path().join(FILE)).unwrap(), kept);
        // The good one again: what was wrong is forgotten.
        push(&applied, json!({"spec": {"node": {"tags": ["a"]}}})).unwrap();
        assert_eq!(applied.report(), (good, None));
    }

    #[test]
    fn what_was_kept_and_does_not_fit_any_more_never_stops_a_start() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(FILE);
        for damaged in ["", "{", "[]", r#"{"json": {}, "version": "x"}"#] {
            fs::write(&path, damaged).unwrap();
            let (start, applied) = AppliedConfig::restore(settings("", data.path()), data.path());
            assert!(start.tags.is_empty());
            assert!(applied.report().1.is_some(), "{damaged}");
        }
        let newer = MergedConfig::of([&json!({"spec": {"of_a_later_version": 1}})]);
        fs::write(&path, serde_json::to_vec(&newer).unwrap()).unwrap();
        let (_, applied) = AppliedConfig::restore(settings("", data.path()), data.path());
        let (version, error) = applied.report();
        assert_eq!(version, MergedConfig::none().version, "asks for it again");
        assert!(error.unwrap().contains("of_a_later_version"));
        push(&applied, json!({"spec": {"node": {"tags": ["a"]}}})).unwrap();
        assert_eq!(applied.report().1, None);
    }
}
