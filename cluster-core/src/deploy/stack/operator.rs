//! The operator's stack as it lies on this machine: the compose file, the override beside it, the `.env`
//! beside it, and every file that they name. A caller cannot name any of this, the configuration does.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use super::{
    PROJECT,
    bundle::{self, Bundle, Named},
    document::{Document, Kind, refuse},
};
use crate::{
    deploy::{Secret, env_file, hex_digest, release, spec::DeploymentSpec},
    error::{Error, ErrorCode, Result},
};

const TEXT_BYTES_MAX: u64 = 1024 * 1024;
const PROFILES_KEY: &str = "COMPOSE_PROFILES";
const PROJECT_NAME_KEY: &str = "COMPOSE_PROJECT_NAME";
const DIRECTORY_KEY: &str = "PWD";
/// Variables that Compose on the host knows, whatever `.env` says.
const KNOWN_TO_COMPOSE: [&str; 3] = [PROJECT_NAME_KEY, PROFILES_KEY, DIRECTORY_KEY];
/// A shorter value is as likely a word of the log as it is a secret.
const SECRET_BYTES_MIN: usize = 8;
const SECRET_BYTES_MAX: usize = 16 * 1024;

/// Everything that was read; whatever is decided from here on touches no disk.
#[derive(Debug, Clone)]
pub struct OperatorStack {
    pub(super) compose: String,
    pub(super) override_file: Option<String>,
    pub(super) document: Document,
    /// What each service names, as paths of the bundle.
    pub(super) named_by: BTreeMap<String, BTreeSet<String>>,
    bundle: Bundle,
    /// Of `.env`, without what steers Compose or Docker themselves.
    environment: BTreeMap<String, Secret>,
    left_out: Vec<String>,
    /// `COMPOSE_PROFILES` of `.env`.
    pub(super) profiles: BTreeSet<String>,
}

impl OperatorStack {
    /// `None` for the embedded stack.
    pub fn read(spec: &DeploymentSpec) -> Result<Option<Self>> {
        let Some(path) = spec.compose_file.as_deref() else { return Ok(None) };
        let compose = read_text(path)?
            .ok_or_else(|| at(path, "it is not there").remedy("check spec.deploy.compose_file"))?;
        let override_file = match override_path(path) {
            Some(path) => read_text(&path)?,
            None => None,
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new("."));
        let env_path = directory.join(release::ENV_FILE);
        let text = read_text(&env_path)?;
        let has_env = text.is_some();
        let env = match text {
            Some(text) => env_file::parse(&text).map_err(|why| at(&env_path, &why))?,
            None => Vec::new(),
        };
        let mut profiles = BTreeSet::new();
        let (mut environment, mut left_out) = (BTreeMap::new(), Vec::new());
        for (key, value) in env {
            if key == PROFILES_KEY {
                let names = value.reveal().split(',').map(str::trim).filter(|name| !name.is_empty());
                profiles = names.map(str::to_owned).collect();
            } else if env_file::chooses_files(&key) && !is_that_file(value.reveal(), path) {
                return Err(at(&env_path, &format!("{key} chooses other files than those that are sent"))
                    .remedy(format!(
                        "take {key} out of it, and write one compose file: docker compose config"
                    )));
            } else if env_file::is_steering(&key) {
                left_out.push(key);
            } else {
                environment.insert(key, value);
            }
        }
        let known = known(spec);
        let lookup = |name: &str| {
            let known = known.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
            known.or_else(|| environment.get(name).map(|value| value.reveal().to_owned()))
        };
        let steering = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            if !KNOWN_TO_COMPOSE.contains(&name) && left_out.iter().any(|key| key == name) {
                steering.borrow_mut().insert(name.to_owned());
            }
            lookup(name)
        };
        let document = Document::parse(&compose, &lookup).and_then(|document| match &override_file {
            Some(text) => document.merged(Document::parse(text, &lookup)?).resolved(),
            None => document.resolved(),
        });
        // Before an error that would call the variable unset.
        if let Some(name) = steering.borrow().first() {
            return Err(at(
                &env_path,
                &format!("{name} steers Compose, Docker or the loader, and is not sent"),
            )
            .remedy("give the application's variable another name, in .env and in the compose file"));
        }
        let document = document?;
        let (mut named, mut named_by) = (Named::new(), BTreeMap::new());
        for (service, parsed) in &document.services {
            let mut paths = BTreeSet::new();
            for source in &parsed.sources {
                if bundle::is_dotenv(source) {
                    if source.required && !has_env {
                        return Err(at(
                            &env_path,
                            &format!("it is not there, and service {service} names it"),
                        ));
                    }
                    paths.insert(release::ENV_FILE.to_owned());
                    continue;
                }
                let Some(path) = bundle::local_path(service, source, directory)? else { continue };
                paths.insert(path.clone());
                let strictest = named.entry(path).or_insert_with(|| (service.clone(), source.clone()));
                strictest.1.required |= source.required;
                strictest.1.kind = strictest_of(strictest.1.kind, source.kind);
            }
            named_by.insert(service.clone(), paths);
        }
        let bundle = bundle::read(directory, &named)?;
        Ok(Some(Self { compose, override_file, document, named_by, bundle, environment, left_out, profiles }))
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn environment(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.environment.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Digest of `.env`, for the services that name it.
    pub(super) fn environment_digest(&self) -> String {
        let entries: Vec<(&str, &str)> =
            self.environment.iter().map(|(key, value)| (key.as_str(), value.reveal())).collect();
        hex_digest(format!("{entries:?}").as_bytes())
    }

    /// Keys of `.env` that Compose on the host is not to obey.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// What a service may print and nobody may read: any value of `.env` can be one.
    pub fn secrets(&self) -> Vec<Secret> {
        let files = self.bundle.secrets().filter(|content| content.len() <= SECRET_BYTES_MAX);
        let files = files.filter_map(|content| std::str::from_utf8(content).ok());
        let values = self.environment.values().map(Secret::reveal);
        let long = files.chain(values).map(str::trim).filter(|text| text.len() >= SECRET_BYTES_MIN);
        long.map(Secret::new).collect()
    }
}

/// Returns the kind of a path that is named twice. A secret is never shown, and what some container may write to is
/// left to the containers.
fn strictest_of(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (Kind::Secret, _) | (_, Kind::Secret) => Kind::Secret,
        (Kind::Bind, _) | (_, Kind::Bind) => Kind::Bind,
        (one, _) => one,
    }
}

/// What `.env` on the host says whatever the operator's own says.
fn known(spec: &DeploymentSpec) -> Vec<(&'static str, String)> {
    let remote = spec.remote_llm_url.clone().unwrap_or_default();
    let mut known = vec![
        (PROJECT_NAME_KEY, PROJECT.to_owned()),
        // The directory of the compose file, also on the host.
        (DIRECTORY_KEY, ".".to_owned()),
        ("AEGIS_NODE_ID", spec.node.to_string()),
        ("AEGIS_BASE_DIR", spec.base_dir.clone()),
        ("AEGIS_REMOTE_LLM_URL", remote.clone()),
        ("REMOTE_LLM_URL", remote),
    ];
    known.extend(spec.image.clone().map(|image| ("AITHER_EDGE_IMAGE", image)));
    known
}

/// Whether `COMPOSE_FILE` names just the compose file that is sent.
fn is_that_file(value: &str, path: &Path) -> bool {
    Path::new(value.trim()).components().next_back() == path.components().next_back()
        && Path::new(value.trim()).components().filter(|part| *part != Component::CurDir).count() == 1
}

/// Compose's own rule: `x.yml` is overridden by `x.override.yml`.
fn override_path(path: &Path) -> Option<PathBuf> {
    let stem = path.file_stem()?.to_str()?;
    let candidates = ["yml", "yaml"].map(|end| path.with_file_name(format!("{stem}.override.{end}")));
    candidates.into_iter().find(|path| path.exists())
}

fn at(path: &Path, why: &str) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("{}: {why}", path.display()))
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, "it cannot be read").source(error)),
        Ok(metadata) if !metadata.is_file() || metadata.len() > TEXT_BYTES_MAX => {
            return Err(at(path, "it is not a file of sensible size"));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|error| at(path, "it cannot be read").source(error))?;
    String::from_utf8(bytes).map(Some).map_err(|_| refuse(format!("{} is not UTF-8", path.display())))
}
