//! Content that orders need, on its way to a worker: packed directories and images.
//!
//! A worker refuses an order whose content it lacks with `ContentMissing`, before anything is journaled;
//! the controller sends it and orders again. What comes is checked against the sealed first message: a
//! directory by the digest of its bytes, an image, once it is loaded, by what makes it the same anywhere.

use std::{sync::Arc, time::Duration};

use aegis_content::{
    BOUNDS,
    blob_store::{BlobStore, digest_of},
};
use aegis_engine::Engine;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::{
        content::{Content, ImageOffer},
        manifest::Manifest,
        order::Order,
    },
    text::shown,
};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tokio::{io::AsyncWriteExt as _, sync::Semaphore};
use tokio_util::io::StreamReader;

use super::images::Images;

/// A sender that is silent for longer is gone.
const PIECE_LIMIT: Duration = Duration::from_secs(60);
/// Unpacking layers takes long on slow disks.
const LOAD_LIMIT: Duration = Duration::from_secs(1800);
/// Above the largest images with drivers and models.
const IMAGE_BYTES_MAX: u64 = 64 * 1024 * 1024 * 1024;
/// Content that comes in at once; each costs disk and bandwidth.
const INCOMING_MAX: usize = 4;

/// A worker's side: what has come, and what is missing.
#[derive(Debug, Clone)]
pub struct ContentReceiver {
    engine: Engine,
    kept: BlobStore,
    images: Arc<Images>,
    at_once: Arc<Semaphore>,
}

impl ContentReceiver {
    pub(super) fn new(engine: Engine, kept: BlobStore, images: Arc<Images>) -> Self {
        Self { engine, kept, images, at_once: Arc::new(Semaphore::new(INCOMING_MAX)) }
    }

    pub fn kept(&self) -> &BlobStore {
        &self.kept
    }

    /// `ContentMissing` where the order needs what is not here: first its workspace, then its image.
    pub async fn require(&self, order: &Order, offer: Option<&ImageOffer>) -> Result<()> {
        if let Manifest { workspace: Some(note), .. } = &order.manifest {
            self.kept.read(&note.digest).map(drop)?;
        }
        self.images.used(&order.manifest.image).await;
        let Some(offer) = offer else { return Ok(()) };
        if offer.architecture != architecture() {
            return Ok(());
        }
        let reference = &order.manifest.image;
        let here = self.engine.local_image(reference).await?;
        let good = here.is_some_and(|here| !offer.exact || here.content.digest() == offer.digest);
        match good {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::ContentMissing, format!("the image {reference} is not here"))
                .remedy("the controller sends it, and asks again")),
        }
    }

    /// Takes all of it, or keeps nothing.
    pub async fn receive(&self, content: Content, pieces: BoxStream<'static, Result<Bytes>>) -> Result<()> {
        let busy = |_| Error::new(ErrorCode::Unavailable, format!("{INCOMING_MAX} others send content now"));
        // Held until everything has come.
        let _turn = self.at_once.try_acquire().map_err(busy)?;
        let pieces = tokio_stream::StreamExt::timeout(pieces, PIECE_LIMIT);
        let pieces = pieces.map(|piece| piece.unwrap_or_else(|_| Err(cut("it stopped coming")))).boxed();
        match content {
            Content::Workspace { digest, bytes } => self.workspace(&digest, bytes, pieces).await,
            Content::Image { reference, digest, bytes } => {
                self.image(&reference, &digest, bytes, pieces).await
            }
        }
    }

    async fn workspace(
        &self,
        digest: &str,
        bytes: u64,
        mut pieces: BoxStream<'static, Result<Bytes>>,
    ) -> Result<()> {
        if bytes > BOUNDS.packed_bytes {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("a workspace of {bytes} bytes; at most {} are taken", BOUNDS.packed_bytes),
            ));
        }
        let draft = self.kept.draft(bytes)?;
        let unwritable = |e: std::io::Error| {
            Error::new(ErrorCode::Storage, "content cannot be written")
                .remedy("free some disk space")
                .source(e)
        };
        let mut file = tokio::fs::File::from_std(draft.file.try_clone().map_err(unwritable)?);
        let mut left = bytes;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| cut("more came than was told"))?;
            file.write_all(&piece).await.map_err(unwritable)?;
        }
        if left > 0 {
            return Err(cut(&format!("{left} of {bytes} bytes did not come")));
        }
        file.sync_all().await.map_err(unwritable)?;
        let (kept, digest) = (self.kept.clone(), digest.to_owned());
        let keeping = tokio::task::spawn_blocking(move || {
            let mut draft = draft;
            let found = digest_of(&mut draft.file).map_err(unwritable)?;
            if found != digest {
                return Err(cut("it is not what was told"));
            }
            kept.keep(draft, &digest, None)
        });
        keeping.await.map_err(|e| Error::internal("keeping content ended").source(e))?
    }

    async fn image(
        &self,
        reference: &str,
        digest: &str,
        bytes: u64,
        pieces: BoxStream<'static, Result<Bytes>>,
    ) -> Result<()> {
        if bytes > IMAGE_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("an image of {bytes} bytes; at most {IMAGE_BYTES_MAX} are taken"),
            ));
        }
        let mut left = IMAGE_BYTES_MAX;
        let bounded = pieces.map_err(std::io::Error::other).and_then(move |piece| {
            let fits = left.checked_sub(piece.len() as u64);
            left = fits.unwrap_or(0);
            let too_large = || std::io::Error::other("the image is too large");
            std::future::ready(fits.map(|_| piece).ok_or_else(too_large))
        });
        let loading = self.engine.load_image(StreamReader::new(Box::pin(bounded)));
        tokio::time::timeout(LOAD_LIMIT, loading)
            .await
            .map_err(|_| Error::new(ErrorCode::Timeout, "loading the image took too long"))??;
        let here = self.engine.local_image(reference).await?;
        match here.is_some_and(|here| here.content.digest() == digest) {
            true => self.images.brought(reference).await,
            false => Err(cut(&format!("the image {} is not what was told", shown(reference)))),
        }
    }
}

/// Docker's name of what this is.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Trying again may help.
fn cut(why: &str) -> Error {
    Error::new(ErrorCode::Unavailable, format!("content was not received: {why}"))
}
