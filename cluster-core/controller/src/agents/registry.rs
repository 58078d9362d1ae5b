//! Registered agents and their versions.

use std::collections::BTreeMap;

use aegis_config::applied::AppliedConfig;
use aegis_identity::sha256;
use aegis_store::{AgentRow, AgentWrite, Store, Write};
use aegis_types::{
    agent::AgentReference,
    clock::{now_ms, rfc3339},
    error::{Error, ErrorCode, Result},
    execution::request::ExecutionRequest,
    ids::AgentName,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Manifest;

/// Names that are registered at a time, and versions that are kept of each.
pub const AGENTS_MAX: u32 = 1_000;
pub const VERSIONS_MAX: u32 = 1_000;
/// Names of registered agents in the error about an unknown agent.
const NAMES_SHOWN_MAX: u32 = 10;

/// A version of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentView {
    pub name: AgentName,
    /// Counts by itself, from 1; a number is never given twice.
    pub version: u32,
    /// Author's name for this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Image that it would run now; absent if the operator's configuration does not name one for its language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// Fields of the manifest that change nothing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_used: Vec<String>,
}

/// A version with all that it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentDetail {
    #[serde(flatten)]
    pub agent: AgentView,
    /// The document as written, without empty keys.
    pub manifest: Value,
    /// Request of an execution of this agent, unless its submission overrides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<ExecutionRequest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A version more.
    Created,
    /// The newest version has this content.
    Unchanged,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    pub outcome: Outcome,
    #[serde(flatten)]
    pub agent: AgentView,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deleted {
    pub name: AgentName,
    /// How many versions went.
    pub versions: u64,
}

/// A cheap handle on the registered agents.
#[derive(Debug, Clone)]
pub struct Agents {
    store: Store,
    /// Configuration with the images of languages, which the operator may change at any time.
    applied: AppliedConfig,
}

impl Agents {
    pub fn new(store: Store, applied: AppliedConfig) -> Self {
        Self { store, applied }
    }

    /// Registers a manifest, YAML or JSON: another content than the newest version's is a version more.
    pub async fn apply(&self, text: &str) -> Result<Applied> {
        let manifest = Manifest::parse(text, &self.applied.settings().images)?;
        let content = manifest.document.to_string();
        let digest = hex::encode(sha256(content.as_bytes()));
        let write = AgentWrite::Apply {
            name: manifest.name.clone(),
            digest: digest.clone(),
            manifest: content,
            now_ms: now_ms(),
            agents_max: AGENTS_MAX,
            versions_max: VERSIONS_MAX,
        };
        let written = self.store.write(Write::Agent(Box::new(write))).await?;
        let newest = self.store.agent(&manifest.name, None).await?;
        let Some(row) = newest.filter(|row| written > 0 || row.digest == digest) else {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("{AGENTS_MAX} agents, or {VERSIONS_MAX} versions of this one, are registered"),
            )
            .remedy("delete some: aegis agent delete NAME [--version N]"));
        };
        let outcome = if written > 0 { Outcome::Created } else { Outcome::Unchanged };
        Ok(Applied { outcome, agent: self.view(&row)? })
    }

    /// The newest version of each, by name.
    pub async fn list(&self) -> Result<Vec<AgentView>> {
        self.store.agents().await?.iter().map(|row| self.view(row)).collect()
    }

    pub async fn get(&self, reference: &AgentReference) -> Result<AgentDetail> {
        let row = self.row(reference).await?;
        let manifest = manifest_of(&row)?;
        let runs = manifest.request(&self.applied.settings().images).ok();
        Ok(AgentDetail { agent: self.view(&row)?, manifest: manifest.document, runs })
    }

    /// One version, or all. Executions keep what they were resolved to.
    pub async fn delete(&self, reference: &AgentReference) -> Result<Deleted> {
        let AgentReference { name, version } = reference.clone();
        let write = AgentWrite::Delete { name: name.clone(), version };
        match self.store.write(Write::Agent(Box::new(write))).await? {
            0 => Err(self.unknown(reference).await?),
            versions => Ok(Deleted { name, versions }),
        }
    }

    /// The request with what its agent says, if it names one.
    pub async fn resolve(&self, request: ExecutionRequest) -> Result<ExecutionRequest> {
        let Some(reference) = &request.agent else { return Ok(request) };
        let row = self.row(reference).await?;
        manifest_of(&row)?.resolve(request, row.version, &self.applied.settings().images)
    }

    async fn row(&self, reference: &AgentReference) -> Result<AgentRow> {
        match self.store.agent(&reference.name, reference.version).await? {
            Some(row) => Ok(row),
            None => Err(self.unknown(reference).await?),
        }
    }

    async fn unknown(&self, reference: &AgentReference) -> Result<Error> {
        let error = Error::new(ErrorCode::NotFound, format!("there is no agent {reference}"));
        if let Some(newest) = self.store.agent(&reference.name, None).await? {
            return Ok(error.remedy(format!("its newest version is {}@{}", newest.name, newest.version)));
        }
        // One more than is shown tells whether there are more.
        let mut names = self.store.agent_names(NAMES_SHOWN_MAX + 1).await?;
        let more = if names.len() > NAMES_SHOWN_MAX as usize { " and others" } else { "" };
        names.truncate(NAMES_SHOWN_MAX as usize);
        let names = names.iter().map(AgentName::as_str).collect::<Vec<_>>().join(", ");
        Ok(match names.is_empty() {
            true => error.remedy("none is registered; do it with: aegis agent apply -f FILE"),
            false => error.remedy(format!("registered are {names}{more}")),
        })
    }

    fn view(&self, row: &AgentRow) -> Result<AgentView> {
        let manifest = manifest_of(row)?;
        Ok(AgentView {
            image: manifest.image(&self.applied.settings().images).ok(),
            name: manifest.name,
            version: row.version,
            author_version: manifest.author_version,
            description: manifest.description,
            labels: manifest.labels,
            created_at: rfc3339(row.created_at_ms),
            not_used: manifest.not_used,
        })
    }
}

/// It was checked when it was stored.
fn manifest_of(row: &AgentRow) -> Result<Manifest> {
    let unreadable = |e: Error| {
        let which = AgentReference::version(row.name.clone(), row.version);
        Error::new(
            ErrorCode::Storage,
            format!("the agent {which} is stored in a form that this version cannot read"),
        )
        .remedy("apply its manifest again")
        .source(e)
    };
    let document = serde_json::from_str(&row.manifest)
        .map_err(|e| unreadable(Error::internal("it is not JSON").source(e)))?;
    Manifest::of(document).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use aegis_config::{Overrides, Settings, parse};
    use aegis_fs::DataDirectory;

    async fn opened(dir: &Path, config: &str) -> Agents {
        let overrides = Overrides { data_dir: Some(dir.to_owned()), ..Default::default() };
        let settings = Settings::of(&parse(config).unwrap(), &overrides).unwrap();
        let (_, applied) = AppliedConfig::restore(settings, dir);
        let data = Arc::new(DataDirectory::own(dir).unwrap());
        Agents::new(Store::open(data).await.unwrap(), applied)
    }

    fn manifest(name: &str, args: &str) -> String {
        format!(
            "apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {{name: {name}, version: '1.0'}}\n\
             spec: {{runtime: {{image: 'busybox:1.36'}}, args: [{args}], tools: [x]}}\n"
        )
    }

    fn reference(text: &str) -> AgentReference {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn changed_manifest_is_a_new_version() {
        let dir = tempfile::tempdir().unwrap();
        let agents = opened(dir.path(), "").await;
        let first = agents.apply(&manifest("a", "one")).await.unwrap();
        assert_eq!((first.outcome, first.agent.version), (Outcome::Created, 1));
        assert_eq!(first.agent.not_used, ["spec.tools"]);
        let again = agents.apply(&format!("# a remark\n{}", manifest("a", "one"))).await.unwrap();
        assert_eq!((again.outcome, again.agent.version), (Outcome::Unchanged, 1));
        assert_eq!(agents.apply(&manifest("a", "two")).await.unwrap().agent.version, 2);
        assert_eq!(agents.apply(&manifest("a", "one")).await.unwrap().agent.version, 3, "back again");
        agents.apply(&manifest("b", "x")).await.unwrap();
        let listed = agents.list().await.unwrap();
        let listed: Vec<_> = listed.iter().map(|view| (view.name.as_str(), view.version)).collect();
        assert_eq!(listed, [("a", 3), ("b", 1)]);
        let second = agents.get(&reference("a@2")).await.unwrap();
        assert_eq!(second.runs.unwrap().args, ["two"]);
        assert_eq!(second.manifest["metadata"]["name"], "a");
    }

    #[tokio::test]
    async fn a_number_is_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let agents = opened(dir.path(), "").await;
        for args in ["one", "two", "three"] {
            agents.apply(&manifest("a", args)).await.unwrap();
        }
        assert_eq!(agents.delete(&reference("a@3")).await.unwrap().versions, 1);
        assert_eq!(agents.get(&reference("a")).await.unwrap().agent.version, 2);
        assert_eq!(agents.apply(&manifest("a", "four")).await.unwrap().agent.version, 4);
        assert_eq!(agents.delete(&reference("a")).await.unwrap().versions, 3);
        assert!(agents.list().await.unwrap().is_empty());
        let gone = agents.delete(&reference("a")).await.unwrap_err();
        assert_eq!(gone.code(), ErrorCode::NotFound);
        assert_eq!(agents.apply(&manifest("a", "four")).await.unwrap().agent.version, 5);
    }

    #[tokio::test]
    async fn request_is_resolved_to_version_and_unknown_agent_refused() {
        let dir = tempfile::tempdir().unwrap();
        let agents = opened(dir.path(), "").await;
        let asked = |text: &str| ExecutionRequest { agent: Some(reference(text)), ..Default::default() };
        let none = agents.resolve(asked("a")).await.unwrap_err();
        assert!(none.to_string().contains("aegis agent apply"), "{none}");
        for name in ["a", "b"] {
            agents.apply(&manifest(name, "one")).await.unwrap();
        }
        agents.apply(&manifest("a", "two")).await.unwrap();
        let newest = agents.resolve(asked("a")).await.unwrap();
        assert_eq!((newest.agent.unwrap().to_string().as_str(), newest.args[0].as_str()), ("a@2", "two"));
        let first = agents.resolve(asked("a@1")).await.unwrap();
        assert_eq!(first.args, ["one"]);
        let unknown = agents.resolve(asked("c")).await.unwrap_err();
        assert!(unknown.to_string().contains("registered are a, b"), "{unknown}");
        let version = agents.resolve(asked("a@9")).await.unwrap_err();
        assert!(version.to_string().contains("a@2"), "{version}");
        let plain = ExecutionRequest { image: Some("i".into()), ..Default::default() };
        assert_eq!(agents.resolve(plain.clone()).await.unwrap(), plain);
    }

    #[tokio::test]
    async fn the_operator_says_which_image_a_language_has() {
        let dir = tempfile::tempdir().unwrap();
        let images = "spec: {runtime: {images: {'python:3.12': 'r.example/p:1'}}}";
        let agents = opened(dir.path(), images).await;
        let text = manifest("a", "x").replace("image: 'busybox:1.36'", "language: python, version: '3.12'");
        assert_eq!(agents.apply(&text).await.unwrap().agent.image.as_deref(), Some("r.example/p:1"));
    }

    #[tokio::test]
    async fn many_at_once_get_a_number_each() {
        let dir = tempfile::tempdir().unwrap();
        let agents = opened(dir.path(), "").await;
        let texts: Vec<_> = (0..20).map(|number| manifest("a", &format!("n{number}"))).collect();
        let applied = futures::future::join_all(texts.iter().map(|text| agents.apply(text))).await;
        assert!(applied.iter().all(|applied| applied.as_ref().unwrap().outcome == Outcome::Created));
        assert_eq!(agents.get(&reference("a")).await.unwrap().agent.version, 20);
    }
}
