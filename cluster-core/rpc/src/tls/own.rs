//! The controller's own certificate from its built-in CA. It lives in memory: each start makes a new
//! one, and so does half of its life.

use std::{sync::Arc, time::Duration};

use aegis_identity::Authority;
use aegis_types::{clock::now_ms, error::Result, ids::NodeId};
use tokio_util::sync::CancellationToken;

use super::{Credentials, Identity, PeerRule, Trust};

const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// Issues it and keeps it fresh until told to stop.
pub fn issue(authority: Arc<Authority>, node_id: NodeId, stop: CancellationToken) -> Result<Credentials> {
    let trust = Trust::of_pem(authority.certificate_pem().as_bytes(), None)?;
    let credentials = Credentials::new(PeerRule::Optional, Some(fresh(&authority, &node_id)?), trust)?;
    let kept = credentials.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(RENEWAL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            kept.review();
            let due = kept.identity().is_none_or(|own| own.facts.is_past_half(now_ms() / 1000));
            if !due {
                continue;
            }
            let renewed = fresh(&authority, &node_id).and_then(|own| kept.replace_identity(own));
            kept.note(renewed.err().as_ref());
        }
    });
    Ok(credentials)
}

fn fresh(authority: &Authority, node_id: &NodeId) -> Result<Identity> {
    let issued = authority.issue_own(node_id)?;
    Identity::of_pem(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes())
}
