//! Removes a node: drains it, removes its stack from the host, and removes it from the cluster. Every step is
//! idempotent.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};

use super::Run;
use crate::model::{
    operation::{Action, Removal},
    state::StepName,
};

impl Run {
    fn removal(&self) -> Result<Removal> {
        match self.record.action {
            Action::Remove(removal) => Ok(removal),
            Action::Deploy | Action::Rollback { .. } => Err(Error::internal("a removal's step elsewhere")),
        }
    }

    pub(super) async fn drain(&mut self) -> Result<String> {
        let removal = self.removal()?;
        let (node, limit) = (self.record.spec.node.clone(), Duration::from_secs(removal.drain_seconds));
        if removal.host_gone {
            return Ok("nothing can run on a host that is gone".to_owned());
        }
        self.progress(StepName::Drain, format!("waiting until nothing runs on {node}"));
        self.context.membership.drain(&node, limit).await
    }

    pub(super) async fn stop(&mut self) -> Result<String> {
        let removal = self.removal()?;
        let sudo = self.remote()?.needs_sudo().await?;
        self.work_by_sudo(sudo);
        self.ensure_lock().await?;
        self.context.membership.remove_link_key(&self.record.spec.node, self.connection()?).await?;
        if let Some(cluster) = self.other_owner().await? {
            return Ok(format!("the host runs a release of cluster {cluster} now, which stays"));
        }
        self.remote()?.remove(removal.volumes).await?;
        let volumes = if removal.volumes { "with its volumes" } else { "without its volumes, which stay" };
        Ok(format!("the stack was taken off {}, {volumes}", self.record.spec.target.host))
    }

    /// Returns the cluster that owns the current release on the host, if it is another cluster.
    pub(super) async fn other_owner(&self) -> Result<Option<String>> {
        let kept = self.remote()?.kept().await?;
        let owner = kept.into_iter().find(|release| release.current).and_then(|release| release.note.cluster);
        Ok(owner.filter(|owner| *owner != self.context.hosts.settings().owner))
    }

    pub(super) async fn forget(&mut self) -> Result<String> {
        let node = self.record.spec.node.clone();
        self.context.membership.forget(&node).await?;
        Ok(format!("the key of {node} is revoked"))
    }

    /// Adds a remedy: a machine that does not answer may no longer exist, which only its owner knows.
    pub(super) fn explain_removal(&self, error: Error) -> Error {
        let node = &self.record.spec.node;
        match error.code() {
            ErrorCode::HostUnreachable => {
                let remedy = format!(
                    "{}; if the machine does not exist any more: remove_edge_node with host_gone, or aegis node \
                     remove {node} --host-gone",
                    error.remedy_text().unwrap_or("try again")
                );
                error.remedy(remedy)
            }
            _ => error,
        }
    }

    /// Describes the state that an incomplete removal leaves behind, and resumes the node if the removal was cancelled.
    pub(super) async fn leave_removal(&mut self, called_off: bool, host_away: bool) -> String {
        let node = self.record.spec.node.clone();
        if !self.record.spec.join {
            return match self.record.view.step_is_done(StepName::Stop) {
                true => "the stack is gone from the host".to_owned(),
                false => "the stack may still be on the host".to_owned(),
            };
        }
        if !self.record.view.step_has_begun(StepName::Drain) {
            return match host_away {
                true => format!("nothing was changed; whether {node} still works there is not known"),
                false => format!("nothing was changed, {node} is in service"),
            };
        }
        if self.record.view.step_is_done(StepName::Stop) {
            return format!("the stack is gone from the host, but {node} is still a member");
        }
        if called_off && self.removal().is_ok_and(|removal| removal.was_drained) {
            return format!("{node} is out of service, as it was before");
        }
        if called_off {
            return match self.context.membership.resume(&node).await {
                Ok(()) => format!("{node} is in service again"),
                Err(error) => format!("{node} stays drained: {}", error.message()),
            };
        }
        format!("{node} is still a member, and gets no new work while it drains")
    }
}
