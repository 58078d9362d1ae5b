//! Images of a worker's engine that executions brought: identity, use and removal.

use std::{collections::HashSet, path::PathBuf};

use aegis_types::error::Result;
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveImageOptionsBuilder};

use super::{Engine, refused, status};

/// The engine's id of an image, with the size of all its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageId {
    pub id: String,
    pub bytes: u64,
}

impl Engine {
    /// Returns `None` where the engine does not have the image.
    pub async fn image_id(&self, reference: &str) -> Result<Option<ImageId>> {
        match self.docker.inspect_image(reference).await {
            Ok(found) => Ok(found
                .id
                .map(|id| ImageId { id, bytes: u64::try_from(found.size.unwrap_or(0)).unwrap_or(0) })),
            Err(e) if status(&e) == Some(404) => Ok(None),
            Err(e) => Err(refused("look for an image", e)),
        }
    }

    /// Returns the ids of images that any container uses, running or not.
    pub async fn images_in_use(&self) -> Result<HashSet<String>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let list = self.docker.list_containers(Some(options)).await;
        let list = list.map_err(|e| refused("list containers", e))?;
        Ok(list.into_iter().filter_map(|container| container.image_id).collect())
    }

    /// Removes a reference from the image of this id, and the image itself if it has no other name. An image that
    /// took over the reference is kept.
    pub async fn remove_image(&self, reference: &str, id: &str) -> Result<()> {
        if self.image_id(reference).await?.is_some_and(|found| found.id == id) {
            return self.untag(reference).await;
        }
        match self.docker.inspect_image(id).await {
            Ok(found) if found.repo_tags.as_ref().is_none_or(Vec::is_empty) => self.untag(id).await,
            Ok(_) => Ok(()),
            Err(e) if status(&e) == Some(404) => Ok(()),
            Err(e) => Err(refused("look for an image", e)),
        }
    }

    async fn untag(&self, name: &str) -> Result<()> {
        // Without force the engine refuses an image that a container uses.
        let options = RemoveImageOptionsBuilder::new().force(false).noprune(false).build();
        match self.docker.remove_image(name, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(e) if status(&e) == Some(404) => Ok(()),
            Err(e) => Err(refused("remove an image", e)),
        }
    }

    /// Returns the directory that holds the engine's images, containers and volumes, as the engine's host names it.
    pub async fn root_directory(&self) -> Result<Option<PathBuf>> {
        self.agree().await?;
        let info = self.docker.info().await.map_err(|e| refused("describe itself", e))?;
        Ok(info.docker_root_dir.map(PathBuf::from))
    }
}
