//! Node images by source: references are remembered, the images themselves are made when they are
//! sent and dropped afterwards (an executable in memory would outweigh the whole controller).

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use tokio::sync::Mutex;

use super::image::{ImageSource, NodeImage};
use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub struct NodeImages {
    binaries: BTreeMap<String, PathBuf>,
    /// One image is made at a time: it takes its size in memory.
    references: Mutex<HashMap<String, String>>,
}

impl NodeImages {
    pub fn new(binaries: BTreeMap<String, PathBuf>) -> Self {
        Self { binaries, references: Mutex::default() }
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
        let key = key(source);
        let mut references = self.references.lock().await;
        if let Some(reference) = references.get(&key) {
            return Ok(reference.clone());
        }
        let reference = make(source.clone()).await?.reference;
        references.insert(key, reference.clone());
        Ok(reference)
    }

    pub async fn build(&self, source: ImageSource) -> Result<NodeImage> {
        let _one_at_a_time = self.references.lock().await;
        make(source).await
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
