//! The trait of a tool, and the state of one call.

use cluster_core::{
    core::Core,
    fs::SecretReference,
    types::{caller::Identity, error::Result, secret::Secret},
};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use super::progress::Progress;
use crate::confirm::Plan;

/// The four hints; none has a default that a client could get wrong.
#[derive(Debug, Clone, Copy)]
pub struct Hints {
    pub read_only: bool,
    pub destructive: bool,
    pub idempotent: bool,
    pub open_world: bool,
}

/// One tool.
pub trait Tool {
    const NAME: &'static str;
    const TITLE: &'static str;
    const DESCRIPTION: &'static str;
    const HINTS: Hints;
    /// Shown to the model from the start by clients that load tools on demand.
    const ALWAYS_LOADED: bool = false;
    /// Whether some calls need a confirmation.
    const MAY_DISRUPT: bool = false;
    type Arguments: DeserializeOwned + JsonSchema + Send;
    type Outcome: Serialize + JsonSchema;

    /// Returns what a call would do as things are now, for the person who confirms it.
    ///
    /// A tool without a plan of its own changes nothing that needs a look at the cluster first.
    fn plan(arguments: Self::Arguments, _call: &mut Call) -> impl Future<Output = Result<Plan>> + Send {
        std::future::ready(Ok(Plan {
            summary: Self::TITLE.to_lowercase(),
            command: Self::command(&arguments),
            ..Plan::default()
        }))
    }

    /// Returns the command with which a person does the same; empty for a tool that only reads.
    fn command(_arguments: &Self::Arguments) -> String {
        String::new()
    }

    fn call(
        arguments: Self::Arguments,
        call: &mut Call,
    ) -> impl Future<Output = Result<Self::Outcome>> + Send;
}

/// What a call works with.
#[derive(Debug)]
pub struct Call {
    pub core: Core,
    pub identity: Identity,
    pub progress: Progress,
    /// What the plan that was confirmed carries.
    pub confirmed: Option<String>,
    pub secrets: Vec<Secret>,
}

impl Call {
    pub fn new(core: Core, identity: Identity, progress: Progress) -> Self {
        Self { core, identity, progress, confirmed: None, secrets: Vec::new() }
    }

    /// From now on this value is taken out of everything the call returns. A reference to one is no secret.
    pub fn hide(&mut self, given: Option<&Secret>) {
        let is_value = |given: &&Secret| SecretReference::parse("", given.reveal()).is_err();
        self.secrets.extend(given.filter(is_value).cloned());
    }
}
