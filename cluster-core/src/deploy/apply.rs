//! Carrying out one deployment: the steps in their order, each recorded before and after, visible
//! while it happens; a cut connection is looked into and the step done again; a failure puts the
//! host back.
//!
//! One task a deployment, owned by [`super::Deployments`]; it ends with the deployment.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    examine::{Context, Examined, examine},
    findings,
    health::{self, Expected},
    image::NodeImage,
    now_ms,
    remote::{Back, HostLock, LOG_LINES, Remote},
    secret::Secret,
    tunnel::{self, TunnelSource},
    view::{DeploymentState, DeploymentView, StepName, StepState},
    world::DeploymentRecord,
};
use crate::{
    error::{Error, ErrorCode, Failure, Result},
    ssh::Connection,
};

/// Cuts that one deployment survives.
const RECONNECTS_MAX: u32 = 5;
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(15);
const RECONNECT_TRIES: usize = 8;
const PUBLIC_KEY_LIMIT: Duration = Duration::from_secs(60);
const PUBLIC_KEY_POLL: Duration = Duration::from_millis(300);
const ACTIVE_LIMIT: Duration = Duration::from_secs(90);

/// One deployment in progress.
pub(super) struct Run {
    context: Arc<Context>,
    record: DeploymentRecord,
    token: Option<Secret>,
    views: watch::Sender<DeploymentView>,
    /// Started again after the controller stopped in between.
    resumed: bool,
    connection: Option<Connection>,
    /// The login works by sudo: the same connection, as root.
    sudo: bool,
    elevated: Option<Connection>,
    lock: Option<HostLock>,
    examined: Option<Examined>,
    /// Something on the host may have been changed by this deployment.
    touched: bool,
    loaded_image: bool,
    reconnects: u32,
}

impl Run {
    pub fn new(
        context: Arc<Context>,
        record: DeploymentRecord,
        token: Option<Secret>,
        views: watch::Sender<DeploymentView>,
        resumed: bool,
    ) -> Self {
        let touched = resumed && record.view.step_is_done(StepName::Check);
        Self {
            context,
            record,
            token,
            views,
            resumed,
            connection: None,
            sudo: false,
            elevated: None,
            lock: None,
            examined: None,
            touched,
            loaded_image: false,
            reconnects: 0,
        }
    }

    /// To its end, whatever it is. An error here means that the journal failed: nothing more is done
    /// then, and the next start of the controller resumes.
    pub async fn run(mut self) -> Result<()> {
        self.enter(DeploymentState::Running).await?;
        let failed_before = self.record.view.failure.clone();
        let outcome = match failed_before {
            Some(failure) => Err(Error::from(failure)),
            None => self.pipeline().await,
        };
        match outcome {
            Ok(()) => self.enter(DeploymentState::Ready).await?,
            Err(error) => self.fail(error).await?,
        }
        drop(self.lock.take());
        tracing::info!(deployment = %self.record.view.deployment_id, state = %self.record.view.state, "deployment ended");
        Ok(())
    }

    async fn pipeline(&mut self) -> Result<()> {
        for name in StepName::PIPELINE {
            self.step(name).await?;
        }
        Ok(())
    }

    async fn step(&mut self, name: StepName) -> Result<()> {
        let (started, cuts_before) = (Instant::now(), self.reconnects);
        self.change(|view| {
            let step = view.step_mut(name);
            (step.state, step.started_at_ms, step.duration_ms) = (StepState::Running, Some(now_ms()), None);
            (step.evidence, step.message) = (None, None);
        })
        .await?;
        let outcome = loop {
            match self.perform(name).await {
                Err(error) if self.was_cut(name, &error) => {
                    let text = format!(
                        "the connection was cut ({}); what became of it is being re-checked",
                        error.message()
                    );
                    self.change(|view| {
                        let step = view.step_mut(name);
                        (step.state, step.message) = (StepState::Rechecking, Some(text));
                    })
                    .await?;
                    if let Err(error) = self.reconnect().await {
                        break Err(error);
                    }
                }
                outcome => break outcome,
            }
        };
        let duration = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let cut =
            if self.reconnects > cuts_before { " (done again after the connection was cut)" } else { "" };
        let summary = match &outcome {
            Ok(evidence) => Ok(format!("{evidence}{cut}")),
            Err(error) => Err(error.message().to_owned()),
        };
        self.change(|view| {
            let step = view.step_mut(name);
            step.duration_ms = Some(duration);
            match summary {
                Ok(evidence) => {
                    (step.state, step.evidence, step.message) = (StepState::Done, Some(evidence), None)
                }
                Err(message) => (step.state, step.message) = (StepState::Failed, Some(message)),
            }
        })
        .await?;
        outcome.map(drop)
    }

    /// Every step is idempotent; its answer is the evidence.
    async fn perform(&mut self, name: StepName) -> Result<String> {
        match name {
            StepName::Plan => self.plan().await,
            StepName::Connect => self.connect().await,
            StepName::Check => self.check().await,
            StepName::Upload => self.upload().await,
            StepName::Images => self.images().await,
            StepName::Start => self.start().await,
            StepName::Health => self.health().await,
            StepName::Join => self.join().await,
            StepName::Proof => self.proof().await,
            StepName::Rollback => self.rollback().await,
        }
    }

    async fn plan(&mut self) -> Result<String> {
        let spec = &self.record.spec;
        self.context.membership.check_identity(&spec.node, &spec.target).await?;
        if self.token.is_none() && !matches!(spec.tunnel, TunnelSource::None | TunnelSource::Argument) {
            self.token = tunnel::found(self.context.hosts.settings())?.1;
        }
        let services: Vec<&str> = spec.services.iter().map(|service| service.name()).collect();
        Ok(format!("{} becomes {} with {}", spec.target, spec.node, services.join(", ")))
    }

    async fn connect(&mut self) -> Result<String> {
        let spec = &self.record.spec;
        let connection = self.context.hosts.connect(&spec.target, spec.origin).await?;
        let way: Vec<String> = connection.route().iter().map(ToString::to_string).collect();
        let evidence = format!("{}, host key {}", way.join(" > "), connection.host_key().fingerprint);
        self.connection = Some(connection);
        self.work_by_sudo(self.sudo);
        Ok(evidence)
    }

    fn work_by_sudo(&mut self, sudo: bool) {
        self.sudo = sudo;
        self.elevated = self.connection.as_ref().filter(|_| sudo).map(Connection::elevated);
    }

    async fn check(&mut self) -> Result<String> {
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

    async fn upload(&mut self) -> Result<String> {
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

    async fn images(&mut self) -> Result<String> {
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

    async fn node_image(&self) -> Result<NodeImage> {
        let source = self.examined()?.source.clone();
        let source =
            source.ok_or_else(|| Error::internal("a host without a node image passed its checks"))?;
        self.context.images.build(source).await
    }

    async fn start(&mut self) -> Result<String> {
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

    async fn health(&mut self) -> Result<String> {
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

    async fn join(&mut self) -> Result<String> {
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
        Ok(format!("{} is Active, key {}", spec.node, &super::hex_digest(&public_key)[..16]))
    }

    async fn read_public_key(&self) -> Result<[u8; 32]> {
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

    async fn proof(&mut self) -> Result<String> {
        let image = self.examined()?.prepared.plan.images.first().map(|image| image.reference.clone());
        let image = image.ok_or_else(|| Error::internal("a plan without a node image"))?;
        self.context.membership.prove(&self.record.spec.node, &image).await
    }

    /// Puts the host back; its answer says what it is now.
    async fn rollback(&mut self) -> Result<String> {
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.reconnect().await?;
        }
        if self.examined.is_none() {
            let sudo = self.remote()?.needs_sudo().await?;
            self.work_by_sudo(sudo);
        }
        self.ensure_lock().await?;
        let id = self.record.view.deployment_id.clone();
        match self.remote()?.back(&id).await? {
            Back::Previous => return Ok(PREVIOUS_RUNS.to_owned()),
            Back::Untouched => return Ok("nothing was changed on the host".to_owned()),
            Back::First => {}
        }
        let image = match (self.loaded_image, &self.examined) {
            (true, Some(examined)) => {
                examined.prepared.plan.images.first().map(|image| image.reference.clone())
            }
            _ => None,
        };
        self.context.membership.withdraw(&self.record.spec.node).await?;
        // The link went with the withdrawal, and with it perhaps the connection it had adopted.
        if self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.reconnect().await?;
        }
        self.ensure_lock().await?;
        self.remote()?.remove(image.as_deref()).await?;
        Ok("the host is as it was before, but for volumes".to_owned())
    }

    async fn fail(&mut self, error: Error) -> Result<()> {
        tracing::warn!(deployment = %self.record.view.deployment_id, error = %error.chain(), "deployment failed");
        let mut failure = Failure::from(&error);
        self.change(|view| view.failure = Some(failure.clone())).await?;
        let mut state = DeploymentState::Failed;
        if self.touched {
            match self.step(StepName::Rollback).await {
                Ok(()) => {
                    let step = self.record.view.step_mut(StepName::Rollback);
                    let evidence = step.evidence.clone().unwrap_or_default();
                    if evidence == PREVIOUS_RUNS {
                        state = DeploymentState::RolledBack;
                    }
                    failure.message = format!("{}; {evidence}", failure.message);
                }
                Err(rollback) => {
                    state = DeploymentState::Interrupted;
                    failure.message = format!(
                        "{}; putting the host back failed as well: {}",
                        failure.message,
                        rollback.message()
                    );
                }
            }
        } else {
            failure.message = format!("{}; nothing was changed on the host", failure.message);
        }
        self.record.view.failure = Some(failure);
        self.enter(state).await
    }

    fn was_cut(&self, name: StepName, error: &Error) -> bool {
        let closed = self.connection.as_ref().is_some_and(Connection::is_closed);
        let cut = error.code() == ErrorCode::HostUnreachable || closed;
        name > StepName::Connect && name != StepName::Rollback && cut && self.reconnects < RECONNECTS_MAX
    }

    async fn reconnect(&mut self) -> Result<()> {
        self.reconnects += 1;
        (self.connection, self.elevated, self.lock) = (None, None, None);
        let delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(RECONNECT_DELAY_MAX)
            .with_max_times(RECONNECT_TRIES)
            .with_jitter()
            .build();
        let mut last = None;
        for delay in delays {
            sleep(delay).await;
            match self.connect().await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == ErrorCode::HostUnreachable => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::internal("no attempt to reconnect was made")))
    }

    async fn ensure_lock(&mut self) -> Result<()> {
        if self.lock.as_ref().is_some_and(|lock| !lock.has_ended()) {
            return Ok(());
        }
        let owner = self.context.hosts.settings().owner.clone();
        let now = time::OffsetDateTime::now_utc()
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        let lock = self.remote()?.lock(&self.record.view.deployment_id, &owner, &now).await?;
        self.lock = Some(lock);
        // The lock's own file may have made the base directory.
        self.touched |= self.examined.as_ref().is_some_and(|examined| !examined.facts.base_exists);
        Ok(())
    }

    async fn keep_log(&mut self, service: &str) {
        let Ok(remote) = self.remote() else { return };
        match remote.logs(service, LOG_LINES).await {
            Ok(text) => self.record.view.log_tail = Some(redact(&text, self.token.as_ref())),
            Err(error) => tracing::warn!(error = %error.chain(), "the failed service's log cannot be read"),
        }
    }

    async fn keep_log_of_a_failed_service(&mut self) {
        let Ok(remote) = self.remote() else { return };
        let Ok(text) = remote.containers().await else { return };
        let failed =
            health::parse(&text).into_iter().find(|one| one.condition() == health::Condition::Failed);
        if let Some(container) = failed {
            self.keep_log(&container.service).await;
        }
    }

    fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| Error::internal("a step before the connection"))
    }

    fn remote(&self) -> Result<Remote<'_>> {
        let connection = self.elevated.as_ref().map_or_else(|| self.connection(), Ok)?;
        Ok(Remote { connection, base: &self.record.spec.base_dir })
    }

    fn examined(&self) -> Result<&Examined> {
        self.examined.as_ref().ok_or_else(|| Error::internal("a step before the checks"))
    }

    async fn enter(&mut self, state: DeploymentState) -> Result<()> {
        let next = self.record.view.state.to(state)?;
        self.change(|view| view.state = next).await
    }

    /// Recorded first, then shown.
    async fn change(&mut self, change: impl FnOnce(&mut DeploymentView)) -> Result<()> {
        change(&mut self.record.view);
        self.record.view.event = self.record.view.event.max(self.views.borrow().event);
        self.record.view.touch(now_ms());
        self.context.journal.put(&self.record).await?;
        self.views.send_replace(self.record.view.clone());
        Ok(())
    }

    /// Shown, not recorded: it is gone with the step.
    fn progress(&mut self, name: StepName, text: String) {
        publish_progress(&self.views, &mut self.record.view, name, text);
    }
}

const PREVIOUS_RUNS: &str = "the previous release runs again";

fn publish_progress(
    views: &watch::Sender<DeploymentView>,
    view: &mut DeploymentView,
    name: StepName,
    text: String,
) {
    let step = view.step_mut(name);
    if step.message.as_ref() == Some(&text) {
        return;
    }
    step.message = Some(text);
    view.event = view.event.max(views.borrow().event);
    view.touch(now_ms());
    views.send_replace(view.clone());
}

/// A service may print the token it was given.
fn redact(text: &str, token: Option<&Secret>) -> String {
    match token.filter(|token| !token.is_empty()) {
        Some(token) => text.replace(token.reveal(), "(secret)"),
        None => text.to_owned(),
    }
}
