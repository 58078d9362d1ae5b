//! Images of the local engine: their content and their bytes, for deployments.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aegis_types::error::{Error, ErrorCode, Result};
use futures::TryStreamExt as _;
use serde_json::{Map, Value};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::{Engine, cause, refused, status};

/// The engine responds quickly or is absent.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Keys of an image's configuration that affect its containers. Other keys are the engine's own notes, and differ
/// between versions.
const CONFIG_KEYS: [&str; 12] = [
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Shell",
    "Healthcheck",
    "OnBuild",
];

/// Content of an image, which is equal on every engine. Image ids are not, since they depend on how an engine stores
/// images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageContent {
    /// Digests of the layers' uncompressed content, lowest first.
    layers: Vec<String>,
    config: Map<String, Value>,
}

impl ImageContent {
    /// Reads `RootFS` and `Config` from the output of `docker image inspect`.
    pub fn of_inspection(inspection: &Value) -> Option<Self> {
        let layers = inspection["RootFS"]["Layers"].as_array()?;
        let layers = layers.iter().map(|layer| layer.as_str().map(str::to_owned)).collect::<Option<_>>()?;
        let given = inspection["Config"].as_object();
        let value = |key: &str| given.and_then(|given| given.get(key)).and_then(normal);
        let config = CONFIG_KEYS.iter().filter_map(|key| Some(((*key).to_owned(), value(key)?))).collect();
        Some(Self { layers, config })
    }

    /// Returns the SHA-256 in hexadecimal.
    pub fn digest(&self) -> String {
        let text = serde_json::to_vec(&(&self.layers, &self.config)).unwrap_or_default();
        hex::encode(aegis_identity::sha256(&text))
    }
}

/// Normalises a value: empty values are omitted, and sets are equal in every notation.
fn normal(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) if map.is_empty() => None,
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pair = |(key, value): (&String, &Value)| (key.clone(), normal(value).unwrap_or_default());
            Some(Value::Object(pairs.into_iter().map(pair).collect()))
        }
        other => Some(other.clone()),
    }
}

/// Origin of an image, as far as its engine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageOrigin {
    /// Built locally; not in a registry.
    Built,
    /// From a registry.
    Registry,
    /// Unknown: every image of the containerd store has a repository digest, also a local build.
    Unknown,
}

impl ImageOrigin {
    /// Derives the origin. In the older store, the id of an image is the digest of its configuration. A registry knows
    /// the image by the digest of its manifest instead.
    fn new(id: &str, repo_digests: &[String]) -> Self {
        let is_own = |digest: &String| digest.rsplit_once('@').is_some_and(|(_, digest)| digest == id);
        match repo_digests {
            [] => Self::Built,
            digests if digests.iter().any(is_own) => Self::Unknown,
            _ => Self::Registry,
        }
    }
}

/// Image of the local engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    pub content: ImageContent,
    /// Operating system in Docker's notation, such as `linux`; the architecture likewise, such as `amd64`.
    pub os: String,
    pub architecture: String,
    pub origin: ImageOrigin,
    pub bytes: u64,
}

/// Export of an image from the engine.
pub struct Export {
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    pub sent: Arc<AtomicU64>,
    /// Reason of a failure: readers only see the end of the stream.
    pub failure: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Export")
    }
}

impl Engine {
    /// Returns an image; `None` if the engine does not have it.
    pub async fn local_image(&self, reference: &str) -> Result<Option<LocalImage>> {
        let inspect = async {
            self.agree().await?;
            match self.docker.inspect_image(reference).await {
                Ok(found) => Ok(Some(found)),
                Err(e) if status(&e) == Some(404) => Ok(None),
                Err(e) => Err(refused("look for an image", e)),
            }
        };
        let found = tokio::time::timeout(LOOK_LIMIT, inspect)
            .await
            .map_err(|_| Error::new(ErrorCode::Timeout, "the container engine does not answer"))??;
        let Some(found) = found else { return Ok(None) };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (os, architecture) = (text(&found.os), text(&found.architecture));
        let digests = found.repo_digests.as_deref().unwrap_or_default();
        let origin = ImageOrigin::new(&text(&found.id), digests);
        let bytes = u64::try_from(found.size.unwrap_or(0)).unwrap_or(0);
        let inspection = serde_json::to_value(&found)
            .map_err(|e| Error::internal("an image's description cannot be read").source(e))?;
        let content = ImageContent::of_inspection(&inspection);
        Ok(content.map(|content| LocalImage { content, os, architecture, origin, bytes }))
    }

    /// Streams an image in the format of `docker save`.
    pub fn export(&self, reference: &str) -> Export {
        let (sent, failure) = (Arc::new(AtomicU64::new(0)), Arc::new(OnceLock::new()));
        let (count, note) = (sent.clone(), failure.clone());
        let docker = self.docker.clone();
        let pieces = docker.export_image(reference);
        let pieces = pieces
            .inspect_ok(move |piece| {
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            })
            .map_err(move |error| {
                // Only the first failure is recorded; there is no second.
                let _ = note.set(cause(&error));
                io::Error::other(error)
            });
        Export { reader: Box::new(StreamReader::new(Box::pin(pieces))), sent, failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn origin_is_unknown_in_the_containerd_store() {
        let of = |digests: &[&str]| {
            let digests: Vec<String> = digests.iter().map(ToString::to_string).collect();
            ImageOrigin::new("sha256:a", &digests)
        };
        assert_eq!(of(&[]), ImageOrigin::Built);
        assert_eq!(of(&["app@sha256:b"]), ImageOrigin::Registry);
        assert_eq!(of(&["other@sha256:b", "app@sha256:a"]), ImageOrigin::Unknown);
    }

    #[test]
    fn engines_of_different_versions_say_the_same_image() {
        let old = json!({
            "RootFS": { "Type": "layers", "Layers": ["sha256:a", "sha256:b"] },
            "Config": { "Hostname": "5f2", "Image": "sha256:0", "Cmd": ["sh"], "Env": ["A=1"], "User": "",
                        "Volumes": null, "Labels": { "b": "2", "a": "1" }, "ExposedPorts": { "80/tcp": {} } },
        });
        let new = json!({
            "RootFS": { "Layers": ["sha256:a", "sha256:b"] },
            "Config": { "Cmd": ["sh"], "Env": ["A=1"], "Labels": { "a": "1", "b": "2" },
                        "ExposedPorts": { "80/tcp": {} } },
        });
        let content = |value: &Value| ImageContent::of_inspection(value).unwrap();
        assert_eq!(content(&old), content(&new));
        assert_eq!(content(&old).digest(), content(&new).digest());
        for (pointer, value) in [
            ("/Config/Cmd", json!(["ash"])),
            ("/Config/Env", json!(["A=2"])),
            ("/RootFS/Layers", json!(["sha256:a"])),
        ] {
            let mut other = new.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert_ne!(content(&other), content(&new), "{pointer}");
        }
        assert_eq!(ImageContent::of_inspection(&json!({})), None);
    }
}
