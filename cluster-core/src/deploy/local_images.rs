//! Images of the controller's own engine, which reach a host over the connection: no registry is needed.
//!
//! One that was built here, or that the request itself names, is the one that is meant: the host gets it
//! when it lacks it, or has another one under that name. One that a registry knows is the host's to pull,
//! and is sent only when it cannot. What is named by digest is its registry's: a loaded image has none.
//!
//! Deliberately absent: leaving out layers that the host has. A stream is passed on as it comes, and who
//! wants to leave layers out must take it apart.

use std::collections::BTreeMap;

use super::{
    checks::HostFacts,
    findings::{Finding, Severity},
    plan::ImageAction,
};
use crate::engine::{Engine, ImageContent, LocalImage};

/// Those of a deployment's images that lie here, each with what the host has under its name.
#[derive(Debug, Clone, Default)]
pub struct LocalImages {
    images: BTreeMap<String, Candidate>,
    /// What the request names.
    named: Option<String>,
}

#[derive(Debug, Clone)]
struct Candidate {
    local: LocalImage,
    on_host: Option<ImageContent>,
}

impl LocalImages {
    /// An engine that is absent or does not answer has none.
    pub async fn find(engine: Option<&Engine>, references: &[String], named: Option<&str>) -> Self {
        let mut images = BTreeMap::new();
        let Some(engine) = engine else { return Self::default() };
        for reference in references.iter().filter(|reference| !reference.contains('@')) {
            match engine.local_image(reference).await {
                Ok(Some(local)) => {
                    images.insert(reference.clone(), Candidate { local, on_host: None });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "no images of this machine's engine are offered");
                    return Self::default();
                }
            }
        }
        Self { images, named: named.map(str::to_owned) }
    }

    pub fn references(&self) -> Vec<String> {
        self.images.keys().cloned().collect()
    }

    pub fn get(&self, reference: &str) -> Option<&LocalImage> {
        self.images.get(reference).map(|candidate| &candidate.local)
    }

    #[must_use]
    pub fn with_host(mut self, mut contents: BTreeMap<String, ImageContent>) -> Self {
        for (reference, candidate) in &mut self.images {
            candidate.on_host = contents.remove(reference);
        }
        self
    }

    /// `present`: the host has something under this name.
    pub fn action(&self, reference: &str, present: bool) -> ImageAction {
        let otherwise = if present { ImageAction::Present } else { ImageAction::Pull };
        let Some(Candidate { local, on_host }) = self.images.get(reference) else { return otherwise };
        let meant = !local.from_registry || self.named.as_deref() == Some(reference);
        match (meant, on_host) {
            (false, _) => otherwise,
            (true, Some(content)) if *content == local.content => ImageAction::Present,
            (true, _) => ImageAction::Push,
        }
    }

    /// Of those that are to be sent.
    pub fn findings(&self, facts: &HostFacts) -> Vec<Finding> {
        let pushed = self.images.iter().filter(|(reference, _)| {
            self.action(reference, facts.images.contains(*reference)) == ImageAction::Push
        });
        pushed.filter_map(|(reference, candidate)| misfit(reference, &candidate.local, facts)).collect()
    }
}

/// Whether the host can run it.
pub fn fits(local: &LocalImage, facts: &HostFacts) -> bool {
    local.os == facts.os.to_ascii_lowercase() && local.architecture == architecture(&facts.arch)
}

fn misfit(reference: &str, local: &LocalImage, facts: &HostFacts) -> Option<Finding> {
    (!fits(local, facts)).then(|| Finding {
        code: "image_platform".to_owned(),
        severity: Severity::Error,
        message: format!(
            "the image {reference} of this machine is for {}/{}, the host is {}/{}",
            local.os,
            local.architecture,
            facts.os.to_ascii_lowercase(),
            architecture(&facts.arch)
        ),
        fix: format!(
            "build it for the host: docker build --platform {}/{} -t {reference} …",
            facts.os.to_ascii_lowercase(),
            architecture(&facts.arch)
        ),
    })
}

/// Docker's name of what `uname -m` says.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn content(layer: &str) -> ImageContent {
        ImageContent::of_inspection(&json!({ "RootFS": { "Layers": [layer] } })).unwrap()
    }

    fn images(from_registry: bool, on_host: Option<&str>, named: Option<&str>) -> LocalImages {
        let local = LocalImage {
            content: content("a"),
            os: "linux".into(),
            architecture: "arm64".into(),
            from_registry,
            bytes: 1,
        };
        let candidate = Candidate { local, on_host: on_host.map(content) };
        LocalImages {
            images: BTreeMap::from([("x:1".to_owned(), candidate)]),
            named: named.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_meant_is_sent_when_the_host_lacks_it_or_has_another() {
        use ImageAction::{Present, Pull, Push};
        let none = LocalImages::default();
        assert_eq!((none.action("x:1", true), none.action("x:1", false)), (Present, Pull));
        for (from_registry, named, on_host, expected) in [
            (false, None, None, Push),
            (false, None, Some("a"), Present),
            (false, None, Some("b"), Push),
            (true, None, None, Pull),
            (true, None, Some("b"), Present),
            (true, Some("x:1"), None, Push),
            (true, Some("x:1"), Some("a"), Present),
            (true, Some("x:1"), Some("b"), Push),
            (true, Some("y:1"), None, Pull),
        ] {
            let action = images(from_registry, on_host, named).action("x:1", on_host.is_some());
            assert_eq!(action, expected, "{from_registry} {named:?} {on_host:?}");
        }
    }

    #[test]
    fn an_image_for_another_machine_is_a_finding_where_it_would_be_sent() {
        let host = |arch: &str| HostFacts { os: "Linux".into(), arch: arch.into(), ..HostFacts::default() };
        let found = images(false, None, None).findings(&host("x86_64"));
        assert_eq!(found[0].code, "image_platform");
        assert!(found[0].message.contains("linux/arm64") && found[0].fix.contains("linux/amd64"));
        assert!(images(false, None, None).findings(&host("aarch64")).is_empty());
        assert!(images(true, None, None).findings(&host("x86_64")).is_empty());
    }
}
