//! The published document, `apiVersion: 100monkeys.ai/v1`, `kind: Agent`, with the few keys of ours.
//!
//! These types are the one source of what is a key, what is not, and what is a key that changes nothing here
//! ([`NotUsed`]). What stands as [`Value`] has several spellings, read by [`super::quantity`].
#![expect(dead_code, reason = "a field that is not used is there for its name")]

use std::{borrow::Cow, collections::BTreeMap};

use aegis_types::{
    execution::{manifest::Relaxations, retry::RetryPolicy},
    ids::{AgentName, Tag},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

pub const API_VERSION: &str = "100monkeys.ai/v1";
pub const KIND: &str = "Agent";

/// Marks [`NotUsed`] in a schema.
pub const NOT_USED: &str = "x-not-used";

/// A field of the wider platform. Any value is accepted, and the field is reported as not used.
#[derive(Debug, Deserialize)]
pub struct NotUsed(IgnoredAny);

impl JsonSchema for NotUsed {
    fn schema_name() -> Cow<'static, str> {
        "NotUsed".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ NOT_USED: true })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Document {
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: Spec,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Metadata {
    pub name: AgentName,
    /// The author's own; ours counts by itself.
    #[serde(default)]
    pub version: Option<Value>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, Value>,
    #[serde(default)]
    pub annotations: Option<NotUsed>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Spec {
    #[serde(default)]
    pub runtime: Runtime,
    #[serde(default)]
    pub command: Option<Vec<String>>,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub env: BTreeMap<String, Value>,
    #[serde(default)]
    pub execution: Execution,
    #[serde(default)]
    pub security: Security,
    #[serde(default)]
    pub volumes: Vec<Volume>,

    #[serde(default)]
    pub task: Option<NotUsed>,
    #[serde(default)]
    pub context: Option<NotUsed>,
    #[serde(default)]
    pub tools: Option<NotUsed>,
    #[serde(default)]
    pub schedule: Option<NotUsed>,
    #[serde(default)]
    pub advanced: Option<NotUsed>,
    #[serde(default)]
    pub input_schema: Option<NotUsed>,
    #[serde(default)]
    pub output_handler: Option<NotUsed>,
    #[serde(default)]
    pub security_context: Option<NotUsed>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Runtime {
    pub image: Option<String>,
    pub language: Option<String>,
    /// Version of the language.
    pub version: Option<Value>,
    /// `inherit` and `docker` are what there is.
    pub isolation: Option<String>,
    pub command: Option<Vec<String>>,
    pub args: Option<Vec<String>>,
    pub env: BTreeMap<String, Value>,
    pub image_pull_policy: Option<NotUsed>,
    pub model: Option<NotUsed>,
    pub temperature: Option<NotUsed>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    OneShot,
    Iterative,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Execution {
    pub mode: Mode,
    pub max_iterations: Option<u32>,
    /// The second spelling of `max_iterations`.
    pub max_retries: Option<u32>,
    pub iteration_timeout: Option<Value>,
    pub target_tags: Vec<Tag>,
    // Ours.
    pub preferred_tags: Vec<Tag>,
    pub max_attempts: Option<u32>,
    pub retry: Option<RetryPolicy>,
    pub artifacts: Vec<String>,
    pub result_file: Option<String>,
    pub llm_timeout_seconds: Option<NotUsed>,
    pub memory: Option<NotUsed>,
    pub validation: Option<NotUsed>,
    pub tool_validation: Option<NotUsed>,
    pub delivery: Option<NotUsed>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Security {
    pub network: Network,
    pub resources: Resources,
    pub filesystem: Option<NotUsed>,
    /// Ours: what is taken back of the hardening.
    pub relax: Relaxations,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Network {
    pub mode: Option<String>,
    pub allowlist: Vec<String>,
    pub denylist: Option<NotUsed>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Resources {
    pub cpu: Option<Value>,
    pub memory: Option<Value>,
    pub timeout: Option<Value>,
    pub disk: Option<NotUsed>,
    // Ours.
    pub gpus: Option<u32>,
    pub vram_gb: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Volume {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub storage_class: Option<String>,
    #[serde(default)]
    pub access_mode: Option<NotUsed>,
    #[serde(default)]
    pub size_limit: Option<NotUsed>,
    #[serde(default)]
    pub ttl_hours: Option<NotUsed>,
    #[serde(default, rename = "type")]
    pub kind: Option<NotUsed>,
    #[serde(default)]
    pub provider: Option<NotUsed>,
    #[serde(default)]
    pub config: Option<NotUsed>,
}
