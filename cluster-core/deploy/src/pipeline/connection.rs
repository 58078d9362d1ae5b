//! Connection to the host of a deployment, reconnected after a cut, and the lock on the host.

use std::time::Duration;

use aegis_ssh::Connection;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::DeploymentId,
    secret::redact,
};
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::sleep;

use super::{super::health::StackSnapshot, Run};
use crate::{
    host::{HostLock, HostSession, LOG_LINES, Standing},
    model::{operation::Action, record::PreviousRelease, state::StepName},
};

/// Maximum number of cuts that a deployment survives before it has changed anything.
const RECONNECTS_MAX: u32 = 5;
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(500);
/// Attempts to reconnect while nothing was changed on the host: about a minute in all.
const RECONNECT_TRIES: usize = 8;
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(15);
/// Longest pause between two attempts after the host was changed. Attempts continue until the host answers or the
/// deployment is cancelled, since only the host knows the outcome of the change.
const RECHECK_DELAY_MAX: Duration = Duration::from_secs(30);
/// Number of cuts after which the pause no longer grows.
const LOSSES_COUNTED: usize = RECONNECT_TRIES;
/// Attempts for a first connection. A jump host drops some of many simultaneous connections.
const CONNECT_TRIES: usize = 3;
const CONNECT_DELAY_MIN: Duration = Duration::from_secs(1);

/// Host lock and the connection that holds it. Field order matters: the lock is dropped first.
pub(super) struct Lock {
    held: HostLock,
    _own: Option<Connection>,
}

impl Lock {
    fn has_ended(&self) -> bool {
        self.held.has_ended()
    }
}

impl Run {
    /// Runs the connect step. An unreachable host is retried a few times, since nothing was changed there yet.
    pub(super) async fn connect(&mut self) -> Result<String> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(CONNECT_DELAY_MIN)
            .with_max_times(CONNECT_TRIES - 1)
            .with_jitter()
            .build();
        loop {
            match self.connect_once().await {
                Err(error) if error.code() == ErrorCode::HostUnreachable && !self.is_touched() => {
                    let Some(delay) = delays.next() else { return Err(error) };
                    self.progress(StepName::Connect, format!("{}; trying again", error.message()));
                    sleep(delay).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Returns whether this deployment may have changed something on the host.
    pub(super) fn is_touched(&self) -> bool {
        self.record.before.is_some()
    }

    async fn connect_once(&mut self) -> Result<String> {
        let spec = &self.record.spec;
        let connection = self.context.hosts.connect(&spec.target, spec.origin).await?;
        let way: Vec<String> = connection.route().iter().map(ToString::to_string).collect();
        let evidence = format!("{}, host key {}", way.join(" > "), connection.host_key().fingerprint);
        self.connection = Some(connection);
        self.work_by_sudo(self.sudo);
        Ok(evidence)
    }

    pub(super) fn work_by_sudo(&mut self, sudo: bool) {
        self.sudo = sudo;
        self.elevated = self.connection.as_ref().filter(|_| sudo).map(Connection::elevated);
    }

    pub(super) fn on_lost_host(&self, name: StepName, error: &Error) -> OnLostHost {
        let closed = self.connection.as_ref().is_some_and(Connection::is_closed);
        let lost = error.code() == ErrorCode::HostUnreachable || closed;
        if !lost || error.code() == ErrorCode::Cancelled {
            return OnLostHost::Fail;
        }
        // A cancelled deployment does not wait for a host that is lost repeatedly.
        let gives_up = self.cancel.is_cancelled() && self.losses > CONNECT_TRIES;
        on_lost_host(name, self.is_touched() && !gives_up, self.reconnects)
    }

    /// Reconnects after a cut. Without `forever`, returns the last error after a bounded number of attempts. With
    /// `forever`, the deployment gives up its slot in the queue while it waits.
    ///
    /// # Cancel safety
    /// Safe: the connection is lost already.
    pub(super) async fn reconnect(&mut self, name: StepName, forever: bool) -> Result<()> {
        self.reconnects += 1;
        (self.connection, self.elevated, self.lock) = (None, None, None);
        let backoff = ExponentialBuilder::default().with_min_delay(RECONNECT_DELAY_MIN).with_jitter();
        // Cancellation shortens the wait.
        let tries_max = if self.cancel.is_cancelled() { CONNECT_TRIES } else { RECONNECT_TRIES };
        let mut delays = match forever {
            true => backoff.with_max_delay(RECHECK_DELAY_MAX).without_max_times().build(),
            false => backoff.with_max_delay(RECONNECT_DELAY_MAX).with_max_times(tries_max).build(),
        };
        // The delay grows each time that the connection is lost during the same step.
        for _ in 1..self.losses.min(LOSSES_COUNTED) {
            delays.next();
        }
        let mut last = Error::internal("no attempt to reconnect was made");
        let mut tries = 0;
        for delay in delays {
            sleep(delay).await;
            match self.connect_once().await {
                Ok(_) => {
                    self.take_slot().await;
                    return Ok(());
                }
                Err(error) if error.code() == ErrorCode::HostUnreachable => {
                    tries += 1;
                    if forever && tries == RECONNECT_TRIES {
                        self.slot = None;
                    }
                    let text = format!(
                        "the connection was cut; what became of it is being re-checked (try {tries}: {})",
                        error.message()
                    );
                    self.progress(name, text);
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Replaces a lost connection, in one attempt.
    pub(super) async fn connect_again(&mut self) -> Result<()> {
        (self.connection, self.elevated, self.lock) = (None, None, None);
        self.connect_once().await.map(drop)
    }

    async fn take_slot(&mut self) {
        if self.slot.is_none() {
            self.slot = self.slots.clone().acquire_owned().await.ok();
        }
    }

    /// Takes the lock, or verifies that it is still held. Returns an error if another deployment held the lock in the
    /// meantime and switched the host to its own release.
    pub(super) async fn ensure_lock(&mut self) -> Result<()> {
        let Some(standing) = self.take_lock().await? else { return Ok(()) };
        let Some(before) = &self.record.before else { return Ok(()) };
        match superseded_by(&self.own_release(), before, &standing) {
            None => Ok(()),
            Some(other) => Err(Error::new(
                ErrorCode::Conflict,
                format!("another deployment switched the host to release {other} meanwhile"),
            )
            .remedy("look at what it did, then deploy again")),
        }
    }

    /// Takes the lock unless it is held. Returns the state of the releases since the lock was taken.
    pub(super) async fn take_lock(&mut self) -> Result<Option<Standing>> {
        if self.lock.as_ref().is_some_and(|lock| !lock.has_ended()) {
            return Ok(None);
        }
        let owner = self.context.hosts.settings().owner.clone();
        let wait = Duration::from_secs(self.record.spec.lock_wait_seconds);
        let id = self.record.view.deployment_id.clone();
        let remote = self.remote()?;
        let own = self.lock_connection().await?;
        let remote = own.as_ref().map_or(remote, |connection| HostSession { connection, ..remote });
        let held = remote.lock(&id, &owner, wait).await?;
        self.lock = Some(Lock { held, _own: own });
        let standing = self.remote()?.standing(&id).await?;
        self.note_before(&standing).await?;
        Ok(Some(standing))
    }

    /// Returns the release that this operation makes current.
    pub(super) fn own_release(&self) -> DeploymentId {
        match (&self.record.action, &self.chosen, &self.record.view.release) {
            (Action::Rollback { .. }, Some(chosen), _) => chosen.note.deployment_id.clone(),
            (Action::Rollback { .. }, None, Some(release)) => release.clone(),
            _ => self.record.view.deployment_id.clone(),
        }
    }

    /// Returns how long `docker compose up` may wait: the requested time for health checks, plus the time for running
    /// containers to stop.
    pub(super) async fn start_waits(&self) -> Result<Duration> {
        let stops = StackSnapshot::parse(&self.remote()?.containers().await?).stop_time();
        Ok(self.record.spec.health_limit() + stops)
    }

    /// Opens a separate connection for the lock if the server allows only one session per connection. Otherwise the
    /// lock would block every script. The connection uses the same route and rules.
    async fn lock_connection(&self) -> Result<Option<Connection>> {
        if self.connection()?.allows_several_sessions().await? {
            return Ok(None);
        }
        let spec = &self.record.spec;
        let own = self.context.hosts.connect(&spec.target, spec.origin).await?;
        Ok(Some(if self.sudo { own.elevated() } else { own }))
    }

    pub(super) async fn keep_log(&mut self, service: &str) {
        match self.redacted_log(service).await {
            Ok(text) => self.record.view.log_tail = Some(text),
            Err(error) => tracing::warn!(error = %error.chain(), "the failed service's log cannot be read"),
        }
    }

    /// Returns the last log lines of a service with its secrets redacted. Covers the secrets of the host's release and
    /// those known to this deployment. A log that cannot be redacted is discarded.
    async fn redacted_log(&self, service: &str) -> Result<String> {
        let remote = self.remote()?;
        let text = remote.logs(service, LOG_LINES).await?;
        let mut secrets = remote.secrets().await?;
        secrets.extend(self.examined.iter().flat_map(|examined| examined.prepared.secrets.iter().cloned()));
        secrets.extend(self.token.clone());
        Ok(redact(&text, &secrets))
    }

    pub(super) async fn keep_log_of_a_failed_service(&mut self) {
        let Ok(remote) = self.remote() else { return };
        let Ok(text) = remote.containers().await else { return };
        let look = StackSnapshot::parse(&text);
        if let Some(service) = look.failed_service() {
            self.keep_log(service).await;
        }
    }

    pub(super) fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| Error::internal("a step before the connection"))
    }

    pub(super) fn remote(&self) -> Result<HostSession<'_>> {
        let connection = self.elevated.as_ref().map_or_else(|| self.connection(), Ok)?;
        Ok(HostSession { connection, base: &self.record.spec.base_dir })
    }
}

/// Reaction to a connection that was lost during a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnLostHost {
    Fail,
    /// Retry a bounded number of times; nothing was changed on the host.
    Reconnect,
    /// Retry without limit: the outcome is unknown, not failed.
    Recheck,
}

fn on_lost_host(name: StepName, touched: bool, reconnects: u32) -> OnLostHost {
    match (touched, name) {
        (true, _) => OnLostHost::Recheck,
        // These steps have used up their own retries.
        (false, StepName::Connect | StepName::Rollback) => OnLostHost::Fail,
        (false, _) if reconnects < RECONNECTS_MAX => OnLostHost::Reconnect,
        (false, _) => OnLostHost::Fail,
    }
}

/// Returns the current release, unless it belongs to this operation or was found before it.
pub(super) fn superseded_by(
    own: &DeploymentId,
    before: &PreviousRelease,
    standing: &Standing,
) -> Option<DeploymentId> {
    let found = match before {
        PreviousRelease::Release(id) => Some(id),
        PreviousRelease::Nothing | PreviousRelease::Stack => None,
    };
    let current = standing.current.as_ref()?;
    (current != own && Some(current) != found).then(|| current.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_host_is_rechecked_without_end() {
        for name in [StepName::Connect, StepName::Images, StepName::Rollback, StepName::Stop] {
            assert_eq!(on_lost_host(name, true, 1_000), OnLostHost::Recheck, "{name}");
        }
        assert_eq!(on_lost_host(StepName::Check, false, 0), OnLostHost::Reconnect);
        assert_eq!(on_lost_host(StepName::Check, false, RECONNECTS_MAX), OnLostHost::Fail);
        assert_eq!(on_lost_host(StepName::Connect, false, 0), OnLostHost::Fail);
    }

    #[test]
    fn release_of_another_deployment_supersedes() {
        let id = |number| DeploymentId::mint(1, number);
        let current = |number| Standing { current: Some(id(number)), complete: true, has_containers: false };
        let before = PreviousRelease::Release(id(1));
        assert_eq!(superseded_by(&id(2), &before, &current(1)), None);
        assert_eq!(superseded_by(&id(2), &before, &current(2)), None);
        assert_eq!(superseded_by(&id(2), &before, &current(3)), Some(id(3)));
        assert_eq!(superseded_by(&id(2), &PreviousRelease::Nothing, &current(3)), Some(id(3)));
        let none = Standing { current: None, complete: false, has_containers: true };
        assert_eq!(superseded_by(&id(2), &PreviousRelease::Stack, &none), None);
    }
}
