//! Handle on all deployments: starts, follows and cancels them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aegis_ssh::SshTarget;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Failure, Result},
    ids::{DeploymentId, NodeId},
    principal::Origin,
    secret::Secret,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::images::NodeImages;
use crate::{
    host::{HostSession, LogsAsked, access::HostAccess},
    model::{
        finding::{Finding, Severity},
        operation::{Action, Removal},
        record::{DeploymentFilter, DeploymentRecord},
        release::StoredRelease,
        spec::{Deployed, DeploymentRequest, DeploymentSpec, Validated},
        state::DeploymentState,
        view::{DeploymentView, PlanView},
    },
    pipeline::Run,
    ports::{Journal, Membership},
    preflight::{self, Context, findings},
    request::{grammar, tunnel_token},
};

const LIST_LIMIT_DEFAULT: usize = 20;
const LIST_LIMIT_MAX: usize = 200;
/// Newest deployments that are searched for a stack without a node.
const STACKS_LOOKED_AT: usize = 1000;

/// Limit for a deployment to record its cancellation.
const CANCEL_NOTED_LIMIT: Duration = Duration::from_secs(5);

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
    /// Serialises the lookup and the recording of an idempotency key.
    starting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Live {
    running: HashMap<DeploymentId, Running>,
    /// Running deployments by host and port: one at a time for each host.
    hosts: HashMap<String, DeploymentId>,
}

/// Public handles of a running deployment.
struct Running {
    views: watch::Receiver<DeploymentView>,
    cancel: CancellationToken,
}

/// Arguments that all operations on a deployed node share.
#[derive(Debug, Clone)]
pub struct NodeOrder {
    pub node: NodeId,
    pub lock_wait_seconds: Option<u64>,
    pub idempotency_key: Option<String>,
}

impl std::fmt::Debug for Deployments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deployments")
    }
}

impl Deployments {
    pub fn new(hosts: HostAccess, journal: Arc<dyn Journal>, membership: Arc<dyn Membership>) -> Self {
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

    pub fn hosts(&self) -> &HostAccess {
        &self.inner.context.hosts
    }

    /// Runs a dry run: connects, reads and plans, without changes.
    pub async fn plan(&self, request: &DeploymentRequest, origin: Origin) -> Result<PlanView> {
        let context = &self.inner.context;
        let Validated { spec, tunnel_token } = request.validate(origin, context.hosts.settings())?;
        context.hosts.require_approval(&spec.target, origin).await?;
        context.membership.check_identity(&spec.node, &spec.target).await?;
        let tunnel_token = self.tunnel_token(&spec, tunnel_token).await?;
        let connection = context.hosts.connect(&spec.target, origin).await?;
        let examined = preflight::examine(context, &connection, &spec, tunnel_token.as_ref()).await;
        connection.close().await;
        let mut examined = examined?;
        if let Err(busy) = self.refuse_busy_host(&spec.target) {
            examined.findings.push(Finding {
                code: "host_busy".to_owned(),
                severity: Severity::Error,
                message: format!("{}: what is shown here changes meanwhile", busy.message()),
                fix: busy.remedy_text().unwrap_or_default().to_owned(),
            });
        }
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

    /// Validates, approves and records a deployment. Returns while it runs.
    pub async fn start(&self, request: &DeploymentRequest, origin: Origin) -> Result<DeploymentView> {
        let context = &self.inner.context;
        let Validated { spec, tunnel_token } = request.validate(origin, context.hosts.settings())?;
        let key = request.idempotency_key.clone();
        let digest = spec.digest(tunnel_token.as_ref());
        let _one_at_a_time = self.inner.starting.lock().await;
        if let Some(known) = self.known(key.as_deref(), &digest).await? {
            return Ok(known);
        }
        self.admit(&spec, origin).await?;
        let tunnel_token = self.tunnel_token(&spec, tunnel_token).await?;
        self.begin(self.mint_id(now_ms()), Action::Deploy, spec, digest, key, tunnel_token).await
    }

    /// Checks that a deployment is allowed: the host is approved, the identity belongs to no other host, and no node
    /// loses its stack.
    pub(super) async fn admit(&self, spec: &DeploymentSpec, origin: Origin) -> Result<()> {
        let context = &self.inner.context;
        context.hosts.require_approval(&spec.target, origin).await?;
        context.membership.check_identity(&spec.node, &spec.target).await?;
        if !spec.join && context.membership.deployed(&spec.node).await.is_ok() {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "{} is a node of this cluster, and a stack without it would leave it dead",
                    spec.node
                ),
            )
            .remedy("remove it first (remove_edge_node), or deploy with join true"));
        }
        Ok(())
    }

    /// Starts a deployment that was validated and admitted before, under its recorded id. Idempotent: does nothing if a
    /// deployment with this id exists.
    pub(super) async fn begin_as(
        &self,
        id: DeploymentId,
        spec: DeploymentSpec,
        tunnel_token: Option<Secret>,
    ) -> Result<DeploymentView> {
        let _one_at_a_time = self.inner.starting.lock().await;
        if let Some(known) = self.inner.context.journal.get(&id).await? {
            return Ok(known.view);
        }
        let digest = spec.digest(tunnel_token.as_ref());
        self.begin(id, Action::Deploy, spec, digest, None, tunnel_token).await
    }

    pub(super) fn mint_id(&self, now_ms: i64) -> DeploymentId {
        DeploymentId::mint(now_ms, self.next_number())
    }

    pub(super) fn next_number(&self) -> u64 {
        self.inner.counter.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Opens the tunnel token. A secret that does not exist is an error before anything is changed.
    pub(super) async fn tunnel_token(
        &self,
        spec: &DeploymentSpec,
        given: Option<Secret>,
    ) -> Result<Option<Secret>> {
        let context = &self.inner.context;
        tunnel_token::open(spec, given, context.hosts.settings(), context.journal.as_ref()).await
    }

    /// Rolls back to an earlier good release that the host keeps; to the newest one if no release is named.
    pub async fn roll_back(
        &self,
        order: NodeOrder,
        to: Option<DeploymentId>,
        origin: Origin,
    ) -> Result<DeploymentView> {
        self.operate(order, Action::Rollback { to }, origin).await
    }

    /// Drains the node, removes its stack, and removes the node from the cluster. Volumes hold data that cannot be
    /// recovered, so only a person may remove them.
    pub async fn remove(&self, order: NodeOrder, removal: Removal, origin: Origin) -> Result<DeploymentView> {
        if removal.volumes && origin == Origin::Assistant {
            return Err(Error::new(
                ErrorCode::Forbidden,
                "only a person may have volumes removed: what they hold cannot be had again",
            )
            .remedy(format!("ask the person to run: aegis node remove {} --volumes", order.node)));
        }
        self.operate(order, Action::Remove(removal), origin).await
    }

    /// Rejects a node that cannot be operated on: an unknown node, or one that joined by hand.
    pub async fn check_deployed(&self, node: &NodeId) -> Result<()> {
        let target = self.deployed(node).await?.target;
        self.refuse_busy_host(&target)
    }

    /// Returns the place of a deployed node, or of a stack without a node under that name.
    async fn deployed(&self, node: &NodeId) -> Result<Deployed> {
        let unknown = match self.inner.context.membership.deployed(node).await {
            Err(error) if error.code() == ErrorCode::NotFound => error,
            answer => return answer,
        };
        let filter = DeploymentFilter { limit: STACKS_LOOKED_AT, ..DeploymentFilter::default() };
        let (records, _) = self.inner.context.journal.list(&filter).await?;
        stack_of(node, &records).ok_or(unknown)
    }

    async fn operate(&self, order: NodeOrder, action: Action, origin: Origin) -> Result<DeploymentView> {
        let NodeOrder { node, lock_wait_seconds, idempotency_key } = order;
        let wait = grammar::lock_wait(lock_wait_seconds)?;
        let asked = serde_json::to_string(&(&node, &action)).unwrap_or_default();
        let digest = crate::hex_digest(asked.as_bytes());
        let _one_at_a_time = self.inner.starting.lock().await;
        if let Some(known) = self.known(idempotency_key.as_deref(), &digest).await? {
            return Ok(known);
        }
        let deployed = self.deployed(&node).await?;
        let action = match action {
            Action::Remove(removal) => Action::Remove(Removal { was_drained: deployed.drained, ..removal }),
            other => other,
        };
        let spec = DeploymentSpec::of_deployed(node, deployed, wait, origin);
        self.begin(self.mint_id(now_ms()), action, spec, digest, idempotency_key, None).await
    }

    /// Returns whether a deployment was started with this key; such a key starts nothing more.
    pub async fn knows_key(&self, key: &str) -> Result<bool> {
        grammar::idempotency_key(key)?;
        Ok(!key.is_empty() && self.inner.context.journal.by_idempotency_key(key).await?.is_some())
    }

    /// Returns the deployment that was started with this key and the same arguments.
    async fn known(&self, key: Option<&str>, digest: &str) -> Result<Option<DeploymentView>> {
        let Some(key) = key.filter(|key| !key.is_empty()) else { return Ok(None) };
        grammar::idempotency_key(key)?;
        let Some(known) = self.inner.context.journal.by_idempotency_key(key).await? else { return Ok(None) };
        let id = &known.view.deployment_id;
        match known.request_digest == digest {
            true => self.get(id).await.map(Some),
            false => Err(Error::new(
                ErrorCode::Conflict,
                format!("idempotency_key was used for deployment {id} with other arguments"),
            )
            .remedy("use a fresh idempotency_key, or none")),
        }
    }

    /// Records the deployment, then spawns its task.
    async fn begin(
        &self,
        id: DeploymentId,
        action: Action,
        spec: DeploymentSpec,
        request_digest: String,
        key: Option<String>,
        tunnel_token: Option<Secret>,
    ) -> Result<DeploymentView> {
        self.refuse_busy_host(&spec.target)?;
        let view = DeploymentView::new(id, &action, &spec, now_ms());
        let idempotency_key = key.filter(|key| !key.is_empty());
        let record = DeploymentRecord {
            view: view.clone(),
            action,
            spec,
            before: None,
            was_member: false,
            fetched: Vec::new(),
            idempotency_key,
            request_digest,
        };
        self.inner.context.journal.put(&record).await?;
        self.spawn(record, tunnel_token, false)?;
        Ok(view)
    }

    /// Cancels a deployment: the current step is cancelled and the host restored. Returns once the cancellation is
    /// recorded. Does nothing to a deployment that has ended.
    pub async fn cancel(&self, id: &DeploymentId) -> Result<DeploymentView> {
        let running = self.live()?.running.get(id).map(|one| (one.views.clone(), one.cancel.clone()));
        let Some((mut views, cancel)) = running else { return self.get(id).await };
        cancel.cancel();
        let noted = views.wait_for(|view| view.cancel_requested || view.state.is_final());
        // A step that cannot be cancelled ends first.
        let _ = tokio::time::timeout(CANCEL_NOTED_LIMIT, noted).await;
        self.get(id).await
    }

    /// Returns the releases that the node's host keeps.
    pub async fn releases(&self, node: &NodeId, origin: Origin) -> Result<Vec<StoredRelease>> {
        self.on_host(node, origin, async |remote| remote.kept().await).await
    }

    /// Returns the last log lines of the services of a node's stack.
    pub async fn logs(&self, node: &NodeId, asked: &LogsAsked, origin: Origin) -> Result<String> {
        self.on_host(node, origin, async |remote| remote.logs_of(asked).await).await
    }

    /// Runs work over a separate connection: the link's connection may be restricted to forwarding.
    async fn on_host<T>(
        &self,
        node: &NodeId,
        origin: Origin,
        work: impl AsyncFnOnce(HostSession<'_>) -> Result<T>,
    ) -> Result<T> {
        let context = &self.inner.context;
        let Deployed { target, base_dir, .. } = self.deployed(node).await?;
        let connection = context.hosts.connect(&target, origin).await?;
        let done = async {
            let sudo = HostSession { connection: &connection, base: &base_dir }.needs_sudo().await?;
            let elevated = sudo.then(|| connection.elevated());
            work(HostSession { connection: elevated.as_ref().unwrap_or(&connection), base: &base_dir }).await
        }
        .await;
        connection.close().await;
        done
    }

    pub async fn get(&self, id: &DeploymentId) -> Result<DeploymentView> {
        if let Some(running) = self.live()?.running.get(id) {
            return Ok(running.views.borrow().clone());
        }
        let record = self.inner.context.journal.get(id).await?;
        record.map(|record| record.view).ok_or_else(|| Error::not_found("deployment", id.as_str()))
    }

    /// Follows a deployment. For an ended deployment there is only the last view.
    pub async fn watch(&self, id: &DeploymentId) -> Result<watch::Receiver<DeploymentView>> {
        if let Some(running) = self.live()?.running.get(id) {
            return Ok(running.views.clone());
        }
        Ok(watch::channel(self.get(id).await?).1)
    }

    /// Returns a page of deployments, newest first, and the total number.
    pub async fn list(&self, mut filter: DeploymentFilter) -> Result<(Vec<DeploymentView>, usize)> {
        filter.limit = match filter.limit {
            0 => LIST_LIMIT_DEFAULT,
            limit => limit.min(LIST_LIMIT_MAX),
        };
        let (records, total) = self.inner.context.journal.list(&filter).await?;
        Ok((records.into_iter().map(|record| record.view).collect(), total))
    }

    /// Resumes unfinished deployments when the controller starts. Each step checks the host first, so that no change is
    /// made twice.
    pub async fn resume_unfinished(&self) -> Result<usize> {
        let records = self.inner.context.journal.unfinished().await?;
        let count = records.len();
        for record in records {
            tracing::info!(deployment = %record.view.deployment_id, "resuming a deployment");
            if self.refuse_busy_host(&record.spec.target).is_err() {
                self.end_interrupted(record).await?;
                continue;
            }
            self.spawn(record, None, true)?;
        }
        Ok(count)
    }

    /// Ends a deployment as interrupted: only one of two unfinished deployments of one host can be valid.
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

    fn refuse_busy_host(&self, target: &SshTarget) -> Result<()> {
        match self.live()?.hosts.get(&host_key(target)) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorCode::HostBusy,
                format!("{} is held by deployment {other}, which runs", target.host),
            )
            .remedy(format!("follow it with get_deployment_status {other}, then try again"))),
        }
    }

    fn spawn(&self, record: DeploymentRecord, token: Option<Secret>, resumed: bool) -> Result<()> {
        let id = record.view.deployment_id.clone();
        let host = host_key(&record.spec.target);
        let (sender, views) = watch::channel(record.view.clone());
        let cancel = CancellationToken::new();
        {
            let mut live = self.live()?;
            live.running.insert(id.clone(), Running { views, cancel: cancel.clone() });
            live.hosts.insert(host.clone(), id.clone());
        }
        let (inner, context) = (self.inner.clone(), self.inner.context.clone());
        tokio::spawn(async move {
            let run = Run::new(context, record, token, sender, cancel, resumed, inner.slots.clone());
            let outcome = run.run().await;
            if let Err(error) = outcome {
                tracing::error!(deployment = %id, error = %error.chain(), "a deployment cannot be recorded and stops");
            }
            if let Ok(mut live) = inner.live.lock() {
                live.running.remove(&id);
                live.hosts.remove(&host);
            }
        });
        Ok(())
    }

    fn live(&self) -> Result<MutexGuard<'_, Live>> {
        self.inner.live.lock().map_err(|_| Error::internal("the table of running deployments is poisoned"))
    }
}

fn host_key(target: &SshTarget) -> String {
    format!("{}:{}", target.host, target.port)
}

/// Returns the stack without a node that was last deployed under this name, unless it was removed since. Records come
/// newest first.
fn stack_of(node: &NodeId, records: &[DeploymentRecord]) -> Option<Deployed> {
    let mut of_node = records.iter().filter(|record| record.spec.node == *node);
    let last = of_node.find(|record| match (&record.action, record.view.state) {
        (Action::Remove(_), DeploymentState::Removed) => true,
        (Action::Remove(_), _) => false,
        // Something may have been left on the host.
        (Action::Deploy | Action::Rollback { .. }, _) => record.before.is_some(),
    })?;
    let is_stack = !last.spec.join && !matches!(last.action, Action::Remove(_));
    is_stack.then(|| Deployed {
        target: last.spec.target.clone(),
        base_dir: last.spec.base_dir.clone(),
        drained: false,
        join: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeploySettings, model::record::PreviousRelease};

    fn record(number: u64, action: Action, join: bool, state: DeploymentState) -> DeploymentRecord {
        let request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        let spec = request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec;
        let spec = DeploymentSpec { join, ..spec };
        let mut view = DeploymentView::new(DeploymentId::mint(1, number), &action, &spec, 0);
        view.state = state;
        DeploymentRecord {
            view,
            action,
            spec,
            before: Some(PreviousRelease::Nothing),
            was_member: false,
            fetched: Vec::new(),
            idempotency_key: None,
            request_digest: String::new(),
        }
    }

    #[test]
    fn stack_without_a_node_is_found_until_it_is_removed() {
        let node = NodeId::parse("edge1").unwrap();
        let started = record(1, Action::Deploy, false, DeploymentState::Started);
        let failed = record(2, Action::Deploy, false, DeploymentState::RolledBack);
        let removal = Action::Remove(Removal::new(false, Duration::ZERO, false).unwrap());
        let unfinished = record(3, removal.clone(), false, DeploymentState::Failed);
        let removed = record(4, removal, false, DeploymentState::Removed);
        let joined = record(5, Action::Deploy, true, DeploymentState::Ready);
        let found = |records: &[&DeploymentRecord]| {
            let records: Vec<DeploymentRecord> = records.iter().map(|record| (*record).clone()).collect();
            stack_of(&node, &records)
        };
        assert!(found(&[&started]).is_some_and(|deployed| !deployed.join));
        assert!(found(&[&unfinished, &failed, &started]).is_some());
        assert!(found(&[&removed, &started]).is_none());
        assert!(found(&[&joined, &removed]).is_none(), "a node that is gone is not a stack");
        let untouched = DeploymentRecord { before: None, ..started };
        assert!(found(&[&untouched]).is_none(), "nothing was changed on the host");
        assert!(stack_of(&NodeId::parse("other").unwrap(), &[failed]).is_none());
    }
}
