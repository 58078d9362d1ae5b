//! The host of a deployment: its connection, made anew after a cut, and the lock on it.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::sleep;

use super::{
    super::{
        Secret,
        examine::Examined,
        health::Look,
        remote::{HostLock, LOG_LINES, Remote},
        view::StepName,
    },
    Run,
};
use crate::{
    error::{Error, ErrorCode, Result},
    ssh::Connection,
};

/// Cuts that one deployment survives.
const RECONNECTS_MAX: u32 = 5;
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(15);
const RECONNECT_TRIES: usize = 8;

/// The lock on the host; it goes first, then the connection that was made for it.
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
    pub(super) async fn connect(&mut self) -> Result<String> {
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

    pub(super) fn was_cut(&self, name: StepName, error: &Error) -> bool {
        let closed = self.connection.as_ref().is_some_and(Connection::is_closed);
        let cut = error.code() == ErrorCode::HostUnreachable || closed;
        name > StepName::Connect && name != StepName::Rollback && cut && self.reconnects < RECONNECTS_MAX
    }

    pub(super) async fn reconnect(&mut self) -> Result<()> {
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

    pub(super) async fn ensure_lock(&mut self) -> Result<()> {
        if self.lock.as_ref().is_some_and(|lock| !lock.has_ended()) {
            return Ok(());
        }
        let owner = self.context.hosts.settings().owner.clone();
        let wait = Duration::from_secs(self.record.spec.lock_wait_seconds);
        let id = self.record.view.deployment_id.clone();
        let remote = self.remote()?;
        let own = self.lock_connection().await?;
        let remote = own.as_ref().map_or(remote, |connection| Remote { connection, ..remote });
        let held = remote.lock(&id, &owner, wait).await?;
        self.lock = Some(Lock { held, _own: own });
        if self.record.before.is_none() {
            let current = self.remote()?.standing(&id).await?.current;
            self.note_before(current).await?;
        }
        Ok(())
    }

    /// Where the server allows but one session a connection, the lock would keep every script out: it
    /// is held over a connection of its own, by the same way and rules.
    async fn lock_connection(&self) -> Result<Option<Connection>> {
        if self.connection()?.allows_several_sessions().await? {
            return Ok(None);
        }
        let spec = &self.record.spec;
        let own = self.context.hosts.connect(&spec.target, spec.origin).await?;
        Ok(Some(if self.sudo { own.elevated() } else { own }))
    }

    pub(super) async fn keep_log(&mut self, service: &str) {
        let Ok(remote) = self.remote() else { return };
        match remote.logs(service, LOG_LINES).await {
            Ok(text) => {
                self.record.view.log_tail = Some(redact(&text, self.token.as_ref(), self.examined.as_ref()))
            }
            Err(error) => tracing::warn!(error = %error.chain(), "the failed service's log cannot be read"),
        }
    }

    pub(super) async fn keep_log_of_a_failed_service(&mut self) {
        let Ok(remote) = self.remote() else { return };
        let Ok(text) = remote.containers().await else { return };
        let look = Look::parse(&text);
        if let Some(service) = look.failed_service() {
            self.keep_log(service).await;
        }
    }

    pub(super) fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().ok_or_else(|| Error::internal("a step before the connection"))
    }

    pub(super) fn remote(&self) -> Result<Remote<'_>> {
        let connection = self.elevated.as_ref().map_or_else(|| self.connection(), Ok)?;
        Ok(Remote { connection, base: &self.record.spec.base_dir })
    }
}

/// A service may print the token and the secrets it was given.
fn redact(text: &str, token: Option<&Secret>, examined: Option<&Examined>) -> String {
    let secrets = examined.map(|examined| examined.prepared.secrets.as_slice()).unwrap_or_default();
    let secrets = secrets.iter().chain(token).filter(|secret| !secret.is_empty());
    secrets.fold(text.to_owned(), |text, secret| text.replace(secret.reveal(), "(secret)"))
}
