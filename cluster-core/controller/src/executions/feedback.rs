//! Lessons from the end of an attempt about its node: faults for the membership, refusals for the placement.

use aegis_types::{
    error::{Failure, Result},
    execution::{
        lifecycle::{Input, Step},
        record::ExecutionRecord,
        view::{EventKind, EventView},
    },
};

use crate::{
    executions::{
        exclusion::{is_fault, is_refusal},
        open::{Live, Shared},
    },
    membership::Membership,
};

/// Tells the membership what an event says of the node itself.
pub(super) async fn rate_node(shared: &Shared, record: &ExecutionRecord, kind: &EventKind) -> Result<()> {
    let Some(node_id) = &record.node_id else { return Ok(()) };
    match kind {
        EventKind::Failed { failure, .. } if is_fault(failure.code) => {
            shared.faulty().insert(node_id.clone());
            shared.controller.node_failed(node_id.clone(), failure.message.clone()).await
        }
        // Most nodes have no fault: the membership is not asked for each of their executions.
        EventKind::IterationStarted { .. } if shared.faulty().remove(node_id) => {
            shared.controller.node_ran(node_id.clone()).await
        }
        _ => Ok(()),
    }
}

/// Returns the reason of a refusal that a node reported as the end, if another node may take the execution. If no other
/// node may, the end carries the reason of the first node that refused.
pub(super) async fn declined(
    shared: &Shared,
    record: &ExecutionRecord,
    live: &Live,
    event: &mut EventView,
) -> Result<Option<Failure>> {
    let EventKind::Failed { failure, .. } = &mut event.kind else { return Ok(None) };
    let passes_on = record.life().next(Input::Declined { attempt: event.attempt }) == Step::PassOn;
    let Some(node_id) = record.node_id.as_ref().filter(|_| is_refusal(failure.code) && passes_on) else {
        return Ok(None);
    };
    let (nodes, first) = {
        let mut exclusion = live.exclusion();
        exclusion.refuse(node_id, failure);
        (exclusion.nodes.clone(), exclusion.first_refusal.clone())
    };
    let (id, demand) = (record.execution_id.clone(), record.demand.clone());
    let fit = move |membership: &mut Membership| membership.fit_except(Some(&id), &demand, &nodes);
    if shared.controller.with_placement(fit).await?.map_or_else(|no_fit| no_fit.may_change(), |_| true) {
        return Ok(Some(failure.clone()));
    }
    if let Some(first) = first {
        *failure = first;
    }
    Ok(None)
}
