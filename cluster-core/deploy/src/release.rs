//! Release: the files of one deployment in one directory on the host, with a note that names their owner. If the
//! digests are equal, nothing is sent or switched.
//!
//! Files that an operator's compose file names are links in the release: see `stack::Bundle`.

use std::collections::{BTreeMap, BTreeSet};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{DeploymentId, NodeId},
};

use super::{
    env_file::EnvFile,
    hex_digest,
    stack::{Bundle, Root, Stack},
};
use crate::{
    StoredRelease,
    model::release::{
        COMPOSE_FILE, CONFIG_FILE, ENV_FILE, OPERATOR_FILE, OVERRIDE_FILE, ReleaseContents, ReleaseManifest,
    },
};

/// Selects the target of a rollback: the named release, or the newest good release made before the current one. A
/// second rollback therefore goes one release further back, and never to the release just left.
///
/// `joins` states whether the release has to run a node, or must not.
pub fn choose<'a>(
    releases: &'a [StoredRelease],
    to: Option<&DeploymentId>,
    joins: bool,
) -> Result<&'a StoredRelease> {
    let current = releases.iter().find(|release| release.current);
    let names = || {
        let mut good: Vec<&StoredRelease> =
            releases.iter().filter(|release| release.ready.is_some() && !release.current).collect();
        good.sort_by_key(|release| std::cmp::Reverse(release.note.deployment_id.made()));
        good
    };
    let before = || {
        let older = |release: &&StoredRelease| {
            current
                .is_none_or(|current| release.note.deployment_id.made() < current.note.deployment_id.made())
        };
        names().into_iter().find(older)
    };
    let refuse = |why: String| {
        let kept: Vec<String> =
            names().iter().map(|release| release.note.deployment_id.to_string()).collect();
        let remedy = match kept.is_empty() {
            true => "the host keeps no other good release; deploy what you want to run".to_owned(),
            false => format!("releases that can be gone back to: {}", kept.join(", ")),
        };
        Err(Error::new(ErrorCode::FailedPrecondition, why).remedy(remedy))
    };
    let chosen = match to {
        None => match before() {
            Some(newest) => newest,
            None => return refuse("there is no earlier good release on the host".to_owned()),
        },
        Some(id) => match releases.iter().find(|release| release.note.deployment_id == *id) {
            None => return refuse(format!("the host keeps no release {id}")),
            Some(release) if release.ready.is_none() => {
                return refuse(format!("release {id} was never good"));
            }
            Some(release) => release,
        },
    };
    match &chosen.note.goal {
        Some(goal) if goal.node.is_some() == joins => Ok(chosen),
        Some(goal) if goal.node.is_some() => {
            refuse(format!("release {} runs a node, and the stack has none now", chosen.note.deployment_id))
        }
        Some(_) => refuse(format!("release {} runs no node of ours", chosen.note.deployment_id)),
        None => refuse(format!("release {} was written by an earlier version", chosen.note.deployment_id)),
    }
}

/// Files of a release before they are sent. `.env` may hold a secret, so `Debug` shows names only.
#[derive(Clone)]
pub struct ReleaseFiles {
    files: BTreeMap<&'static str, Vec<u8>>,
    bundle: Bundle,
    /// Digests of roots whose content on the host was changed by hand.
    changed_by_hand: BTreeSet<String>,
}

impl std::fmt::Debug for ReleaseFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.files.keys()).entries(self.bundle.roots()).finish()
    }
}

/// Returns the compose files of a stack in the order in which Compose reads them. The generated override comes last.
pub fn compose_files(stack: &Stack) -> Vec<&'static str> {
    let mut files = vec![COMPOSE_FILE];
    files.extend(stack.operator_override.is_some().then_some(OPERATOR_FILE));
    files.extend(stack.override_file.is_some().then_some(OVERRIDE_FILE));
    files
}

impl ReleaseFiles {
    /// Collects the files. `config` is `None` for a stack without a node.
    pub fn new(stack: &Stack, env: &EnvFile, config: Option<&str>, bundle: Bundle) -> Self {
        let mut files = BTreeMap::from([(ENV_FILE, env.render().into_bytes())]);
        let mut put = |name, text: Option<&str>| {
            if let Some(text) = text {
                files.insert(name, text.as_bytes().to_vec());
            }
        };
        put(COMPOSE_FILE, Some(&stack.compose));
        put(OPERATOR_FILE, stack.operator_override.as_deref());
        put(OVERRIDE_FILE, stack.override_file.as_deref());
        put(CONFIG_FILE, config);
        Self { files, bundle, changed_by_hand: BTreeSet::new() }
    }

    /// Marks the bundle roots that contain `files` for re-upload, since the host has other content.
    #[must_use]
    pub fn repairing(mut self, files: &BTreeSet<&str>) -> Self {
        let roots = self.bundle.read_only().filter(|root| root.holds_any(files));
        self.changed_by_hand = roots.map(Root::digest).collect();
        self
    }

    /// Returns whether a file lies in a directory that a container may write to.
    pub fn is_of_containers(&self, name: &str) -> bool {
        self.bundle.writable().any(|root| root.holds(name))
    }

    pub fn was_changed_by_hand(&self, digest: &str) -> bool {
        self.changed_by_hand.contains(digest)
    }

    /// Adds a file to the release.
    #[must_use]
    pub fn with(mut self, name: &'static str, content: Vec<u8>) -> Self {
        self.files.insert(name, content);
        self
    }

    /// Returns the content of [`PRIVATE_FILE`](crate::model::release::PRIVATE_FILE); `None` if the stack has no private files.
    pub fn private_list(&self) -> Option<Vec<u8>> {
        let names = self.bundle.private();
        (!names.is_empty()).then(|| names.join("\n").into_bytes()).map(|mut text| {
            text.push(b'\n');
            text
        })
    }

    /// Returns the files that are written into the release directory itself.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, content)| (*name, content.as_slice()))
    }

    /// Returns the files that the release links to.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    pub fn digests(&self) -> BTreeMap<String, String> {
        let own = self.files.iter().map(|(name, content)| ((*name).to_owned(), hex_digest(content)));
        own.chain(self.bundle.digests()).collect()
    }

    pub fn note(
        &self,
        deployment: &DeploymentId,
        node: &NodeId,
        cluster: &str,
        goal: &ReleaseContents,
    ) -> Result<Vec<u8>> {
        let note = ReleaseManifest {
            deployment_id: deployment.clone(),
            node_id: node.clone(),
            files: self.digests(),
            services: goal.services.clone(),
            cluster: Some(cluster.to_owned()),
            goal: Some(goal.clone()),
        };
        serde_json::to_vec(&note)
            .map_err(|error| Error::internal("a release note cannot be written").source(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::release::NodeService;
    use crate::model::release::ReadyRecord;

    fn release(number: u64, ready_at_ms: Option<i64>, current: bool) -> StoredRelease {
        let node = NodeService { service: "node".into(), port: 8090, image: "n:1".into() };
        let note = ReleaseManifest {
            deployment_id: DeploymentId::mint(1, number),
            node_id: NodeId::parse("a").unwrap(),
            files: BTreeMap::new(),
            services: Vec::new(),
            cluster: None,
            goal: Some(ReleaseContents { node: Some(node), ..ReleaseContents::default() }),
        };
        let ready = ready_at_ms.map(|at_ms| ReadyRecord { at_ms, images: BTreeMap::new() });
        StoredRelease { note, ready, current }
    }

    #[test]
    fn second_rollback_goes_one_release_further_back() {
        // Each rollback sets the time of the mark of its release.
        let at = |current: u64| {
            (1..=4)
                .map(|number| {
                    release(
                        number,
                        Some(if number == current { 99 } else { number.cast_signed() }),
                        number == current,
                    )
                })
                .collect::<Vec<_>>()
        };
        let id = |number| DeploymentId::mint(1, number);
        let next =
            |current| choose(&at(current), None, true).map(|release| release.note.deployment_id.clone());
        assert_eq!(next(4).unwrap(), id(3));
        assert_eq!(next(3).unwrap(), id(2), "not to the one just left");
        assert_eq!(next(2).unwrap(), id(1));
        let error = next(1).unwrap_err();
        assert!(error.message().contains("no earlier good release"), "{error}");
        assert!(error.remedy_text().unwrap().contains(id(4).as_str()), "later ones can be named: {error:?}");
    }

    #[test]
    fn rollback_chooses_named_or_newest_good_earlier_release() {
        let kept = [
            release(1, Some(10), false),
            release(2, Some(20), false),
            release(3, None, false),
            release(4, Some(40), true),
        ];
        let id = |number| DeploymentId::mint(1, number);
        assert_eq!(choose(&kept, None, true).unwrap().note.deployment_id, id(2));
        assert_eq!(choose(&kept, Some(&id(1)), true).unwrap().note.deployment_id, id(1));
        let never_good = choose(&kept, Some(&id(3)), true).unwrap_err();
        assert!(never_good.remedy_text().unwrap().contains(id(2).as_str()), "{never_good:?}");
        assert!(choose(&kept, Some(&id(9)), true).is_err());
        assert!(choose(&kept[3..], None, true).is_err(), "the current one is not gone back to");
        let mut bare = release(5, Some(50), false);
        bare.note.goal = Some(ReleaseContents::default());
        assert!(choose(&[bare], None, true).unwrap_err().message().contains("runs no node"));
        let mut old = release(5, Some(50), false);
        old.note.goal = None;
        assert!(choose(&[old], None, true).unwrap_err().message().contains("earlier version"));
    }
}
