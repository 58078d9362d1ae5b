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

/// The four hints, all explicit, since clients could assume wrong defaults.
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
    /// Clients that load tools on demand show the tool to the model from the start.
    const ALWAYS_LOADED: bool = false;
    /// Whether some calls need a confirmation.
    const MAY_DISRUPT: bool = false;
    type Arguments: DeserializeOwned + JsonSchema + Send;
    type Outcome: Serialize + JsonSchema;

    /// Returns the effects of a call in the current state, for the person who confirms it.
    ///
    /// The default plan is for a tool whose changes need no look at the cluster first.
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

/// Environment of a call.
#[derive(Debug)]
pub struct Call {
    pub core: Core,
    pub identity: Identity,
    pub progress: Progress,
    /// Value that the confirmed plan carries.
    pub confirmed: Option<String>,
    pub secrets: Vec<Secret>,
}

impl Call {
    pub fn new(core: Core, identity: Identity, progress: Progress) -> Self {
        Self { core, identity, progress, confirmed: None, secrets: Vec::new() }
    }

    /// Redacts this value in everything that the call returns later. A reference to a secret is not redacted.
    pub fn hide(&mut self, given: Option<&Secret>) {
        let is_value = |given: &&Secret| SecretReference::parse("", given.reveal()).is_err();
        self.secrets.extend(given.filter(is_value).cloned());
    }
}
