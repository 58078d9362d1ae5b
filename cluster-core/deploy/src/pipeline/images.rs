//! The step that provides the host's images: built here, pushed from here, or pulled by the host.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aegis_config::registries::login_for;
use aegis_engine::{Export, LocalImage, node_image::NodeImage};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::SecretName,
};
use tokio::time::{MissedTickBehavior, interval};

use super::{Run, publish_progress};
use crate::{
    images::local,
    model::{plan::ImageAction, state::StepName},
};

const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

impl Run {
    pub(super) async fn images(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        if self.chosen.is_some() {
            return self.restore_images().await;
        }
        let goal = self.goal()?;
        let references = goal.images.clone();
        let node_image = goal.node.as_ref().map(|node| node.image.clone());
        let remote = self.remote()?;
        let missing = remote.missing_images(&references).await?;
        // Copied again on every run of the step, since it is repeated after a cut.
        let local = self.examined()?.local.clone();
        let contents = remote.image_contents(&local.references()).await?;
        let local = local.with_host(contents);
        let mut done = Vec::new();
        for reference in &references {
            let present = !missing.contains(reference);
            let action = match Some(reference) == node_image.as_ref() {
                true if present => ImageAction::Present,
                true => ImageAction::Load,
                false => local.action(reference, present),
            };
            if !present {
                self.note_fetched(reference).await?;
            }
            match action {
                ImageAction::Present => {}
                ImageAction::Load => done.push(self.load(reference).await?),
                ImageAction::Push => {
                    let image = local.get(reference).ok_or_else(|| Error::internal("an image of nowhere"))?;
                    done.push(self.push(reference, image).await?);
                }
                ImageAction::Pull => done.push(self.pull(reference, local.get(reference)).await?),
            }
        }
        Ok(if done.is_empty() { format!("all {} on the host", references.len()) } else { done.join(", ") })
    }

    async fn load(&mut self, reference: &str) -> Result<String> {
        let image = self.node_image().await?;
        let megabytes = image.bytes() / 1_000_000;
        self.progress(StepName::Images, format!("sending {reference}, {megabytes} MB"));
        self.remote()?.load(&image, self.image_timeout()).await?;
        Ok(format!("sent {reference} ({megabytes} MB)"))
    }

    fn image_timeout(&self) -> Duration {
        self.context.hosts.settings().image_timeout
    }

    async fn node_image(&self) -> Result<Arc<NodeImage>> {
        let source = self.examined()?.source.clone();
        let source =
            source.ok_or_else(|| Error::internal("a host without a node image passed its checks"))?;
        self.context.images.build(source).await
    }

    /// Pulls an image on the host. If the pull fails and the image exists locally, pushes the local image.
    async fn pull(&mut self, reference: &str, local: Option<&LocalImage>) -> Result<String> {
        self.progress(StepName::Images, format!("pulling {reference}"));
        let settings = self.context.hosts.settings();
        let journal = &self.context.journal;
        let use_secret = async |name: &SecretName, purpose: &str| journal.use_secret(name, purpose).await;
        let login = login_for(reference, &settings.registries, use_secret).await?;
        let config = login.map(|login| login.docker_config());
        let refused = match self.remote()?.pull(reference, config.as_ref(), self.image_timeout()).await {
            Ok(()) => return Ok(format!("pulled {reference}")),
            Err(error) => error,
        };
        let fitting =
            local.filter(|local| self.examined().is_ok_and(|examined| local::fits(local, &examined.facts)));
        match fitting {
            Some(local) if refused.code() == ErrorCode::ImageNotFound => {
                let sent = self.push(reference, local).await?;
                Ok(format!("{sent}, since {}", refused.message()))
            }
            _ => Err(refused),
        }
    }

    /// Records the image before it is fetched, so that a failed deployment removes it again, also after a restart.
    async fn note_fetched(&mut self, reference: &str) -> Result<()> {
        if !self.record.fetched.iter().any(|known| known == reference) {
            self.record.fetched.push(reference.to_owned());
            self.context.journal.put(&self.record).await?;
        }
        Ok(())
    }

    /// Streams an image from the local engine into the engine of the host.
    async fn push(&mut self, reference: &str, local: &LocalImage) -> Result<String> {
        let engine = self.context.hosts.settings().engine.as_ref();
        let engine = engine.ok_or_else(|| Error::internal("an image of an engine that is not there"))?;
        let Export { reader, sent, failure } = engine.export(reference);
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let megabytes = || sent.load(Ordering::Relaxed) / 1_000_000;
        let whole = local.bytes / 1_000_000;
        let remote = self.remote()?;
        let receiving = remote.receive(reference, reader, self.image_timeout());
        tokio::pin!(receiving);
        let mut tick = interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let received = loop {
            tokio::select! {
                received = &mut receiving => break received,
                _ = tick.tick() => {
                    let text = format!("sending {reference}: {} of some {whole} MB sent", megabytes());
                    publish_progress(&views, &mut view, StepName::Images, text);
                }
            }
        };
        if let (Err(_), Some(why)) = (&received, failure.get()) {
            return Err(Error::new(
                ErrorCode::Engine,
                format!("this machine's engine did not give out {reference}: {why}"),
            ));
        }
        received?;
        let contents = self.remote()?.image_contents(&[reference.to_owned()]).await?;
        if contents.get(reference) != Some(&local.content) {
            return Err(Error::new(
                ErrorCode::DeploymentFailed,
                format!("{reference} was sent, and the host has another image under that name"),
            )
            .remedy("if it was built anew meanwhile, deploy again"));
        }
        Ok(format!("sent {reference} ({} MB)", megabytes()))
    }
}
