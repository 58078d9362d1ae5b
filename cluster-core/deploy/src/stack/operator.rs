//! The operator's stack: the project of this machine as Compose on the host reads it, with the files that are sent.

use std::collections::{BTreeMap, BTreeSet};

use aegis_types::{error::Result, secret::Secret};

use super::{
    bundle::{Bundle, Named},
    config::{ComposeConfig, ComposeOutput},
    project::{CustomProject, strictest_of},
    source::{is_dotenv, local_path},
};
use crate::{
    hex_digest,
    model::{release, spec::DeploymentSpec},
};

/// Length below which a value is as likely a common word of the log as a secret.
const SECRET_BYTES_MIN: usize = 8;
const SECRET_BYTES_MAX: usize = 16 * 1024;

/// The stack with all data read. Later decisions access neither disk nor host.
#[derive(Debug, Clone)]
pub struct CustomStack {
    pub(super) project: CustomProject,
    pub(super) config: ComposeConfig,
    /// Paths of the bundle that each service names.
    pub(super) named_by: BTreeMap<String, BTreeSet<String>>,
    bundle: Bundle,
    is_unread: bool,
}

impl CustomStack {
    /// Joins the project with Compose's output, and reads the files that the services use.
    pub fn new(
        project: CustomProject,
        output: &ComposeOutput,
        spec: &DeploymentSpec,
        token: Option<&Secret>,
    ) -> Result<Self> {
        project.judge(output, spec, token)?;
        let config = ComposeConfig::parse(output)?;
        let (named, named_by) = used(&config, &project)?;
        let bundle = project.bundle(&named)?;
        Ok(Self { project, config, named_by, bundle, is_unread: false })
    }

    /// Makes a stack without services, for a host without Compose. The findings of the host report that.
    pub fn unread(project: CustomProject) -> Self {
        Self {
            project,
            config: ComposeConfig::default(),
            named_by: BTreeMap::new(),
            bundle: Bundle::default(),
            is_unread: true,
        }
    }

    /// Returns whether Compose has not read the stack.
    pub fn is_unread(&self) -> bool {
        self.is_unread
    }

    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn environment(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.project.environment.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the digest of `.env`, for the services that mount it.
    pub(super) fn environment_digest(&self) -> String {
        let entries: Vec<(&str, &str)> =
            self.environment().map(|(key, value)| (key, value.reveal())).collect();
        hex_digest(format!("{entries:?}").as_bytes())
    }

    /// Returns keys of `.env` that Compose on the host must ignore.
    pub fn left_out(&self) -> &[String] {
        &self.project.left_out
    }

    /// Returns secrets that a service may print, to be redacted. Any value of `.env` can be a secret.
    pub fn secrets(&self) -> Vec<Secret> {
        let files = self.bundle.secrets().filter(|content| content.len() <= SECRET_BYTES_MAX);
        let files = files.filter_map(|content| std::str::from_utf8(content).ok());
        let values = self.project.environment.values().map(Secret::reveal);
        let long = files.chain(values).map(str::trim).filter(|text| text.len() >= SECRET_BYTES_MIN);
        long.map(Secret::new).collect()
    }
}

/// Returns the files that services use, and which service uses which.
fn used(
    config: &ComposeConfig,
    project: &CustomProject,
) -> Result<(Named, BTreeMap<String, BTreeSet<String>>)> {
    let (mut named, mut named_by) = (Named::new(), BTreeMap::new());
    for (service, parsed) in &config.services {
        let mut paths = BTreeSet::new();
        for source in &parsed.sources {
            if is_dotenv(source) {
                project.require_dotenv(service)?;
                paths.insert(release::ENV_FILE.to_owned());
                continue;
            }
            let user = format!("service {service}");
            let Some(path) = local_path(&user, source, &project.directory)? else { continue };
            paths.insert(path.clone());
            let strictest = named.entry(path).or_insert_with(|| (user, source.clone()));
            strictest.1.kind = strictest_of(strictest.1.kind, source.kind);
        }
        named_by.insert(service.clone(), paths);
    }
    Ok((named, named_by))
}
