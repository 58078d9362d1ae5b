//! Drift: differences between a host and its release, caused by manual changes. Drift is reported and not repaired by
//! itself. The next deployment sends changed files again and starts missing containers.

use std::{collections::BTreeSet, fmt};

use super::release::ReleaseManifest;
use crate::model::facts::HostFacts;

/// Limit of reported differences; more add no information.
const SHOWN_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// The content differs from the content that was sent.
    FileChanged,
    FileMissing,
    /// Another file replaced the link to the release's file, and Compose reads that file.
    FileReplaced,
    /// A service of the release does not run.
    ServiceDown,
    /// The service runs another image than the image that was good.
    ImageChanged,
    /// A service of the project that is not part of the release.
    ServiceUnknown,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Drift {
    pub kind: DriftKind,
    /// Name of the file or of the service.
    pub name: String,
    pub detail: String,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, detail, .. } = self;
        match self.kind {
            DriftKind::FileChanged | DriftKind::FileMissing | DriftKind::FileReplaced => {
                write!(f, "file {name} {detail}")
            }
            DriftKind::ServiceDown | DriftKind::ImageChanged | DriftKind::ServiceUnknown => {
                write!(f, "service {name} {detail}")
            }
        }
    }
}

impl Drift {
    pub fn fix(&self) -> &'static str {
        match self.kind {
            DriftKind::FileChanged => {
                "make the change where it is deployed from: this deployment sends the file as it is there"
            }
            DriftKind::FileReplaced => {
                "make the change where it is deployed from: this deployment puts the file of the release back, \
                 and keeps the other one as NAME.edited-N"
            }
            DriftKind::FileMissing => "deploy: the file is sent again",
            DriftKind::ServiceDown => {
                "deploy: it is started again; docker logs on the host says why it ended"
            }
            DriftKind::ImageChanged => {
                "roll back to this release to have the image that was good, or deploy to make this one count"
            }
            DriftKind::ServiceUnknown => {
                "deploy: it is removed; to keep it, run it under a project of its own"
            }
        }
    }
}

/// Returns the drift of a host. Empty if nothing was deployed or nothing differs.
pub fn drift(facts: &HostFacts) -> Vec<Drift> {
    let Some(release) = &facts.release else { return Vec::new() };
    let replaced = facts.replaced.iter().map(|name| Drift {
        kind: DriftKind::FileReplaced,
        name: name.clone(),
        detail: "was replaced on the host by another file".to_owned(),
    });
    let files = replaced.chain(files(release, facts));
    // An engine that does not answer gives no information about its containers.
    if facts.docker_version.is_none() {
        return files.take(SHOWN_MAX).collect();
    }
    files.chain(services(release, facts)).chain(images(facts)).take(SHOWN_MAX).collect()
}

fn files<'a>(release: &'a ReleaseManifest, facts: &'a HostFacts) -> impl Iterator<Item = Drift> + 'a {
    // Without digests from the host, no file counts as changed.
    let asked = release.files.iter().filter(|_| !facts.files.is_empty());
    asked.filter_map(|(name, digest)| {
        let (kind, detail) = match facts.files.get(name) {
            Some(found) if found == digest => return None,
            Some(_) => (DriftKind::FileChanged, "was changed on the host"),
            None => (DriftKind::FileMissing, "is gone from the host"),
        };
        Some(Drift { kind, name: name.clone(), detail: detail.to_owned() })
    })
}

fn services<'a>(release: &'a ReleaseManifest, facts: &'a HostFacts) -> impl Iterator<Item = Drift> + 'a {
    let down = release.services.iter().filter_map(|service| {
        let detail = facts.look.down(service)?;
        Some(Drift { kind: DriftKind::ServiceDown, name: service.clone(), detail })
    });
    let unknown = facts.look.containers.iter().filter(|one| !release.services.contains(&one.service));
    down.chain(unknown.map(|container| Drift {
        kind: DriftKind::ServiceUnknown,
        name: container.service.clone(),
        detail: "is not of the release".to_owned(),
    }))
}

/// Compares the images of running services. Only a good release records the images that it ran.
fn images(facts: &HostFacts) -> impl Iterator<Item = Drift> + '_ {
    let good: Option<BTreeSet<&String>> = facts.ready.as_ref().map(|ready| ready.images.values().collect());
    let release = facts.release.as_ref();
    facts.look.containers.iter().filter_map(move |container| {
        let known = release.is_some_and(|release| release.services.contains(&container.service));
        let changed = good.as_ref().is_some_and(|good| !good.is_empty() && !good.contains(&container.image));
        (known && changed).then(|| Drift {
            kind: DriftKind::ImageChanged,
            name: container.service.clone(),
            detail: format!("runs another image than when the release was good: {}", container.image),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::StackSnapshot, model::release::ReadyRecord};
    use aegis_types::ids::{DeploymentId, NodeId};

    fn line(service: &str, status: &str, exit_code: i64) -> String {
        format!(
            "{{\"id\":\"{service}\",\"service\":\"{service}\",\"status\":\"{status}\",\"health\":\"\",\"exit_code\":{exit_code},\
             \"oom_killed\":false,\"restarts\":0,\"started_at\":\"2026-01-01T00:00:00Z\",\"policy\":\"no\",\"image\":\"x\"}}\n"
        )
    }

    fn facts(files: &[(&str, &str)], containers: &str) -> HostFacts {
        let map = |files: &[(&str, &str)]| {
            files.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
        };
        HostFacts {
            release: Some(ReleaseManifest {
                deployment_id: DeploymentId::mint(1, 1),
                node_id: NodeId::parse("atlas").unwrap(),
                files: map(&[(".env", "1"), ("www/index.html", "2")]),
                services: vec!["web".into(), "once".into()],
                cluster: None,
                goal: None,
            }),
            files: map(files),
            docker_version: Some("26.1.5".into()),
            look: StackSnapshot::parse(containers),
            ..HostFacts::default()
        }
    }

    #[test]
    fn what_is_as_it_was_is_no_drift() {
        let containers = line("web", "running", 0) + &line("once", "exited", 0);
        assert_eq!(drift(&facts(&[(".env", "1"), ("www/index.html", "2")], &containers)), []);
        assert_eq!(drift(&HostFacts::default()), []);
    }

    #[test]
    fn another_image_than_the_good_one_is_drift() {
        let mut facts = facts(&[], &(line("web", "running", 0) + &line("once", "exited", 0)));
        let mark = |id: &str| ReadyRecord { at_ms: 1, images: [("web:1".to_owned(), id.to_owned())].into() };
        facts.ready = Some(mark("x"));
        assert_eq!(drift(&facts), []);
        facts.ready = Some(mark("y"));
        assert!(drift(&facts).iter().all(|drift| drift.kind == DriftKind::ImageChanged));
        assert_eq!(drift(&facts).len(), 2);
    }

    #[test]
    fn an_engine_that_is_away_is_no_drift() {
        let away = HostFacts { docker_version: None, ..facts(&[(".env", "1"), ("www/index.html", "2")], "") };
        assert_eq!(drift(&away), []);
    }

    #[test]
    fn hands_leave_traces() {
        let containers = line("web", "exited", 137) + &line("stray", "running", 0);
        let found = drift(&facts(&[(".env", "other")], &containers));
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "file .env was changed on the host",
                "file www/index.html is gone from the host",
                "service web does not run: exited 137",
                "service once has no container",
                "service stray is not of the release",
            ]
        );
    }
}
