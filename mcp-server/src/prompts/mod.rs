//! Prompts that a person picks from a menu: a task, filled with the current facts and the tool calls for it, in order.
//!
//! One file a prompt: what it is called and takes ([`About`]), the facts that it gathers from the core, and
//! the text made of them, a plain function. [`facts`] has the lines that several of them share. What was
//! written by containers and hosts stands in a [`crate::text::untrusted`]. Filling a prompt changes nothing and
//! connects to no host. A prompt is offered where the tools are that it tells to call.

mod deploy_edge_nodes;
mod diagnose_deployment;
mod diagnose_node;
mod drain_for_maintenance;
mod facts;
mod given;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use cluster_core::{
    core::Core,
    types::error::{Error, ErrorCode, Result},
};
use rmcp::{
    ErrorData,
    model::{GetPromptRequestParams, GetPromptResult, Prompt, PromptArgument, PromptMessage, Role},
};

use self::given::Given;
use crate::{candidates::Candidates, protocol_error};

/// Menu entry of a prompt.
#[derive(Debug)]
pub struct About {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub arguments: &'static [Argument],
    /// Tools without which the prompt would be useless.
    pub needs: &'static [&'static str],
}

#[derive(Debug)]
pub struct Argument {
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub required: bool,
    pub candidates: Candidates,
}

/// Argument of prompts about one node.
const NODE: Argument = Argument {
    name: "node_id",
    title: "Node",
    description: "the node's id, as list_peers shows it",
    required: true,
    candidates: Candidates::Nodes,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptName {
    DeployEdgeNodes,
    DrainForMaintenance,
    DiagnoseNode,
    DiagnoseDeployment,
}

impl PromptName {
    /// All prompts, in the order of the menu.
    pub const ALL: [Self; 4] =
        [Self::DeployEdgeNodes, Self::DrainForMaintenance, Self::DiagnoseNode, Self::DiagnoseDeployment];

    pub const fn about(self) -> &'static About {
        match self {
            Self::DeployEdgeNodes => &deploy_edge_nodes::ABOUT,
            Self::DrainForMaintenance => &drain_for_maintenance::ABOUT,
            Self::DiagnoseNode => &diagnose_node::ABOUT,
            Self::DiagnoseDeployment => &diagnose_deployment::ABOUT,
        }
    }

    fn is_offered(self, has_tool: Offered) -> bool {
        self.about().needs.iter().all(|tool| has_tool(tool))
    }

    async fn fill(self, core: &Core, given: &Given) -> Result<String> {
        match self {
            Self::DeployEdgeNodes => deploy_edge_nodes::fill(core, given).await,
            Self::DrainForMaintenance => drain_for_maintenance::fill(core, given).await,
            Self::DiagnoseNode => diagnose_node::fill(core, given).await,
            Self::DiagnoseDeployment => diagnose_deployment::fill(core, given).await,
        }
    }
}

impl FromStr for PromptName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|prompt| prompt.about().name == name).ok_or_else(|| {
            let names = Self::ALL.map(|prompt| prompt.about().name).join(", ");
            Error::invalid(format!("there is no prompt \"{}\"", cluster_core::types::text::shown(name)))
                .remedy(format!("the prompts are {names}"))
        })
    }
}

/// Returns whether the caller may call a tool: a prompt leads to calls.
pub type Offered<'a> = &'a (dyn Fn(&str) -> bool + Sync);

pub fn list(has_tool: Offered) -> Vec<Prompt> {
    let offered = PromptName::ALL.into_iter().filter(|prompt| prompt.is_offered(has_tool));
    offered.map(|prompt| shown(prompt.about())).collect()
}

fn shown(about: &About) -> Prompt {
    let arguments = about.arguments.iter().map(|argument| {
        PromptArgument::new(argument.name)
            .with_title(argument.title)
            .with_description(argument.description)
            .with_required(argument.required)
    });
    Prompt::new(about.name, Some(about.description), Some(arguments.collect())).with_title(about.title)
}

pub async fn get(
    core: &Core,
    has_tool: Offered<'_>,
    request: GetPromptRequestParams,
) -> std::result::Result<GetPromptResult, ErrorData> {
    let filled = async {
        let prompt = request.name.parse::<PromptName>()?;
        if !prompt.is_offered(has_tool) {
            return Err(Error::new(
                ErrorCode::Forbidden,
                format!("{}: the tools that it needs are not offered here", request.name),
            )
            .remedy(
                "see spec.mcp.read_only and spec.mcp.tools, --read-only and --tools, and the token's scope",
            ));
        }
        let given = Given::of(prompt.about().arguments, request.arguments.unwrap_or_default())?;
        Ok((prompt, prompt.fill(core, &given).await?))
    };
    let (prompt, text) = filled.await.map_err(|error| protocol_error::of_arguments(&error))?;
    Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)])
        .with_description(prompt.about().description))
}
