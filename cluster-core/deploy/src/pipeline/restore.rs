//! Going back to an earlier release that the host keeps.

use std::collections::BTreeMap;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::DeploymentId,
};

use super::{super::release, Run};

impl Run {
    /// Which release it will be. Reads only.
    pub(super) async fn check_releases(&mut self, to: Option<&DeploymentId>) -> Result<String> {
        let sudo = self.remote()?.needs_sudo().await?;
        self.work_by_sudo(sudo);
        let kept = self.remote()?.kept().await?;
        // What was chosen stays chosen: after a restart the release may be the current one already.
        let chosen =
            release::choose(&kept, self.record.view.release.as_ref().or(to), self.record.spec.join)?.clone();
        if chosen.note.node_id != self.record.spec.node {
            return Err(Error::new(
                ErrorCode::Conflict,
                format!("release {} is that of {}", chosen.note.deployment_id, chosen.note.node_id),
            )
            .remedy("name a release of this node; without one it is the release before"));
        }
        let goal = chosen.note.goal.clone();
        let evidence = format!(
            "release {} with {}; {} releases are kept",
            chosen.note.deployment_id,
            chosen.note.services.join(", "),
            kept.len()
        );
        self.record.view.release = Some(chosen.note.deployment_id.clone());
        (self.goal, self.chosen) = (goal, Some(chosen));
        Ok(evidence)
    }

    pub(super) async fn switch(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let id = self.chosen()?.note.deployment_id.clone();
        self.remote()?.switch_to(&id).await?;
        Ok(format!("{id} is the current release"))
    }

    pub(super) async fn restore_images(&mut self) -> Result<String> {
        let recorded = self.chosen()?.ready.as_ref().map(|ready| ready.images.clone()).unwrap_or_default();
        let moved = self.tags_as_then(&recorded).await?;
        Ok(format!("{} images as they were, {} tags set back", recorded.len(), moved.len()))
    }

    /// Tags each reference as it was when the release was good. Returns the ids of the images that had the
    /// references meanwhile.
    pub(super) async fn tags_as_then(&self, recorded: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let references: Vec<String> = recorded.keys().cloned().collect();
        let remote = self.remote()?;
        let now = remote.image_ids(&references).await?;
        let mut moved = Vec::new();
        for (reference, id) in recorded.iter().filter(|(reference, id)| now.get(*reference) != Some(*id)) {
            if !remote.tag(id, reference).await? {
                return Err(Error::new(
                    ErrorCode::ImageNotFound,
                    format!("the host does not have the image {id} any more, which {reference} was then"),
                )
                .remedy("go back to another release, or deploy anew"));
            }
            moved.extend(now.get(reference).cloned());
        }
        Ok(moved)
    }

    pub fn chosen(&self) -> Result<&crate::StoredRelease> {
        self.chosen.as_ref().ok_or_else(|| Error::internal("a release that was not chosen"))
    }
}
