//! The operator's project on this machine: the compose file, the override and `.env` in the same directory, and the
//! files that Compose itself opens. Only the configuration names a project; a caller cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::{Secret, redact},
};

use super::{
    bundle::{self, Bundle, Named},
    config::ComposeOutput,
    references::{Finder, Problem, References},
    source::{Kind, refuse},
};
use crate::{
    env_file::{self, EnvFile},
    model::{
        names::{ProfileName, ServiceName},
        project::PROJECT,
        release,
        spec::DeploymentSpec,
    },
};

const TEXT_BYTES_MAX: u64 = 1024 * 1024;
const PROFILES_KEY: &str = "COMPOSE_PROFILES";
const PROJECT_NAME_KEY: &str = "COMPOSE_PROJECT_NAME";
const DIRECTORY_KEY: &str = "PWD";
/// Variables that Compose on the host knows, whatever `.env` says.
const KNOWN_TO_COMPOSE: [&str; 3] = [PROJECT_NAME_KEY, PROFILES_KEY, DIRECTORY_KEY];
/// File of the variables for interpolation. A project without `.env` has no such file on the host either, until it is
/// deployed.
pub const VARIABLES_FILE: &str = ".aegis-variables";
/// Number of lines of Compose's message that are shown.
const LINES_SHOWN: usize = 3;

/// The project as read from this machine, before Compose reads it on the host.
#[derive(Debug, Clone)]
pub struct CustomProject {
    pub(super) directory: PathBuf,
    pub(super) compose: String,
    pub(super) override_file: Option<String>,
    /// Variables of `.env`, without those that control Compose or Docker themselves.
    pub(super) environment: BTreeMap<String, Secret>,
    pub(super) left_out: Vec<String>,
    /// `COMPOSE_PROFILES` of `.env`, and the profiles of the request.
    pub(super) profiles: BTreeSet<String>,
    pub(super) references: Named,
    env_path: PathBuf,
    has_dotenv: bool,
    problems: Vec<Problem>,
}

impl CustomProject {
    /// Reads the project of a specification; `None` for the embedded stack.
    pub fn read(spec: &DeploymentSpec) -> Result<Option<Self>> {
        let Some(path) = spec.compose_file.as_deref() else { return Ok(None) };
        let compose = read_text(path)?
            .ok_or_else(|| at(path, "it is not there").remedy("check spec.deploy.compose_file"))?;
        let override_file = match override_path(path) {
            Some(path) => read_text(&path)?,
            None => None,
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or_else(|| Path::new(".")).to_owned();
        let env_path = directory.join(release::ENV_FILE);
        let text = read_text(&env_path)?;
        let has_dotenv = text.is_some();
        let mut env = Dotenv::parse(text.as_deref().unwrap_or_default(), &env_path, path)?;
        env.profiles.extend(spec.profiles.iter().map(ToString::to_string));
        let known = known(spec);
        let lookup = |name: &str| {
            let known = known.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
            known.or_else(|| env.environment.get(name).map(|value| value.reveal().to_owned()))
        };
        let mut finder =
            Finder { directory: &directory, has_dotenv, lookup: &lookup, found: References::default() };
        finder.add(&compose, "");
        if let Some(text) = &override_file {
            finder.add(text, "");
        }
        let References { named, problems, refused } = finder.found;
        if let Some(refused) = refused {
            return Err(refused);
        }
        Ok(Some(Self {
            problems,
            directory,
            compose,
            override_file,
            environment: env.environment,
            left_out: env.left_out,
            profiles: env.profiles,
            references: named,
            env_path,
            has_dotenv,
        }))
    }

    pub fn has_override(&self) -> bool {
        self.override_file.is_some()
    }

    pub fn profiles(&self) -> String {
        Vec::from_iter(self.profiles.iter().map(String::as_str)).join(",")
    }

    /// Returns the files that Compose opens to read the project, as one tar stream.
    pub fn archive(&self, spec: &DeploymentSpec, token: Option<&Secret>) -> Result<Vec<u8>> {
        let variables = self.variables(spec, token)?;
        let mut files =
            vec![(release::COMPOSE_FILE, self.compose.as_str()), (VARIABLES_FILE, variables.as_str())];
        files.extend(self.override_file.as_deref().map(|text| (release::OPERATOR_FILE, text)));
        files.extend(self.has_dotenv.then_some((release::ENV_FILE, variables.as_str())));
        let bundle = bundle::read(&self.directory, &self.references)?;
        bundle.archive_project(&files)
    }

    /// Returns the variables of interpolation, as the host's `.env` will have them.
    fn variables(&self, spec: &DeploymentSpec, token: Option<&Secret>) -> Result<String> {
        let mut env = EnvFile::default();
        for (key, value) in known(spec).into_iter().filter(|(key, _)| !KNOWN_TO_COMPOSE.contains(key)) {
            env.set(key, value)?;
        }
        for key in ["CLOUDFLARE_TUNNEL_TOKEN", "TUNNEL_TOKEN"] {
            if let Some(token) = token {
                env.set(key, token.reveal())?;
            }
        }
        for (key, value) in &self.environment {
            if !env.contains(key) {
                env.set(key, value.reveal())?;
            }
        }
        Ok(env.render())
    }

    /// Checks Compose's output, and that the services and profiles of the request exist.
    ///
    /// # Errors
    /// `ConfigInvalid` with Compose's own words, or with a cause that this machine knows.
    pub(super) fn judge(
        &self,
        output: &ComposeOutput,
        spec: &DeploymentSpec,
        token: Option<&Secret>,
    ) -> Result<()> {
        let steering = |text: &str| {
            let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
            let missing = self.left_out.iter().filter(|key| !KNOWN_TO_COMPOSE.contains(&key.as_str()));
            missing.into_iter().find(|key| words.contains(&key.as_str())).cloned()
        };
        if let Some(name) = steering(&output.stderr) {
            let why = format!("{name} steers Compose, Docker or the loader, and is not sent");
            return Err(at(&self.env_path, &why)
                .remedy("give the application's variable another name, in .env and in the compose file"));
        }
        if !output.services.is_empty() {
            let named = spec.services.iter().map(ServiceName::as_str);
            refuse_unknown("service", named, &output.services)?;
            let profiles = spec.profiles.iter().map(ProfileName::as_str);
            refuse_unknown("profile", profiles, &output.profiles)?;
        }
        if output.succeeded {
            return Ok(());
        }
        let said = output.stderr.lines().filter(|line| !line.contains("level=warning"));
        let said = Vec::from_iter(said.map(str::trim).filter(|line| !line.is_empty()));
        let said = said[said.len().saturating_sub(LINES_SHOWN)..].join("; ");
        if let Some(problem) = self.problems.iter().find(|problem| problem.explains(&said)) {
            return Err(problem.error());
        }
        if let Some(path) = self.env_file_in(&said) {
            return Err(at(&self.directory.join(path), &format!("Compose cannot read it{}", line_in(&said)))
                .remedy("mend that env file; docker compose config shows what is wrong with it"));
        }
        let said = said.replace(&format!("{}/", output.directory), "").replace(&output.directory, ".");
        let secrets: Vec<Secret> = self.environment.values().chain(token).cloned().collect();
        Err(refuse(format!("Compose on the host says: {}", redact(&said, &secrets)))
            .remedy("mend the compose file; docker compose config shows how Compose reads it"))
    }

    /// Returns the env file that a message of Compose is about. Such a message may quote the file, so it is not shown.
    fn env_file_in(&self, said: &str) -> Option<&str> {
        let mut files = self.references.iter().filter(|(_, (_, source))| source.kind == Kind::EnvFile);
        files.find(|(path, _)| said.contains(path.as_str())).map(|(path, _)| path.as_str())
    }

    /// # Errors
    /// Fails if a service names `.env` and the file does not exist.
    pub(super) fn require_dotenv(&self, service: &str) -> Result<()> {
        match self.has_dotenv {
            true => Ok(()),
            false => Err(at(&self.env_path, &format!("it is not there, and service {service} names it"))
                .remedy("write it, or take it out of the service")),
        }
    }

    /// Reads the files that are sent: those that Compose opens, and those that the services use.
    pub(super) fn bundle(&self, used: &Named) -> Result<Bundle> {
        let mut named = self.references.clone();
        for (path, (user, source)) in used {
            let known = named.entry(path.clone()).or_insert_with(|| (user.clone(), source.clone()));
            known.1.required |= source.required;
            known.1.kind = strictest_of(known.1.kind, source.kind);
        }
        bundle::read(&self.directory, &named)
    }
}

/// Returns the stricter kind of a path that is named twice. A secret is never shown, and a path that some container may
/// write to belongs to the containers.
pub(super) fn strictest_of(one: Kind, other: Kind) -> Kind {
    match (one, other) {
        (Kind::Secret, _) | (_, Kind::Secret) => Kind::Secret,
        (Kind::Bind, _) | (_, Kind::Bind) => Kind::Bind,
        (one, _) => one,
    }
}

/// Returns `, line 7` if a message of Compose names a line.
fn line_in(said: &str) -> String {
    let number = said.split("line ").nth(1).unwrap_or_default();
    let number: String = number.chars().take_while(char::is_ascii_digit).collect();
    if number.is_empty() { number } else { format!(", line {number}") }
}

/// Entries of `.env`, by their use.
struct Dotenv {
    environment: BTreeMap<String, Secret>,
    left_out: Vec<String>,
    profiles: BTreeSet<String>,
}

impl Dotenv {
    fn parse(text: &str, env_path: &Path, compose: &Path) -> Result<Self> {
        let entries = env_file::parse(text).map_err(|why| at(env_path, &why))?;
        let mut env = Self { environment: BTreeMap::new(), left_out: Vec::new(), profiles: BTreeSet::new() };
        for (key, value) in entries {
            if key == PROFILES_KEY {
                let names = value.reveal().split(',').map(str::trim).filter(|name| !name.is_empty());
                env.profiles = names.map(str::to_owned).collect();
            } else if env_file::chooses_files(&key) && !is_that_file(value.reveal(), compose) {
                return Err(at(env_path, &format!("{key} chooses other files than those that are sent"))
                    .remedy(format!(
                        "take {key} out of it, and write one compose file: docker compose config"
                    )));
            } else if env_file::is_steering(&key) {
                env.left_out.push(key);
            } else {
                env.environment.insert(key, value);
            }
        }
        Ok(env)
    }
}

/// Returns variables of `.env` on the host that the operator's own `.env` cannot change.
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

fn refuse_unknown<'a>(
    kind: &str,
    mut named: impl Iterator<Item = &'a str>,
    there: &BTreeSet<String>,
) -> Result<()> {
    let Some(unknown) = named.find(|name| !there.contains(*name)) else { return Ok(()) };
    let there = Vec::from_iter(there.iter().map(String::as_str));
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Err(Error::invalid(format!("the operator's compose file has no {kind} \"{unknown}\""))
        .remedy(format!("those there are: {there}")))
}

/// Returns whether `COMPOSE_FILE` names only the compose file that is sent.
fn is_that_file(value: &str, path: &Path) -> bool {
    Path::new(value.trim()).components().next_back() == path.components().next_back()
        && Path::new(value.trim()).components().filter(|part| *part != Component::CurDir).count() == 1
}

/// Returns the path of the override by Compose's own rule: `x.override.yml` overrides `x.yml`.
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
            return Err(at(path, "it is not a file of at most 1 MiB"));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|error| at(path, "it cannot be read").source(error))?;
    String::from_utf8(bytes).map(Some).map_err(|_| refuse(format!("{} is not UTF-8", path.display())))
}
