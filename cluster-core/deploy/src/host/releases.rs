//! Releases that a host keeps: which exist, which is current, and which were good.

use std::collections::BTreeMap;

use aegis_types::{
    error::{Error, Result},
    ids::DeploymentId,
};

use super::{
    super::health::{CONTAINER_FORMAT, StackSnapshot},
    CLEAN_UP_TIMEOUT, HostSession, SHORT, checked,
};
use crate::{
    host::scripts,
    model::{
        project::PROJECT,
        release::{NOTE_FILE, READY_FILE, ReadyRecord, ReleaseManifest, StoredRelease},
    },
};

/// Notes above this size are read one by one, since the output of a script is bounded.
const NOTE_BYTES_TOGETHER: &str = "65536";
/// Number of releases to keep, newest first, whether good or not. The current release always stays.
const RELEASES_KEPT: &str = "5";

/// State of a release on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub current: Option<DeploymentId>,
    /// All files of the release are present.
    pub complete: bool,
    /// The project has containers. Checked only if there is no current release.
    pub has_containers: bool,
}

/// Snapshot of a stack before it counts as good.
#[derive(Debug)]
pub struct LastLook {
    pub look: StackSnapshot,
    pub current: Option<DeploymentId>,
    /// Image ids by reference; absent images are left out.
    pub images: BTreeMap<String, String>,
}

impl HostSession<'_> {
    /// Reads the snapshot in one round trip.
    pub async fn last_look(&self, references: &[String]) -> Result<LastLook> {
        let mut arguments = vec![PROJECT, CONTAINER_FORMAT, self.base];
        arguments.extend(references.iter().map(String::as_str));
        let output = self.run("look at the stack once more", scripts::LAST_LOOK, &arguments, SHORT).await?;
        let current = output.stdout.lines().find_map(|line| line.strip_prefix("current="));
        let images = output.stdout.lines().filter_map(|line| line.strip_prefix("image=")?.split_once(' '));
        Ok(LastLook {
            look: StackSnapshot::parse(&output.stdout),
            current: current.map(DeploymentId::parse).transpose()?,
            images: images.map(|(id, reference)| (reference.to_owned(), id.to_owned())).collect(),
        })
    }

    pub async fn standing(&self, release: &DeploymentId) -> Result<Standing> {
        let arguments = [self.base, release.as_str(), NOTE_FILE, PROJECT];
        let output = self.run("look at the releases", scripts::STANDING, &arguments, SHORT).await?;
        let value = |name: &str| output.stdout.lines().find_map(|line| line.strip_prefix(name));
        Ok(Standing {
            current: value("current=").map(DeploymentId::parse).transpose()?,
            complete: value("complete=").is_some(),
            has_containers: value("container=").is_some(),
        })
    }

    /// Returns the releases that have a note; an incomplete release has no note.
    pub async fn kept(&self) -> Result<Vec<StoredRelease>> {
        let arguments = [self.base, NOTE_FILE, READY_FILE, NOTE_BYTES_TOGETHER];
        let output = self.run("look at the releases", scripts::KEPT, &arguments, SHORT).await?;
        let mut text = String::new();
        for line in output.stdout.lines() {
            match line.strip_prefix("large=") {
                Some(release) => {
                    let arguments = [self.base, release, NOTE_FILE];
                    let note = self.run("read a release note", scripts::READ_NOTE, &arguments, SHORT).await?;
                    text.push_str(&format!("note={}\n", note.stdout));
                }
                None => text.push_str(&format!("{line}\n")),
            }
        }
        Ok(read_kept(&text))
    }

    /// Marks a release as good. `brought` are ids of images that were fetched for it. A later clean-up removes them
    /// once no kept release needs them.
    pub async fn mark(&self, release: &DeploymentId, mark: &ReadyRecord, brought: &[&str]) -> Result<()> {
        let mark = serde_json::to_string(mark)
            .map_err(|error| Error::internal("a mark cannot be written").source(error))?;
        let mut arguments = vec![self.base, release.as_str(), READY_FILE, &mark];
        arguments.extend(brought);
        self.run("mark the release as good", scripts::MARK, &arguments, SHORT).await.map(drop)
    }

    /// Removes releases older than the last five, with the content and images that only they need.
    pub async fn clean_up(&self) -> Result<()> {
        let arguments = [self.base, READY_FILE, RELEASES_KEPT];
        self.run("clean up old releases", scripts::CLEAN_UP, &arguments, CLEAN_UP_TIMEOUT).await.map(drop)
    }

    /// Makes the owner of a link reconnect after it lost its socket to this session.
    pub async fn free_session(&self) -> Result<()> {
        let note = format!("{}/run/link.session.other", self.base);
        self.run("give the socket back", scripts::FREE_SESSION, &[&note], SHORT).await.map(drop)
    }

    pub async fn drop_release(&self, release: &DeploymentId) -> Result<()> {
        let output =
            self.connection.script(scripts::DROP_RELEASE, &[self.base, release.as_str()], SHORT).await?;
        checked(output, "remove the failed release").map(drop)
    }

    /// Returns image ids by reference; absent images are left out.
    pub async fn image_ids(&self, references: &[String]) -> Result<BTreeMap<String, String>> {
        let arguments: Vec<&str> = references.iter().map(String::as_str).collect();
        let output = self.run("look for images", scripts::IMAGE_IDS, &arguments, SHORT).await?;
        let pairs = output.stdout.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs.map(|(id, reference)| (reference.to_owned(), id.to_owned())).collect())
    }

    /// Restores the tag of an image. Returns `false` if the image no longer exists.
    pub async fn tag(&self, id: &str, reference: &str) -> Result<bool> {
        Ok(self.connection.script(scripts::TAG, &[id, reference], SHORT).await?.success())
    }
}

fn read_kept(text: &str) -> Vec<StoredRelease> {
    let mut kept: Vec<StoredRelease> = Vec::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        match name {
            "note" => {
                kept.extend(serde_json::from_str::<ReleaseManifest>(value).ok().map(|note| StoredRelease {
                    note,
                    ready: None,
                    current: false,
                }))
            }
            "ready" => {
                if let Some((id, mark)) = value.split_once('=')
                    && let Some(release) = kept.iter_mut().find(|one| one.note.deployment_id.as_str() == id)
                {
                    release.ready = serde_json::from_str(mark).ok();
                }
            }
            "current" => {
                kept.iter_mut().for_each(|one| one.current = one.note.deployment_id.as_str() == value);
            }
            _ => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_releases_are_read_and_nonsense_is_none() {
        let note = |number| {
            format!(
                r#"{{"deployment_id":"{}","node_id":"a","files":{{}},"services":[]}}"#,
                DeploymentId::mint(1, number)
            )
        };
        let (one, two) = (DeploymentId::mint(1, 1), DeploymentId::mint(1, 2));
        let text = format!(
            "note={}\nready={one}={{\"at_ms\":7,\"images\":{{\"a:1\":\"sha256:x\"}}}}\nnote={}\nnote={{\ncurrent={two}\n",
            note(1),
            note(2)
        );
        let kept = read_kept(&text);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].ready.as_ref().unwrap().images["a:1"], "sha256:x");
        assert!(kept[1].current && kept[1].ready.is_none() && !kept[0].current);
        assert!(read_kept("").is_empty());
    }
}
