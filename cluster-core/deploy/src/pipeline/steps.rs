//! The steps of a deployment. Each is idempotent and returns its evidence.

use std::time::Duration;

use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::time::{Instant, sleep};

use super::{
    super::{
        health::{self, HealthError},
        models,
    },
    ACTIVE_LIMIT, Run, publish_progress,
};
use crate::{
    host::{LastLook, Standing},
    model::{
        names::ServiceName, operation::Action, plan::Plan, record::PreviousRelease, release::ReadyRecord,
        state::StepName, tunnel::TunnelSource,
    },
    preflight::{examine, findings},
    request::tunnel_token,
};

const PUBLIC_KEY_LIMIT: Duration = Duration::from_secs(60);
const PUBLIC_KEY_POLL: Duration = Duration::from_millis(300);

impl Run {
    pub(super) async fn plan(&mut self) -> Result<String> {
        let spec = &self.record.spec;
        self.context.membership.check_identity(&spec.node, &spec.target).await?;
        let (settings, journal) = (self.context.hosts.settings(), self.context.journal.as_ref());
        self.token = tunnel_token::open(spec, self.token.take(), settings, journal).await?;
        let services: Vec<&str> = spec.services.iter().map(ServiceName::as_str).collect();
        let services =
            if services.is_empty() { "the operator's stack".to_owned() } else { services.join(", ") };
        Ok(match spec.join {
            true => format!("{} becomes {} with {services}", spec.target, spec.node),
            false => format!("{} runs {services}, and does not join", spec.target),
        })
    }

    pub(super) async fn check(&mut self) -> Result<String> {
        if let Action::Rollback { to } = self.record.action.clone() {
            return self.check_releases(to.as_ref()).await;
        }
        let connection = self.connection()?.clone();
        let examined = examine(&self.context, &connection, &self.record.spec, self.token.as_ref()).await?;
        let found = examined.findings.clone();
        self.record.view.findings = found.clone();
        if let Some(refusal) = findings::refusal(self.record.spec.target.host.as_str(), &found) {
            return Err(refusal);
        }
        let plan = &examined.prepared.plan;
        if self.record.before.is_none() {
            expected(plan, self.record.spec.plan_digest.as_deref())?;
            self.record.view.plan_digest = Some(plan.digest.clone());
        }
        let facts = &examined.facts;
        let evidence = format!(
            "{}{} {}, Docker {}, Compose {}, {} cpus, {} MB memory, {:.1} GB free, {} warnings",
            if facts.sudo { format!("{} works by sudo, ", facts.user) } else { String::new() },
            facts.os,
            facts.arch,
            facts.docker_version.as_deref().unwrap_or("?"),
            facts.compose_version.as_deref().unwrap_or("?"),
            facts.cpus,
            facts.memory_total_mb,
            facts.disk_free_mb as f64 / 1024.0,
            found.len()
        );
        self.work_by_sudo(examined.facts.sudo);
        self.goal = Some(examined.prepared.goal.clone());
        self.examined = Some(examined);
        Ok(evidence)
    }

    pub(super) async fn upload(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        self.look_again_if_it_changed().await?;
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
            return Ok(format!("release {id} lay complete on the host"));
        }
        if !examined.prepared.changes_files() {
            let current = examined.facts.release.as_ref().map(|release| release.deployment_id.clone());
            // Restores links into the release that were replaced by files.
            if let (Some(current), false) = (&current, examined.facts.replaced.is_empty()) {
                remote.switch_to(current).await?;
            }
            let current = current.map(|id| id.to_string());
            return Ok(format!(
                "nothing changed: release {} stays (plan {digest})",
                current.unwrap_or_default()
            ));
        }
        let owner = &self.context.hosts.settings().owner;
        let prepared = &examined.prepared;
        let note = prepared.files.note(&id, &self.record.spec.node, owner, &prepared.goal)?;
        remote.upload(&prepared.files, &id, &note).await?;
        let count = prepared.files.digests().len();
        Ok(format!("{count} files in releases/{id} (plan {digest})"))
    }

    /// Examines the host again if another controller deployed between the checks and the lock.
    async fn look_again_if_it_changed(&mut self) -> Result<()> {
        let seen = self.examined()?.facts.release.as_ref().map(|release| release.deployment_id.clone());
        let (before, has_containers) = match &self.record.before {
            Some(PreviousRelease::Release(id)) => (Some(id.clone()), false),
            Some(PreviousRelease::Stack) => (None, true),
            Some(PreviousRelease::Nothing) | None => (None, false),
        };
        let appeared = has_containers && self.examined()?.facts.look.containers.is_empty();
        if self.resumed || (seen == before && !appeared) {
            return Ok(());
        }
        self.record.before = None;
        self.check().await?;
        self.note_before(&Standing { current: before, complete: false, has_containers }).await
    }

    pub(super) async fn start(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let waits = self.start_waits().await?;
        let outcome = self.remote()?.up(waits).await;
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
        let goal = self.goal()?.clone();
        let limit = self.record.spec.health_limit();
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let progress = move |text: String| publish_progress(&views, &mut view, StepName::Health, text);
        match health::await_well(self.remote()?, &goal, limit, progress).await {
            Ok(well) => {
                let evidence = well.evidence.clone();
                self.well = Some(well);
                Ok(evidence)
            }
            Err(unwell) => Err(self.keep_log_of(unwell).await),
        }
    }

    async fn keep_log_of(&mut self, unwell: HealthError) -> Error {
        if let Some(service) = &unwell.service {
            self.keep_log(service).await;
        }
        unwell.error
    }

    pub(super) async fn models(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let ollama = self.examined()?.prepared.stack.ollama.clone();
        let ollama = ollama.ok_or_else(|| Error::internal("models for a stack without Ollama"))?;
        let wanted = self.record.spec.models.clone();
        let (views, mut view) = (self.views.clone(), self.record.view.clone());
        let progress = move |text: String| publish_progress(&views, &mut view, StepName::Models, text);
        models::ensure(self.remote()?, &ollama, &wanted, progress).await
    }

    pub(super) async fn join(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let spec = self.record.spec.clone();
        let public_key = self.read_public_key().await?;
        let membership = self.context.membership.clone();
        // Uses the link of the current release, whichever release that is.
        let link = self.remote()?.current_link().await?;
        // A rollback does not examine the host, so the earlier bound is kept.
        let size = self.examined.as_ref().map(|examined| examined.facts.size());
        membership.admit(&spec.node, public_key, &spec, &link, size).await?;
        membership.attach_link(&spec.node, &spec, &link, self.connection()?.clone()).await?;
        self.progress(
            StepName::Join,
            format!("the key of {} is pinned; waiting until it is Active", spec.node),
        );
        if let Err(error) = membership.await_active(&spec.node, ACTIVE_LIMIT).await {
            if let Some(node) = self.goal()?.node.clone() {
                self.keep_log(&node.service).await;
            }
            return Err(error);
        }
        Ok(format!("{} is Active, key {}", spec.node, &crate::hex_digest(&public_key)[..16]))
    }

    pub(super) async fn read_public_key(&self) -> Result<[u8; 32]> {
        let deadline = Instant::now() + PUBLIC_KEY_LIMIT;
        loop {
            let text = self.remote()?.read_public_key().await?;
            let bytes = text.as_ref().and_then(|text| STANDARD.decode(text).ok());
            if let Some(key) = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
                return Ok(key);
            }
            // A file that is just being written is read again; a file that stays invalid is an error.
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
        let node = self.goal()?.node.as_ref();
        let image = node.map(|node| node.image.clone());
        let image = image.ok_or_else(|| Error::internal("a proof without a node"))?;
        self.context.membership.prove(&self.record.spec.node, &image).await
    }

    /// Takes a last look at the stack, then marks the release as good.
    pub(super) async fn settle(&mut self) -> Result<String> {
        self.ensure_lock().await?;
        let goal = self.goal()?.clone();
        let LastLook { look, current, images } = self.remote()?.last_look(&goal.images).await?;
        if let Some(well) = &self.well
            && let Err(unwell) = health::confirm(&look, &goal, well)
        {
            return Err(self.keep_log_of(unwell).await);
        }
        let release = current.ok_or_else(|| {
            Error::new(ErrorCode::DeploymentFailed, "the release is gone from the host")
                .remedy("something else removed it while it was deployed; deploy again")
        })?;
        let mark = ReadyRecord { at_ms: now_ms(), images };
        let brought = self.record.fetched.iter().filter_map(|reference| mark.images.get(reference));
        let brought: Vec<&str> = brought.map(String::as_str).collect();
        self.remote()?.mark(&release, &mark, &brought).await?;
        let evidence = format!("release {release} is good, with {} images", mark.images.len());
        // Leftover files do no harm to what runs.
        match self.remote()?.clean_up().await {
            Ok(()) => Ok(evidence),
            Err(error) => {
                tracing::warn!(error = %error.chain(), "old releases cannot be cleaned up");
                Ok(format!("{evidence}; warning: {}", error.message()))
            }
        }
    }
}

/// Checks that the plan still has the digest that was confirmed.
fn expected(plan: &Plan, digest: Option<&str>) -> Result<()> {
    match digest {
        Some(digest) if !plan.digest.starts_with(digest) => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "this is not plan {} any more: the host, or what is asked for, has changed. It would now be:\n{plan}",
                &digest[..12]
            ),
        )
        .remedy("look at the new plan with dry_run; to carry it out, give its digest")),
        _ => Ok(()),
    }
}
