//! Rollouts: the same deployment on many hosts, some at a time, stopped early when too many fail.
//!
//! A [`RolloutRequest`] is validated and approved for all hosts, or rejected with one error that lists every problem.
//! The rollout is recorded with every specification. Its members are started as ordinary deployments, under ids
//! recorded with the rollout. No further note is needed for a restart: the deployments' own records show which members
//! were started. The pure function in [`rule`] decides which members to start next.
//!
//! Each running rollout is one task (`run`), owned by [`Rollouts`]; the task ends with the rollout. Members are
//! ordinary deployments: they run, resume and are cancelled by themselves.
//!
//! Not done on purpose: restoring hosts that succeeded when others fail, since each host is a node of its own. Secrets
//! are not recorded either. After a restart, waiting members start only if their secrets can be found again.

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
use super::{Deployments, Validated, hex_digest};
use crate::request::grammar;

pub use self::{
    journal::{RolloutJournal, RolloutRecord},
    request::{HOSTS_MAX, RolloutRequest, all_or_every_problem},
    rule::{MemberState, RolloutState},
    view::{MemberView, PlannedHost, RolloutPlan, RolloutView},
};

const LIST_MAX: u32 = 100;
/// Time limit for the plans of all hosts together. A plan that is not ready by then is reported as such.
const PLANS_LIMIT: Duration = Duration::from_secs(90);
/// Limit for a rollout to record its cancellation.
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
    /// Serialises the lookup and the recording of an idempotency key.
    starting: tokio::sync::Mutex<()>,
}

/// Public handles of a running rollout.
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

    /// Runs a dry run of every host, as many at a time as deployments may run.
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

    /// Validates and approves all hosts, and records the rollout. Returns while it runs.
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

    /// Checks that every host is admitted and every identity is free. The error lists all problems.
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

    /// Returns whether a rollout was started with this key; such a key starts nothing more.
    pub async fn knows_key(&self, key: &str) -> Result<bool> {
        grammar::idempotency_key(key)?;
        Ok(!key.is_empty() && self.inner.journal.rollout_by_key(key).await?.is_some())
    }

    /// Returns the rollout that was started with this key and the same arguments.
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

    /// Follows a rollout. For an ended rollout there is only the last view.
    pub async fn watch(&self, id: &RolloutId) -> Result<watch::Receiver<RolloutView>> {
        if let Some(running) = self.live()?.get(id) {
            return Ok(running.views.clone());
        }
        Ok(watch::channel(self.get(id).await?).1)
    }

    /// Returns rollouts, newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<RolloutView>> {
        let records = self.inner.journal.rollouts(limit.clamp(1, LIST_MAX)).await?;
        let live = self.live()?;
        let newest = |view: RolloutView| match live.get(&view.rollout_id) {
            Some(running) => running.views.borrow().clone(),
            None => view,
        };
        Ok(records.into_iter().map(|record| newest(record.view)).collect())
    }

    /// Cancels a rollout: starts no further members and cancels running ones. Does nothing to an ended rollout.
    pub async fn cancel(&self, id: &RolloutId) -> Result<RolloutView> {
        let running = self.live()?.get(id).map(|one| (one.views.clone(), one.cancel.clone()));
        let Some((mut views, cancel)) = running else { return self.get(id).await };
        cancel.cancel();
        let noted = views.wait_for(|view| view.cancel_requested || view.state.is_final());
        // The task may still be recording; the cancellation stands either way.
        let _ = tokio::time::timeout(CANCEL_NOTED_LIMIT, noted).await;
        self.get(id).await
    }

    /// Resumes unfinished rollouts when the controller starts, after the deployments.
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

/// Returns the digest by which two requests count as the same. Secrets contribute by their digest only.
fn digest(members: &[Validated], limits: &rule::Limits) -> String {
    let members = members.iter().map(|one| one.spec.digest(one.tunnel_token.as_ref()));
    let text = members.collect::<Vec<_>>().join(" ");
    hex_digest(format!("{text} {} {}", limits.parallel, limits.failures).as_bytes())
}
