//! Completes ids and names for the text typed so far, newest first.

use cluster_core::{
    core::{Core, PeerFilter},
    deploy::DeploymentFilter,
    types::{
        error::{Error, Result},
        execution::filter::ExecutionFilter,
    },
};
use rmcp::{
    ErrorData,
    model::{CompleteRequestParams, CompleteResult, CompletionInfo, Reference},
};

use crate::{
    candidates::Candidates,
    prompts::PromptName,
    protocol_error,
    resources::uri::{DEPLOYMENT_TEMPLATE, EXECUTION_TEMPLATE, OUTPUT_TEMPLATE},
};

/// Number of deployments that are searched; older ones must be named in full.
const DEPLOYMENTS_MAX: usize = 200;
const EXECUTIONS_MAX: u32 = 1000;

pub async fn complete(
    core: &Core,
    request: &CompleteRequestParams,
) -> std::result::Result<CompleteResult, ErrorData> {
    let completed = async {
        let candidates = candidates(&request.r#ref, &request.argument.name)?;
        let (all, whole) = gather(core, candidates).await?;
        let typed = &request.argument.value;
        let (before, last) = match candidates {
            Candidates::Hosts | Candidates::Tags => split_list(typed),
            _ => ("", typed.as_str()),
        };
        Ok(fitting(&all, whole, before, last))
    };
    completed.await.map(CompleteResult::new).map_err(|error: Error| protocol_error::of_arguments(&error))
}

fn candidates(reference: &Reference, argument: &str) -> Result<Candidates> {
    let none = |of: &str, known: String| {
        let shown = cluster_core::types::text::shown(argument);
        Error::invalid(format!("{of} has no argument \"{shown}\"")).remedy(format!("use one of {known}"))
    };
    match reference {
        Reference::Resource(template) => match (template.uri.as_str(), argument) {
            (DEPLOYMENT_TEMPLATE, "id") => Ok(Candidates::Deployments),
            (EXECUTION_TEMPLATE | OUTPUT_TEMPLATE, "id") => Ok(Candidates::Executions),
            (OUTPUT_TEMPLATE, "after_sequence" | "limit") => Ok(Candidates::Nothing),
            (DEPLOYMENT_TEMPLATE | EXECUTION_TEMPLATE, _) => Err(none(&template.uri, "id".to_owned())),
            (OUTPUT_TEMPLATE, _) => Err(none(&template.uri, "id, after_sequence, limit".to_owned())),
            (other, _) => {
                let shown = cluster_core::types::text::shown(other);
                Err(Error::invalid(format!("there is no resource template \"{shown}\""))
                    .remedy("use a uriTemplate of resources/templates/list"))
            }
        },
        Reference::Prompt(prompt) => {
            let arguments = prompt.name.parse::<PromptName>()?.about().arguments;
            let known = arguments.iter().find(|known| known.name == argument);
            known.map(|known| known.candidates).ok_or_else(|| {
                let names = arguments.iter().map(|known| known.name).collect::<Vec<_>>();
                none(&prompt.name, names.join(", "))
            })
        }
        other => Err(Error::invalid(format!("{} cannot be completed", other.reference_type()))),
    }
}

/// Returns candidates, newest first where that applies, and whether the list is complete.
async fn gather(core: &Core, candidates: Candidates) -> Result<(Vec<String>, bool)> {
    Ok(match candidates {
        Candidates::Deployments => {
            let filter = DeploymentFilter { limit: DEPLOYMENTS_MAX, ..DeploymentFilter::default() };
            let (views, total) = core.deployments(filter).await?;
            let whole = views.len() == total;
            (views.into_iter().map(|view| view.deployment_id.to_string()).collect(), whole)
        }
        Candidates::Executions => {
            let views = core.executions(&ExecutionFilter::default(), EXECUTIONS_MAX).await?;
            let whole = views.len() < EXECUTIONS_MAX as usize;
            (views.into_iter().map(|view| view.execution_id.to_string()).collect(), whole)
        }
        Candidates::Nodes => {
            let peers = core.peers(PeerFilter::default()).await?;
            (peers.into_iter().map(|peer| peer.node_id.to_string()).collect(), true)
        }
        Candidates::Hosts => {
            let mut hosts = core.approved_hosts().await?;
            hosts.retain(|host| host.is_target());
            hosts.sort_by_key(|host| std::cmp::Reverse(host.approved_at_ms));
            let mut names = hosts.into_iter().map(|host| host.host.to_string()).collect::<Vec<_>>();
            // A host may be approved on several ports.
            names.dedup();
            (names, true)
        }
        Candidates::Tags => {
            let peers = core.peers(PeerFilter::default()).await?;
            let mut tags =
                peers.into_iter().flat_map(|peer| peer.tags).map(|tag| tag.to_string()).collect::<Vec<_>>();
            tags.sort();
            tags.dedup();
            (tags, true)
        }
        Candidates::Nothing => (Vec::new(), true),
    })
}

/// Splits a list into the text before its last entry, with the separator, and that entry.
fn split_list(typed: &str) -> (&str, &str) {
    let start = typed.rfind([',', ' ']).map_or(0, |at| at + 1);
    typed.split_at(start)
}

fn fitting(all: &[String], whole: bool, before: &str, typed: &str) -> CompletionInfo {
    let mut fitting = all.iter().filter(|value| value.starts_with(typed));
    let values = fitting
        .by_ref()
        .take(CompletionInfo::MAX_VALUES)
        .map(|value| format!("{before}{value}"))
        .collect::<Vec<_>>();
    let rest = fitting.count();
    let mut info = CompletionInfo::default();
    info.total = whole.then(|| u32::try_from(values.len() + rest).unwrap_or(u32::MAX));
    info.has_more = Some(rest > 0 || !whole);
    info.values = values;
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node-{number}")).collect()
    }

    #[test]
    fn a_prefix_chooses_and_the_order_stays() {
        let info = fitting(&numbered(12), true, "", "node-1");
        assert_eq!(info.values, ["node-1", "node-10", "node-11"]);
        assert_eq!((info.total, info.has_more), (Some(3), Some(false)));
        assert!(fitting(&numbered(12), true, "", "x").values.is_empty());
    }

    #[test]
    fn more_than_a_hundred_are_counted_and_not_shown() {
        let info = fitting(&numbered(150), true, "", "");
        assert_eq!((info.values.len(), info.total, info.has_more), (100, Some(150), Some(true)));
        // Not all candidates were searched, so their number is unknown.
        let info = fitting(&numbered(3), false, "", "");
        assert_eq!((info.values.len(), info.total, info.has_more), (3, None, Some(true)));
    }

    #[test]
    fn the_last_entry_of_a_list_is_completed() {
        assert_eq!(split_list("a, b,no"), ("a, b,", "no"));
        assert_eq!(split_list("no"), ("", "no"));
        let (before, last) = split_list("a, node-1");
        assert_eq!(fitting(&numbered(2), true, before, last).values, ["a, node-1"]);
    }
}
