//! Volumes of an execution with a workspace: one for the workspace and one for its home directory. They are created and
//! filled before the first container, and removed after the last.
//!
//! They are filled through a holder: a container of the same image that is never started. The engine only unpacks into
//! containers, and not into a container with a read-only root, where the volume's own directory would keep its owner.

use std::collections::HashMap;

use aegis_types::{error::Result, execution::order::Attempt, ids::NodeId};
use bollard::{
    models::{ContainerCreateBody, HostConfig, Mount, MountType, MountVolumeOptions, VolumeCreateRequest},
    query_parameters::{
        CreateContainerOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptionsBuilder,
    },
};

use super::{Engine, LABEL_ATTEMPT, LABEL_EXECUTION, LABEL_NODE, LABEL_OWNER, OurPart, refused, status};

pub const WORKSPACE: &str = "/workspace";
/// Home directory, temporary files and caches of a container that has a workspace.
pub const HOME: &str = "/scratch";

/// Owner of a workspace's volumes.
#[derive(Debug, Clone, Copy)]
pub struct VolumeOf<'a> {
    pub node_id: &'a NodeId,
    pub owner: &'a str,
    pub attempt: &'a Attempt,
}

impl VolumeOf<'_> {
    /// Derived from the container's name, so that repeated creation makes no second volume.
    fn workspace(&self) -> String {
        workspace_volume(self.node_id, self.attempt)
    }

    fn home(&self) -> String {
        home_volume(self.node_id, self.attempt)
    }

    pub fn holder(&self) -> String {
        format!("{}-holder", self.workspace())
    }

    pub(super) fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_EXECUTION.to_owned(), self.attempt.execution_id.to_string()),
            (LABEL_ATTEMPT.to_owned(), self.attempt.number.to_string()),
            (LABEL_NODE.to_owned(), self.node_id.to_string()),
            (LABEL_OWNER.to_owned(), self.owner.to_owned()),
        ])
    }
}

pub fn workspace_volume(node_id: &NodeId, attempt: &Attempt) -> String {
    format!("{}-workspace", super::container_name(node_id, attempt, 1))
}

pub fn home_volume(node_id: &NodeId, attempt: &Attempt) -> String {
    format!("{}-home", super::container_name(node_id, attempt, 1))
}

/// Mounts both volumes, without the content that an image may have at their paths.
pub(super) fn mounts(node_id: &NodeId, attempt: &Attempt) -> Vec<Mount> {
    let places = [(workspace_volume(node_id, attempt), WORKSPACE), (home_volume(node_id, attempt), HOME)];
    let mount = |(volume, target): (String, &str)| Mount {
        target: Some(target.to_owned()),
        source: Some(volume),
        typ: Some(MountType::VOLUME),
        volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ..Default::default()
    };
    places.into_iter().map(mount).collect()
}

impl Engine {
    /// Creates both volumes, empty, with their holder.
    pub async fn create_workspace(&self, of: VolumeOf<'_>, image: &str) -> Result<()> {
        self.remove_workspace(of).await?;
        for name in [of.workspace(), of.home()] {
            let volume =
                VolumeCreateRequest { name: Some(name), labels: Some(of.labels()), ..Default::default() };
            self.docker.create_volume(volume).await.map_err(|e| refused("create a volume", e))?;
        }
        let options = CreateContainerOptionsBuilder::new().name(&of.holder()).build();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // Never started, but required: an image may have no entrypoint.
            entrypoint: Some(vec!["true".into()]),
            labels: Some(of.labels()),
            host_config: Some(HostConfig {
                mounts: Some(mounts(of.node_id, of.attempt)),
                network_mode: Some("none".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.docker
            .create_container(Some(options), body)
            .await
            .map_err(|e| refused("create a container that holds a volume", e))?;
        Ok(())
    }

    /// Removes both volumes and the holder. Succeeds if they do not exist.
    pub async fn remove_workspace(&self, of: VolumeOf<'_>) -> Result<()> {
        self.remove(&of.holder()).await?;
        self.remove_volume(&of.workspace()).await?;
        self.remove_volume(&of.home()).await
    }

    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        let options = RemoveVolumeOptionsBuilder::new().build();
        match self.docker.remove_volume(name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(e) if status(&e) == Some(404) => Ok(()),
            Err(e) => Err(refused("remove a volume", e)),
        }
    }

    /// Returns all volumes of executions with an owner's label.
    pub async fn our_volumes(&self, owner: &str) -> Result<Vec<OurPart>> {
        let label = format!("{LABEL_OWNER}={owner}");
        let filters = HashMap::from([("label", vec![label.as_str()])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let found =
            self.docker.list_volumes(Some(options)).await.map_err(|e| refused("list its volumes", e))?;
        Ok(found
            .volumes
            .unwrap_or_default()
            .into_iter()
            .filter_map(|volume| OurPart::of(volume.name, &volume.labels))
            .collect())
    }
}
