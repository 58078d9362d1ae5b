//! Deployments: a machine that can be reached by SSH becomes a node of the cluster.
//!
//! [`DeploymentRequest`] → validated [`DeploymentSpec`] → facts of the host and [`plan::Plan`] (pure;
//! both from `examine`) → the steps of `apply`, each recorded before and after. [`Deployments`] is the handle that
//! everything above uses.
//!
//! Tasks: one per running deployment, owned by [`Deployments`], bounded by `max_parallel`, one a host;
//! it ends with the deployment. The standing connection of a node is not ours: it is handed over to
//! [`Membership::attach_link`].
//!
//! Port and user are recorded; all else that `~/.ssh/config` says of a host is read at each connection
//! (`hosts`). A login that needs sudo runs the scripts of `remote` by it, and nothing else.
//!
//! Absent for now: `link: direct`, TCP forwards where sshd forbids sockets.

mod apply;
pub mod checks;
pub mod env_file;
mod examine;
pub mod findings;
pub mod grammar;
mod health;
pub mod hosts;
pub mod image;
mod images;
mod node_config;
pub mod plan;
mod release;
pub mod remote;
mod secret;
pub mod settings;
pub mod spec;
pub mod stack;
mod tunnel;
pub mod view;
pub mod world;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64, atomic::Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Semaphore, watch};

use self::{apply::Run, examine::Context, images::NodeImages, world::DeploymentRecord};
pub use self::{
    findings::Finding,
    hosts::Hosts,
    secret::Secret,
    settings::DeploySettings,
    spec::{DeploymentRequest, DeploymentSpec, Origin, Service, Validated},
    tunnel::TunnelSource,
    view::{DeploymentState, DeploymentView, PlanView, StepName, StepState, StepView},
    world::{ApprovedHost, DeploymentFilter, Journal, Membership},
};
use crate::{
    error::{Error, ErrorCode, Failure, Result},
    ids::{DeploymentId, NodeId},
};

const LIST_LIMIT_DEFAULT: usize = 20;
const LIST_LIMIT_MAX: usize = 200;

/// Where a deployed node finds its sockets, seen from the host. `owner` names this controller.
pub fn link_settings(node: &NodeId, base_dir: &str, owner: &str) -> crate::ssh::LinkSettings {
    let run = format!("{base_dir}/run");
    crate::ssh::LinkSettings {
        node: node.clone(),
        controller_socket: format!("{run}/controller.sock"),
        node_socket: format!("{run}/node.sock"),
        session_note: format!("{run}/link.session"),
        owner: owner.to_owned(),
    }
}

/// A cheap handle.
#[derive(Clone)]
pub struct Deployments {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    slots: Arc<Semaphore>,
    counter: AtomicU64,
    live: Mutex<Live>,
    /// Serialises idempotency: looking a key up and recording it is one act.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Live {
    views: HashMap<DeploymentId, watch::Receiver<DeploymentView>>,
    /// By host and port: one deployment at a time.
    hosts: HashMap<String, DeploymentId>,
}

impl std::fmt::Debug for Deployments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deployments")
    }
}

impl Deployments {
    pub fn new(hosts: Hosts, journal: Arc<dyn Journal>, membership: Arc<dyn Membership>) -> Self {
        let settings = hosts.settings().clone();
        let images = NodeImages::new(settings.node_binaries.clone());
        let slots = Arc::new(Semaphore::new(settings.max_parallel.max(1)));
        let context = Arc::new(Context { hosts, journal, membership, images });
        let inner = Inner {
            context,
            slots,
            counter: AtomicU64::new(0),
            live: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn hosts(&self) -> &Hosts {
        &self.inner.context.hosts
    }

    /// A dry run: connects, reads, decides, changes nothing.
    pub async fn plan(&self, request: &DeploymentRequest, origin: Origin) -> Result<PlanView> {
        let context = &self.inner.context;
        let Validated { spec, tunnel_token } = request.validate(origin, context.hosts.settings())?;
        context.membership.check_identity(&spec.node, &spec.target).await?;
        let connection = context.hosts.connect(&spec.target, origin).await?;
        let examined = examine::examine(context, &connection, &spec, tunnel_token.as_ref()).await;
        connection.close().await;
        let examined = examined?;
        let refusal = findings::refusal(spec.target.host.as_str(), &examined.findings);
        let next_step = match &refusal {
            None => "call deploy_edge_node again with dry_run false to carry it out".to_owned(),
            Some(error) => error.remedy_text().unwrap_or("remove the findings first").to_owned(),
        };
        Ok(PlanView {
            plan: examined.prepared.plan,
            findings: examined.findings,
            can_deploy: refusal.is_none(),
            next_step,
        })
    }

    /// Validates, approves, records, and returns while the deployment goes on.
    pub async fn start(&self, request: &DeploymentRequest, origin: Origin) -> Result<DeploymentView> {
        let context = &self.inner.context;
        let Validated { spec, tunnel_token } = request.validate(origin, context.hosts.settings())?;
        let digest = spec.digest(tunnel_token.as_ref());
        let key = request.idempotency_key.clone().filter(|key| !key.is_empty());
        let _one_at_a_time = self.inner.starting.lock().await;
        if let Some(key) = &key
            && let Some(known) = context.journal.by_idempotency_key(key).await?
        {
            return match known.request_digest == digest {
                true => self.get(&known.view.deployment_id).await,
                false => Err(Error::new(
                    ErrorCode::Conflict,
                    format!(
                        "idempotency_key was used for deployment {} with other arguments",
                        known.view.deployment_id
                    ),
                )
                .remedy("use a fresh idempotency_key, or none")),
            };
        }
        context.hosts.require_approval(&spec.target, origin).await?;
        context.membership.check_identity(&spec.node, &spec.target).await?;
        let now = now_ms();
        let id = DeploymentId::mint(now, self.inner.counter.fetch_add(1, Ordering::Relaxed) + 1);
        self.refuse_busy_host(&spec)?;
        let view = DeploymentView::new(id, &spec, now);
        let record =
            DeploymentRecord { view: view.clone(), spec, idempotency_key: key, request_digest: digest };
        context.journal.put(&record).await?;
        self.spawn(record, tunnel_token, false)?;
        Ok(view)
    }

    pub async fn get(&self, id: &DeploymentId) -> Result<DeploymentView> {
        if let Some(views) = self.live()?.views.get(id) {
            return Ok(views.borrow().clone());
        }
        let record = self.inner.context.journal.get(id).await?;
        record.map(|record| record.view).ok_or_else(|| Error::not_found("deployment", id.as_str()))
    }

    /// Follows a deployment; of an ended one there is only the last view.
    pub async fn watch(&self, id: &DeploymentId) -> Result<watch::Receiver<DeploymentView>> {
        if let Some(views) = self.live()?.views.get(id) {
            return Ok(views.clone());
        }
        Ok(watch::channel(self.get(id).await?).1)
    }

    /// Newest first, and how many there are in all.
    pub async fn list(&self, mut filter: DeploymentFilter) -> Result<(Vec<DeploymentView>, usize)> {
        filter.limit = match filter.limit {
            0 => LIST_LIMIT_DEFAULT,
            limit => limit.min(LIST_LIMIT_MAX),
        };
        let (records, total) = self.inner.context.journal.list(&filter).await?;
        Ok((records.into_iter().map(|record| record.view).collect(), total))
    }

    /// At a controller's start: what was in progress is taken up again. Each step looks at the host
    /// first, so what was done is not done twice.
    pub async fn resume_unfinished(&self) -> Result<usize> {
        let records = self.inner.context.journal.unfinished().await?;
        let count = records.len();
        for record in records {
            tracing::info!(deployment = %record.view.deployment_id, "resuming a deployment");
            if self.refuse_busy_host(&record.spec).is_err() {
                self.end_interrupted(record).await?;
                continue;
            }
            self.spawn(record, None, true)?;
        }
        Ok(count)
    }

    /// Two unfinished ones for one host cannot both be right.
    async fn end_interrupted(&self, mut record: DeploymentRecord) -> Result<()> {
        record.view.state = record.view.state.to(DeploymentState::Interrupted)?;
        record.view.failure = Some(Failure {
            code: ErrorCode::Cancelled,
            message: "interrupted; another deployment of the same host was resumed".to_owned(),
            remedy: None,
        });
        record.view.touch(now_ms());
        self.inner.context.journal.put(&record).await
    }

    fn refuse_busy_host(&self, spec: &DeploymentSpec) -> Result<()> {
        match self.live()?.hosts.get(&host_key(spec)) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorCode::HostBusy,
                format!("{} is held by deployment {other}, which runs", spec.target.host),
            )
            .remedy(format!("follow it with get_deployment_status {other}, then try again"))),
        }
    }

    fn spawn(&self, record: DeploymentRecord, token: Option<Secret>, resumed: bool) -> Result<()> {
        let id = record.view.deployment_id.clone();
        let host = host_key(&record.spec);
        let (sender, views) = watch::channel(record.view.clone());
        {
            let mut live = self.live()?;
            live.views.insert(id.clone(), views);
            live.hosts.insert(host.clone(), id.clone());
        }
        let (inner, context) = (self.inner.clone(), self.inner.context.clone());
        tokio::spawn(async move {
            let run = Run::new(context, record, token, sender, resumed);
            let outcome = match inner.slots.clone().acquire_owned().await {
                Ok(_slot) => run.run().await,
                Err(error) => Err(Error::internal("no slot for a deployment").source(error)),
            };
            if let Err(error) = outcome {
                tracing::error!(deployment = %id, error = %error.chain(), "a deployment cannot be recorded and stops");
            }
            if let Ok(mut live) = inner.live.lock() {
                live.views.remove(&id);
                live.hosts.remove(&host);
            }
        });
        Ok(())
    }

    fn live(&self) -> Result<MutexGuard<'_, Live>> {
        self.inner.live.lock().map_err(|_| Error::internal("the table of running deployments is poisoned"))
    }
}

fn host_key(spec: &DeploymentSpec) -> String {
    format!("{}:{}", spec.target.host, spec.target.port)
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

fn hex_digest(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}
