//! Rollouts: the same deployment of many hosts, some at a time, ended early when too many fail.
//!
//! [`RolloutRequest`] → all hosts validated and approved, or one error that lists what is wrong with any
//! → recorded with every spec → members begun as ordinary deployments, under ids that were recorded with
//! the rollout. So nothing has to be noted between a beginning and a restart: what was begun is what the
//! deployments' own record knows. What to begin next is decided in [`rule`], which is pure.
//!
//! Tasks: one per running rollout (`run`), owned by [`Rollouts`]; it ends with the rollout. Members are
//! deployments like any other: they go on, resume and are cancelled by themselves.
//!
//! Deliberately absent: putting hosts that succeeded back when others fail (each host is a node of its
//! own), and secrets in the record: members that wait are begun after a restart only if theirs can be
//! found again.

mod journal;
mod request;
mod rule;
mod run;
mod view;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::{DeploymentId, RolloutId},
    principal::Origin,
    secret::Secret,
};
use futures::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{request::Checked, run::Run};
use super::{Deployments, Validated, grammar, hex_digest};

pub use self::{
    journal::{RolloutJournal, RolloutRecord},
    request::{HOSTS_MAX, RolloutRequest, all_or_every_problem},
    rule::{MemberState, RolloutState},
    view::{MemberView, PlannedHost, RolloutPlan, RolloutView},
};

const LIST_MAX: u32 = 100;
/// For the plans of all hosts together; one that is not ready then is told as such.
const PLANS_LIMIT: Duration = Duration::from_secs(90);
/// Until a rollout has noted that it is cancelled.
const CANCEL_NOTED_LIMIT: Duration = Duration::from_secs(5);

/// A cheap handle.
#[derive(Clone)]
pub struct Rollouts {
    inner: Arc<Inner>,
}

struct Inner {
    deployments: Deployments,
    journal: Arc<dyn RolloutJournal>,
    live: Mutex<HashMap<RolloutId, Running>>,
    /// Looking an idempotency key up and recording it is one act.
    starting: tokio::sync::Mutex<()>,
}

/// What is known from outside of a rollout that runs.
struct Running {
    views: watch::Receiver<RolloutView>,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Rollouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rollouts")
    }
}

impl Rollouts {
    pub fn new(deployments: Deployments, journal: Arc<dyn RolloutJournal>) -> Self {
        let inner =
            Inner { deployments, journal, live: Mutex::default(), starting: tokio::sync::Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// A dry run of every host, as many at a time as deployments may run.
    pub async fn plan(&self, request: &RolloutRequest, origin: Origin) -> Result<RolloutPlan> {
        let checked = request.check(origin, self.inner.deployments.hosts().settings())?;
        self.admit(&checked.members, origin).await?;
        let deadline = tokio::time::Instant::now() + PLANS_LIMIT;
        let plans = checked.members.into_iter().zip(request.hosts.clone()).map(|(member, asked)| {
            let deployments = self.inner.deployments.clone();
            async move {
                let planned = tokio::time::timeout_at(deadline, deployments.plan(&asked, origin)).await;
                let planned = planned.unwrap_or_else(|_| {
                    Err(Error::new(ErrorCode::Timeout, format!("no plan within {PLANS_LIMIT:?}")))
                });
                PlannedHost::of(&member.spec, planned)
            }
        });
        let hosts: Vec<PlannedHost> = stream::iter(plans).buffered(checked.limits.parallel).collect().await;
        Ok(RolloutPlan::of(hosts))
    }

    /// Validates and approves all hosts, records, and returns while the rollout goes on.
    pub async fn start(&self, request: &RolloutRequest, origin: Origin) -> Result<RolloutView> {
        let Checked { members, limits } = request.check(origin, self.inner.deployments.hosts().settings())?;
        let digest = digest(&members, &limits);
        let key = request.idempotency_key.clone().filter(|key| !key.is_empty());
        let _one_at_a_time = self.inner.starting.lock().await;
        if let Some(known) = self.known(key.as_deref(), &digest).await? {
            return Ok(known);
        }
        self.admit(&members, origin).await?;
        let now = now_ms();
        let ids: Vec<DeploymentId> = members.iter().map(|_| self.inner.deployments.mint_id(now)).collect();
        let id = RolloutId::mint(now, self.inner.deployments.next_number());
        let (specs, tokens): (Vec<_>, Vec<_>) =
            members.into_iter().map(|Validated { spec, tunnel_token }| (spec, tunnel_token)).unzip();
        let record = RolloutRecord {
            view: RolloutView::new(id, &specs, limits, now),
            members: ids.into_iter().zip(specs).collect(),
            idempotency_key: key,
            request_digest: digest,
        };
        self.inner.journal.put_rollout(&record).await?;
        let view = record.view.clone();
        self.spawn(record, tokens)?;
        Ok(view)
    }

    /// Checks that a rollout could start: its arguments, the approval of every host, and the node ids.
    ///
    /// # Errors
    ///
    /// Names every host that would be refused.
    pub async fn check(&self, request: &RolloutRequest, origin: Origin) -> Result<()> {
        let checked = request.check(origin, self.inner.deployments.hosts().settings())?;
        self.admit(&checked.members, origin).await
    }

    /// Every host must be admitted and every identity be free or its own; all that is wrong is told.
    async fn admit(&self, members: &[Validated], origin: Origin) -> Result<()> {
        let mut admitted = Vec::with_capacity(members.len());
        for member in members {
            let host = member.spec.target.host.to_string();
            let deployments = &self.inner.deployments;
            let outcome = async {
                deployments.admit(&member.spec, origin).await?;
                deployments.tunnel_token(&member.spec, member.tunnel_token.clone()).await.map(drop)
            };
            admitted.push((host, outcome.await));
        }
        all_or_every_problem(admitted).map(drop)
    }

    /// Whether a rollout was begun with this key: then nothing more is begun with it.
    pub async fn knows_key(&self, key: &str) -> Result<bool> {
        grammar::idempotency_key(key)?;
        Ok(!key.is_empty() && self.inner.journal.rollout_by_key(key).await?.is_some())
    }

    /// The rollout that was begun with this key and the same arguments.
    async fn known(&self, key: Option<&str>, digest: &str) -> Result<Option<RolloutView>> {
        let Some(key) = key else { return Ok(None) };
        grammar::idempotency_key(key)?;
        let Some(known) = self.inner.journal.rollout_by_key(key).await? else { return Ok(None) };
        let id = &known.view.rollout_id;
        match known.request_digest == digest {
            true => self.get(id).await.map(Some),
            false => Err(Error::new(
                ErrorCode::Conflict,
                format!("idempotency_key was used for rollout {id} with other arguments"),
            )
            .remedy("use a fresh idempotency_key, or none")),
        }
    }

    pub async fn get(&self, id: &RolloutId) -> Result<RolloutView> {
        if let Some(running) = self.live()?.get(id) {
            return Ok(running.views.borrow().clone());
        }
        let record = self.inner.journal.rollout(id).await?;
        record.map(|record| record.view).ok_or_else(|| Error::not_found("rollout", id.as_str()))
    }

    /// Follows a rollout; of an ended one there is only the last view.
    pub async fn watch(&self, id: &RolloutId) -> Result<watch::Receiver<RolloutView>> {
        if let Some(running) = self.live()?.get(id) {
            return Ok(running.views.clone());
        }
        Ok(watch::channel(self.get(id).await?).1)
    }

    /// Newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<RolloutView>> {
        let records = self.inner.journal.rollouts(limit.clamp(1, LIST_MAX)).await?;
        let live = self.live()?;
        let newest = |view: RolloutView| match live.get(&view.rollout_id) {
            Some(running) => running.views.borrow().clone(),
            None => view,
        };
        Ok(records.into_iter().map(|record| newest(record.view)).collect())
    }

    /// Begins nothing more and cancels what runs. An ended rollout stays as it is.
    pub async fn cancel(&self, id: &RolloutId) -> Result<RolloutView> {
        let running = self.live()?.get(id).map(|one| (one.views.clone(), one.cancel.clone()));
        let Some((mut views, cancel)) = running else { return self.get(id).await };
        cancel.cancel();
        let noted = views.wait_for(|view| view.cancel_requested || view.state.is_final());
        // Its task may be recording something; the order stands either way.
        let _ = tokio::time::timeout(CANCEL_NOTED_LIMIT, noted).await;
        self.get(id).await
    }

    /// At a controller's start, after the deployments: what was in progress is taken up again.
    pub async fn resume_unfinished(&self) -> Result<usize> {
        let records = self.inner.journal.unfinished_rollouts().await?;
        let count = records.len();
        for record in records {
            tracing::info!(rollout = %record.view.rollout_id, "resuming a rollout");
            let tokens = vec![None; record.members.len()];
            self.spawn(record, tokens)?;
        }
        Ok(count)
    }

    fn spawn(&self, record: RolloutRecord, tokens: Vec<Option<Secret>>) -> Result<()> {
        let id = record.view.rollout_id.clone();
        let (sender, views) = watch::channel(record.view.clone());
        let cancel = CancellationToken::new();
        if record.view.cancel_requested {
            cancel.cancel();
        }
        self.live()?.insert(id.clone(), Running { views, cancel: cancel.clone() });
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let (deployments, journal) = (inner.deployments.clone(), inner.journal.clone());
            let run = Run::new(deployments, journal, record, tokens, sender, cancel);
            if let Err(error) = run.run().await {
                tracing::error!(rollout = %id, error = %error.chain(), "a rollout cannot be recorded and stops");
            }
            if let Ok(mut live) = inner.live.lock() {
                live.remove(&id);
            }
        });
        Ok(())
    }

    fn live(&self) -> Result<MutexGuard<'_, HashMap<RolloutId, Running>>> {
        self.inner.live.lock().map_err(|_| Error::internal("the table of running rollouts is poisoned"))
    }
}

/// What makes two requests the same one; secrets take part by their digest only.
fn digest(members: &[Validated], limits: &rule::Limits) -> String {
    let members = members.iter().map(|one| one.spec.digest(one.tunnel_token.as_ref()));
    let text = members.collect::<Vec<_>>().join(" ");
    hex_digest(format!("{text} {} {}", limits.parallel, limits.failures).as_bytes())
}
