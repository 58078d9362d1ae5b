//! Images that executions of this worker brought, and which of them are removed for room.
//!
//! The worker records each image that it pulled or was sent, with the time of its last use, in `images.json` of its
//! data directory. An image that the engine already had is never recorded, and so is never removed. A worker that dies
//! between a pull and its record leaves an image that counts as the operator's.

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use aegis_engine::{Engine, ImageId};
use aegis_fs::write_synced_elsewhere;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::space::{Disk, ImageBounds};

const IMAGES_FILE: &str = "images.json";
/// An image that was used more recently stays: an order that was just found to have its image begins within this time.
const IDLE_MIN_MS: i64 = 60_000;
/// A use this close to the recorded one is not written: the order of removal needs no more.
const USE_WRITTEN_AFTER_MS: i64 = 10_000;
/// Entries of the record; beyond them the least recently used entry is forgotten, and its image stays.
const BROUGHT_MAX: usize = 1000;

/// An image that an execution of this worker brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Brought {
    /// The reference that executions name.
    pub reference: String,
    /// The engine's id of the image: another image may get the same reference later.
    pub id: String,
    pub bytes: u64,
    pub used_ms: i64,
}

/// Chooses the image to remove next, if any.
///
/// The sizes are those of whole images: layers that images share count for each of them, so that the share is
/// reached early rather than late.
pub(super) fn choose_image(
    images: &[Brought],
    is_needed: impl Fn(&Brought) -> bool,
    disk: Disk,
    bounds: ImageBounds,
    now_ms: i64,
) -> Option<&Brought> {
    let sum = images.iter().fold(0_u64, |sum, image| sum.saturating_add(image.bytes));
    if sum <= bounds.bytes_max && disk.free >= bounds.free_min {
        return None;
    }
    let is_idle = |image: &&Brought| now_ms.saturating_sub(image.used_ms) >= IDLE_MIN_MS;
    images.iter().filter(is_idle).filter(|image| !is_needed(image)).min_by_key(|image| image.used_ms)
}

/// The record of brought images. Its lock is held while an image is removed, so that an order that needs the image
/// waits and then finds it gone.
#[derive(Debug)]
pub(super) struct Images {
    path: PathBuf,
    engine: Engine,
    brought: Mutex<Vec<Brought>>,
}

impl Images {
    pub fn open(data: &Path, engine: Engine) -> Result<Self> {
        let path = data.join(IMAGES_FILE);
        let mut brought: Vec<Brought> = match fs::read(&path) {
            // A damaged record only means that its images stay.
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(%error, path = %path.display(), "the record of images is damaged: its images stay");
                Vec::new()
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unreadable(&path, error)),
        };
        // A clock that was ahead must not make an image the newest for years.
        let now = now_ms();
        brought.iter_mut().for_each(|image| image.used_ms = image.used_ms.min(now));
        Ok(Self { path, engine, brought: Mutex::new(brought) })
    }

    /// Notes a use of an image, before the engine is asked whether the image is there.
    pub async fn used(&self, reference: &str) {
        let mut brought = self.brought.lock().await;
        let now = now_ms();
        let mut is_stale = false;
        for image in brought.iter_mut().filter(|image| image.reference == reference) {
            is_stale |= now.saturating_sub(image.used_ms) >= USE_WRITTEN_AFTER_MS;
            image.used_ms = now;
        }
        if is_stale {
            self.write(&brought).await;
        }
    }

    /// Records an image that was pulled or loaded for an execution just now.
    pub async fn brought(&self, reference: &str) -> Result<()> {
        let mut brought = self.brought.lock().await;
        let Some(ImageId { id, bytes }) = self.engine.image_id(reference).await? else { return Ok(()) };
        brought.retain(|image| image.reference != reference || image.id != id);
        brought.push(Brought { reference: reference.to_owned(), id, bytes, used_ms: now_ms() });
        while brought.len() > BROUGHT_MAX {
            let oldest = brought.iter().enumerate().min_by_key(|(_, image)| image.used_ms);
            let Some((place, _)) = oldest else { break };
            brought.swap_remove(place);
        }
        self.write(&brought).await;
        Ok(())
    }

    /// Removes one image where the bounds do not hold and one may be removed. Returns whether to look again.
    /// `waited_for` returns the references that accepted orders need.
    pub async fn evict_one(
        &self,
        waited_for: impl Fn() -> HashSet<String>,
        disk: Disk,
        bounds: ImageBounds,
        now_ms: i64,
    ) -> Result<bool> {
        let mut brought = self.brought.lock().await;
        // The engine is asked only where something could go.
        if choose_image(&brought, |_| false, disk, bounds, now_ms).is_none() {
            return Ok(false);
        }
        let (waited_for, used) = (waited_for(), self.engine.images_in_use().await?);
        let is_needed = |image: &Brought| waited_for.contains(&image.reference) || used.contains(&image.id);
        let Some(chosen) = choose_image(&brought, is_needed, disk, bounds, now_ms).cloned() else {
            return Ok(false);
        };
        match self.engine.remove_image(&chosen.reference, &chosen.id).await {
            Ok(()) => {
                tracing::info!(image = %chosen.reference, bytes = chosen.bytes, "removed an unused image");
                brought.retain(|image| *image != chosen);
                self.write(&brought).await;
            }
            // Something else holds the image, a container that began meanwhile for example.
            Err(error) => {
                tracing::warn!(image = %chosen.reference, error = %error.chain(), "image not removed");
                brought.iter_mut().filter(|image| **image == chosen).for_each(|image| image.used_ms = now_ms);
            }
        }
        Ok(true)
    }

    /// A record that cannot be written is no reason to fail an execution: an image stays for longer.
    async fn write(&self, brought: &[Brought]) {
        let written = match serde_json::to_vec(brought) {
            Ok(bytes) => write_synced_elsewhere(self.path.clone(), bytes).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "the record of images cannot be written");
        }
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be read", path.display()))
        .remedy("give the file to the user that runs the node")
        .source(error)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn image(name: usize, bytes: u64, used_ms: i64) -> Brought {
        Brought { reference: format!("i:{name}"), id: format!("sha256:{name}"), bytes, used_ms }
    }

    proptest! {
        /// Removes in the order of use and never more than needed, and leaves what is needed or fresh.
        #[test]
        fn eviction_is_least_recently_used_and_bounded(
            given in vec((1_u64..100, 0_i64..200_000, any::<bool>()), 0..20),
            bytes_max in 0_u64..1_000,
            free in 0_u64..200,
        ) {
            let now = 200_000;
            let bounds = ImageBounds { bytes_max, free_min: 100 };
            let mut images: Vec<_> =
                given.iter().enumerate().map(|(name, (bytes, used, _))| image(name, *bytes, *used)).collect();
            let needed: HashSet<String> = images
                .iter().zip(&given).filter(|(_, (_, _, needed))| *needed).map(|(image, _)| image.id.clone()).collect();
            let may_go = |image: &Brought| !needed.contains(&image.id) && now - image.used_ms >= IDLE_MIN_MS;
            let mut disk = Disk { total: 10_000, free };
            let holds = |images: &[Brought], disk: Disk| {
                images.iter().map(|image| image.bytes).sum::<u64>() <= bytes_max && disk.free >= 100
            };
            while let Some(chosen) = choose_image(&images, |image| needed.contains(&image.id), disk, bounds, now).cloned() {
                prop_assert!(!holds(&images, disk), "one was removed without need");
                prop_assert!(may_go(&chosen));
                prop_assert!(images.iter().filter(|image| may_go(image)).all(|image| image.used_ms >= chosen.used_ms));
                images.retain(|image| *image != chosen);
                disk.free += chosen.bytes;
            }
            prop_assert!(holds(&images, disk) || !images.iter().any(may_go), "some could still go");
        }
    }
}
