//! Images of the controller's own engine, sent to a host over the connection without a registry.
//!
//! An image that was built here, or that the request names, is pushed if the host lacks it or has other content under
//! its name. An image from a registry is pulled by the host, and pushed only if the pull fails. An engine with the
//! containerd store does not reveal an image's origin. Such an image is pushed if the host has other content under its
//! name. An image named by digest is always pulled, since a loaded image has no registry digest.
//!
//! Not done on purpose: skipping layers that the host has. The stream is forwarded as it comes, and skipping layers
//! would require parsing it.

use std::collections::{BTreeMap, BTreeSet};

use aegis_engine::{Engine, ImageContent, ImageOrigin, LocalImage};

use crate::model::{
    facts::HostFacts,
    finding::{Finding, Severity},
    plan::ImageAction,
};

/// Local images of a deployment, each with the content that the host has under its name.
#[derive(Debug, Clone, Default)]
pub struct LocalImages {
    images: BTreeMap<String, Candidate>,
    /// Image that the request names.
    named: Option<String>,
    /// Images that the host pulls even if it has an image of that name.
    always_pulled: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Candidate {
    local: LocalImage,
    on_host: Option<ImageContent>,
}

impl LocalImages {
    /// Finds the local images. An engine that is absent or does not answer yields an empty set.
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
        Self { images, named: named.map(str::to_owned), always_pulled: BTreeSet::new() }
    }

    #[must_use]
    pub fn with_always_pulled(self, always_pulled: BTreeSet<String>) -> Self {
        Self { always_pulled, ..self }
    }

    /// Removes images of unknown origin that the host cannot run: the host's own image of another platform differs.
    #[must_use]
    pub fn without_unfit(mut self, facts: &HostFacts) -> Self {
        let named = self.named.clone();
        self.images.retain(|reference, Candidate { local, .. }| {
            local.origin != ImageOrigin::Unknown || fits(local, facts) || named.as_ref() == Some(reference)
        });
        self
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

    /// Returns how the image gets to the host. `present`: the host has an image under this name.
    pub fn action(&self, reference: &str, present: bool) -> ImageAction {
        let is_pulled = !present || self.always_pulled.contains(reference);
        let otherwise = if is_pulled { ImageAction::Pull } else { ImageAction::Present };
        let Some(Candidate { local, on_host }) = self.images.get(reference) else { return otherwise };
        let is_named = self.named.as_deref() == Some(reference);
        match (local.origin, on_host) {
            (ImageOrigin::Registry, _) if !is_named => otherwise,
            (ImageOrigin::Unknown, None) if !is_named => otherwise,
            (ImageOrigin::Unknown, Some(_)) if !is_named && is_pulled => otherwise,
            (_, Some(content)) if *content == local.content => ImageAction::Present,
            _ => ImageAction::Push,
        }
    }

    /// Returns the findings about images that are to be pushed.
    pub fn findings(&self, facts: &HostFacts) -> Vec<Finding> {
        let pushed = self.images.iter().filter(|(reference, _)| {
            self.action(reference, facts.images.contains(*reference)) == ImageAction::Push
        });
        let misfits = pushed.filter_map(|(reference, candidate)| misfit(reference, &candidate.local, facts));
        let differing = self.images.iter().filter_map(|(reference, candidate)| {
            let action = self.action(reference, facts.images.contains(reference));
            self.difference(reference, candidate, action)
        });
        misfits.chain(differing).collect()
    }

    /// Returns a warning if the host has other content under the name and the request names no source.
    fn difference(&self, reference: &str, candidate: &Candidate, action: ImageAction) -> Option<Finding> {
        let Candidate { local, on_host } = candidate;
        let differs = on_host.as_ref().is_some_and(|content| *content != local.content);
        let is_meant = local.origin == ImageOrigin::Built || self.named.as_deref() == Some(reference);
        if !differs || is_meant {
            return None;
        }
        let (message, fix) = match action {
            ImageAction::Push => (
                format!(
                    "the host has another image under {reference} than this machine, whose engine does not tell \
                     whether it was built here: this machine's will be sent"
                ),
                format!("to have the registry's, run on this machine: docker pull {reference}"),
            ),
            ImageAction::Present => (
                format!("the host has another image under {reference} than this machine, and keeps it"),
                format!(
                    "to have the registry's, set pull_policy: always; to send this machine's, name {reference} as `image`"
                ),
            ),
            ImageAction::Pull | ImageAction::Load => return None,
        };
        Some(Finding { code: "image_differs".to_owned(), severity: Severity::Warning, message, fix })
    }
}

/// Returns whether the host can run the image.
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

/// Translates `uname -m` to Docker's name of the architecture.
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
    use aegis_engine::ImageOrigin::{Built, Registry, Unknown};

    fn content(layer: &str) -> ImageContent {
        ImageContent::of_inspection(&json!({ "RootFS": { "Layers": [layer] } })).unwrap()
    }

    fn images(origin: ImageOrigin, on_host: Option<&str>, named: Option<&str>) -> LocalImages {
        let local = LocalImage {
            content: content("a"),
            os: "linux".into(),
            architecture: "arm64".into(),
            origin,
            bytes: 1,
        };
        let candidate = Candidate { local, on_host: on_host.map(content) };
        LocalImages {
            images: BTreeMap::from([("x:1".to_owned(), candidate)]),
            named: named.map(str::to_owned),
            always_pulled: BTreeSet::new(),
        }
    }

    #[test]
    fn what_is_meant_is_sent_when_the_host_lacks_it_or_has_another() {
        use ImageAction::{Present, Pull, Push};
        let none = LocalImages::default();
        assert_eq!((none.action("x:1", true), none.action("x:1", false)), (Present, Pull));
        for (origin, named, on_host, expected) in [
            (Built, None, None, Push),
            (Built, None, Some("a"), Present),
            (Built, None, Some("b"), Push),
            (Registry, None, None, Pull),
            (Registry, None, Some("b"), Present),
            (Registry, Some("x:1"), None, Push),
            (Registry, Some("x:1"), Some("a"), Present),
            (Registry, Some("x:1"), Some("b"), Push),
            (Registry, Some("y:1"), None, Pull),
            (Unknown, None, None, Pull),
            (Unknown, None, Some("a"), Present),
            (Unknown, None, Some("b"), Push),
        ] {
            let action = images(origin, on_host, named).action("x:1", on_host.is_some());
            assert_eq!(action, expected, "{origin:?} {named:?} {on_host:?}");
        }
    }

    #[test]
    fn image_of_another_content_is_never_kept_in_silence() {
        let facts = HostFacts {
            os: "Linux".into(),
            arch: "aarch64".into(),
            images: ["x:1".to_owned()].into(),
            ..HostFacts::default()
        };
        let codes = |origin, named, on_host| -> Vec<String> {
            images(origin, Some(on_host), named).findings(&facts).into_iter().map(|one| one.code).collect()
        };
        let other = HostFacts { arch: "x86_64".into(), ..facts.clone() };
        let unfit = images(Unknown, Some("b"), None).without_unfit(&other);
        assert_eq!((unfit.action("x:1", true), unfit.findings(&other)), (ImageAction::Present, Vec::new()));
        for origin in [Unknown, Registry] {
            assert_eq!(codes(origin, None, "b"), ["image_differs"]);
            assert!(codes(origin, None, "a").is_empty() && codes(origin, Some("x:1"), "b").is_empty());
        }
        assert!(codes(Built, None, "b").is_empty());
    }

    #[test]
    fn always_pulled_image_is_pulled_though_present() {
        let always = |origin, on_host| {
            let images = images(origin, Some(on_host), None);
            images.with_always_pulled(["x:1".to_owned()].into()).action("x:1", true)
        };
        assert_eq!(always(Registry, "a"), ImageAction::Pull);
        assert_eq!(always(Unknown, "b"), ImageAction::Pull);
        assert_eq!(always(Built, "b"), ImageAction::Push);
        let absent = LocalImages::default().with_always_pulled(["y".to_owned()].into());
        assert_eq!(
            (absent.action("y", true), absent.action("z", true)),
            (ImageAction::Pull, ImageAction::Present)
        );
    }

    #[test]
    fn pushed_image_of_another_platform_is_a_finding() {
        let host = |arch: &str| HostFacts { os: "Linux".into(), arch: arch.into(), ..HostFacts::default() };
        let found = images(Built, None, None).findings(&host("x86_64"));
        assert_eq!(found[0].code, "image_platform");
        assert!(found[0].message.contains("linux/arm64") && found[0].fix.contains("linux/amd64"));
        assert!(images(Built, None, None).findings(&host("aarch64")).is_empty());
        assert!(images(Registry, None, None).findings(&host("x86_64")).is_empty());
    }
}
