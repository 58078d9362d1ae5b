//! The steps of a deployment, each idempotent; the answer is the evidence.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::time::{Instant, sleep};

use super::{
    super::{
        examine::examine,
        findings,
        health::{self, Expected},
        image::NodeImage,
        tunnel::{self, TunnelSource},
        view::StepName,
    },
    Run, publish_progress,
};
use crate::error::{Error, ErrorCode, Result};

const PUBLIC_KEY_LIMIT: Duration = Duration::from_secs(60);
const PUBLIC_KEY_POLL: Duration = Duration::from_millis(300);
const ACTIVE_LIMIT: Duration = Duration::from_secs(90);

impl Run {
    pub(super) async fn plan(&mut self) -> Result<String> {
        let spec = &self.record.spec;
        self.context.membership.check_identity(&spec.node, &spec.target).await?;
        if self.token.is_none() && !matches!(spec.tunnel, TunnelSource::None | TunnelSource::Argument) {
            self.token = tunnel::found(self.context.hosts.settings())?.1;
        }
        let services: Vec<&str> = spec.services.iter().map(|service| service.name()).collect();
        Ok(format!("{} becomes {} with {}", spec.target, spec.node, services.join(", ")))
    }

    pub(super) async fn check(&mut self) -> Result<String> {
        let connection = self.connection()?.clone();
        let examined = examine(&self.context, &connection, &self.record.spec, self.token.as_ref()).await?;
        let found = examined.findings.clone();
        self.record.view.findings = found.clone();
        if let Some(refusal) = findings::refusal(self.record.spec.target.host.as_str(), &found) {
            return Err(refusal);
        }
        let facts = &examined.facts;
        let evidence = format!(
            "{}{} {}, Docker {}, Compose {}, {} cpus, {} MB memory, {} GB free, {} warnings",
            if facts.sudo { format!("{} works by sudo, ", facts.user) } else { String::new() },
            facts.os,
            facts.arch,
            facts.docker_version.as_deref().unwrap_or("?"),
            facts.compose_version.as_deref().unwrap_or("?"),
            facts.cpus,
            facts.memory_total_mb,
            facts.disk_free_mb / 1024,
            found.len()
        );
        self.work_by_sudo(examined.facts.sudo);
        self.examined = Some(examined);
        Ok(evidence)
    }

    pub(super) async fn upload(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let id = self.record.view.deployment_id.clone();
        let remote = self.remote()?;
        let examined = self.examined()?;
        let digest = examined.prepared.plan.digest[..12].to_owned();
        // The value of a token given as an argument is not stored: after a restart only the host has it.
        if self.resumed && self.record.spec.tunnel == TunnelSource::Argument && self.token.is_none() {
            if !remote.has_release(&id).await? {
                return Err(Error::new(
                    ErrorCode::Cancelled,
                    "interrupted before upload, nothing changed on the host",
                )
                .remedy("give the tunnel token once more"));
            }
            remote.switch_to(&id).await?;
            self.touched = true;
            return Ok(format!("release {id} lay complete on the host"));
        }
        if !examined.prepared.changes_files() {
            let current = examined.facts.release.as_ref().map(|release| release.deployment_id.to_string());
            return Ok(format!(
                "nothing changed: release {} stays (plan {digest})",
                current.unwrap_or_default()
            ));
        }
        let node = &self.record.spec.node;
        remote.upload(&examined.prepared.files, &id, node).await?;
        let count = examined.prepared.files.iter().count();
        self.touched = true;
        Ok(format!("{count} files in releases/{id} (plan {digest})"))
    }

    pub(super) async fn images(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let references: Vec<String> =
            self.examined()?.prepared.plan.images.iter().map(|image| image.reference.clone()).collect();
        let missing = self.remote()?.missing_images(&references).await?;
        let node_image = references.first().cloned().unwrap_or_default();
        let mut done = Vec::new();
        for reference in &missing {
            if *reference == node_image {
                let image = self.node_image().await?;
                self.progress(
                    StepName::Images,
                    format!("sending {reference}, {} MB", image.bytes() / 1_000_000),
                );
                self.remote()?.load(&image).await?;
                self.loaded_image = true;
                self.touched = true;
                done.push(format!("sent {reference} ({} MB)", image.bytes() / 1_000_000));
            } else {
                self.progress(StepName::Images, format!("pulling {reference}"));
                self.remote()?.pull(reference).await?;
                done.push(format!("pulled {reference}"));
            }
        }
        Ok(if done.is_empty() { format!("all {} on the host", references.len()) } else { done.join(", ") })
    }

    pub(super) async fn node_image(&self) -> Result<NodeImage> {
        let source = self.examined()?.source.clone();
        let source =
            source.ok_or_else(|| Error::internal("a host without a node image passed its checks"))?;
        self.context.images.build(source).await
    }

    pub(super) async fn start(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let outcome = self.remote()?.up().await;
        match outcome {
            Ok(containers) => Ok(containers.join(", ")),
            Err(error) => {
                self.keep_log_of_a_failed_service().await;
                Err(error)
            }
        }
    }

    pub(super) async fn health(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let stack = &self.examined()?.prepared.stack;
        let expected = Expected {
            services: stack.services.clone(),
            node_service: stack.node_service.clone(),
            node_port: stack.node_port,
        };
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let progress = move |text: String| publish_progress(&views, &mut view, StepName::Health, text);
        match health::await_well(self.remote()?, &expected, progress).await {
            Ok(evidence) => Ok(evidence),
            Err(unwell) => {
                if let Some(service) = &unwell.service {
                    self.keep_log(service).await;
                }
                Err(unwell.error)
            }
        }
    }

    pub(super) async fn join(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let spec = self.record.spec.clone();
        let public_key = self.read_public_key().await?;
        let membership = self.context.membership.clone();
        membership.admit(&spec.node, public_key, &spec).await?;
        membership.attach_link(&spec.node, &spec, self.connection()?.clone()).await?;
        self.progress(
            StepName::Join,
            format!("the key of {} is pinned; waiting until it is Active", spec.node),
        );
        if let Err(error) = membership.await_active(&spec.node, ACTIVE_LIMIT).await {
            let service = self.examined()?.prepared.stack.node_service.clone();
            self.keep_log(&service).await;
            return Err(error);
        }
        Ok(format!("{} is Active, key {}", spec.node, &super::super::hex_digest(&public_key)[..16]))
    }

    pub(super) async fn read_public_key(&self) -> Result<[u8; 32]> {
        let deadline = Instant::now() + PUBLIC_KEY_LIMIT;
        loop {
            let text = self.remote()?.read_public_key().await?;
            let bytes = text.as_ref().and_then(|text| STANDARD.decode(text).ok());
            if let Some(key) = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
                return Ok(key);
            }
            // A file that is just being written is read once more, one that stays wrong is told.
            if Instant::now() >= deadline {
                return Err(match text {
                    None => Error::new(ErrorCode::Timeout, "the node wrote no public key within 60 s"),
                    Some(_) => Error::new(
                        ErrorCode::DeploymentFailed,
                        "run/node.pub on the host is not an Ed25519 public key in base64",
                    ),
                });
            }
            sleep(PUBLIC_KEY_POLL).await;
        }
    }

    pub(super) async fn proof(&mut self) -> Result<String> {
        let image = self.examined()?.prepared.plan.images.first().map(|image| image.reference.clone());
        let image = image.ok_or_else(|| Error::internal("a plan without a node image"))?;
        self.context.membership.prove(&self.record.spec.node, &image).await
    }
}
