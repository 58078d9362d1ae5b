//! Node images by source: references are remembered, the images themselves are made when they are
//! sent and dropped afterwards (an executable in memory would outweigh the whole controller). Hosts that
//! are sent the same one at the same time share it.

pub mod local;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Weak},
};

use aegis_engine::node_image::{ImageSource, NodeImage};
use aegis_types::error::{Error, Result};
use tokio::sync::Mutex;

#[derive(Debug, Default)]
pub struct NodeImages {
    binaries: BTreeMap<String, PathBuf>,
    /// One image is made at a time: it takes twice its size in memory.
    made: Mutex<HashMap<String, Made>>,
}

#[derive(Debug)]
struct Made {
    reference: String,
    /// While it is being sent to a host.
    image: Weak<NodeImage>,
}

impl NodeImages {
    pub fn new(binaries: BTreeMap<String, PathBuf>) -> Self {
        Self { binaries, made: Mutex::default() }
    }

    /// The executable that the configuration names for the machine, else our own where it fits.
    pub fn source_for(&self, os: &str, arch: &str) -> Option<ImageSource> {
        if os != "Linux" {
            return None;
        }
        match self.binaries.get(arch) {
            Some(path) => Some(ImageSource::Static { path: path.clone(), arch: arch.to_owned() }),
            None => (arch == std::env::consts::ARCH).then_some(ImageSource::Own),
        }
    }

    pub async fn reference(&self, source: &ImageSource) -> Result<String> {
        let mut made = self.made.lock().await;
        if let Some(known) = made.get(&key(source)) {
            return Ok(known.reference.clone());
        }
        let reference = make(source.clone()).await?.reference;
        made.insert(key(source), Made { reference: reference.clone(), image: Weak::new() });
        Ok(reference)
    }

    pub async fn build(&self, source: ImageSource) -> Result<Arc<NodeImage>> {
        let mut made = self.made.lock().await;
        let key = key(&source);
        if let Some(image) = made.get(&key).and_then(|known| known.image.upgrade()) {
            return Ok(image);
        }
        let image = Arc::new(make(source).await?);
        made.insert(key, Made { reference: image.reference.clone(), image: Arc::downgrade(&image) });
        Ok(image)
    }
}

/// A static executable that is replaced is another one.
fn key(source: &ImageSource) -> String {
    match source {
        ImageSource::Own => "own".to_owned(),
        ImageSource::Static { path, arch } => {
            let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
            format!("{arch} {} {changed:?}", path.display())
        }
    }
}

async fn make(source: ImageSource) -> Result<NodeImage> {
    tokio::task::spawn_blocking(move || NodeImage::build(&source))
        .await
        .map_err(|error| Error::internal("the task that makes node images died").source(error))?
}
