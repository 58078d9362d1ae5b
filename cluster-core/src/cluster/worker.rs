//! A worker's relationship with its controller: connect, attest, register, heartbeat, and again for
//! ever; goodbye when the process ends.
//!
//! One task, with a visible state. It logs the first failure and every change of reason, not every try.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::membership::Command;
use crate::{
    capacity::Capacity,
    config::{resolve_secret, settings::ControllerSettings},
    error::{Error, ErrorCode, Result},
    execution::supervisor::Supervisor,
    ids::CommandId,
    rpc::{
        controller_client::{Applicant, Beat, ControllerClient, Session},
        worker_api::CurrentSession,
    },
};

const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The controller's socket costs nothing to try: a returning controller is found within seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// Acknowledged at once rather than with the next regular heartbeat.
const ACKNOWLEDGE_DELAY: Duration = Duration::from_millis(50);

/// Where the worker stands with its controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinState {
    Connecting,
    Joined,
    /// Not joined, and why; it goes on trying.
    Waiting(String),
}

#[derive(Debug)]
pub struct WorkerTask {
    pub applicant: Applicant,
    pub controller: ControllerSettings,
    pub session: CurrentSession,
    pub supervisor: Supervisor,
    pub capacity: Capacity,
    /// The controller asks for a heartbeat now.
    pub nudge: Arc<Notify>,
    pub heartbeat_interval: Duration,
    pub token_refresh_margin: Duration,
}

impl WorkerTask {
    /// Runs until told to stop.
    pub fn spawn(self, stop: CancellationToken) -> (watch::Receiver<JoinState>, tokio::task::JoinHandle<()>) {
        let (state, watched) = watch::channel(JoinState::Connecting);
        let task = tokio::spawn(async move {
            let delays = || {
                ExponentialBuilder::default()
                    .with_min_delay(BACKOFF_MIN)
                    .with_max_delay(BACKOFF_MAX)
                    .with_jitter()
                    .without_max_times()
                    .build()
            };
            let mut backoff = delays();
            while !stop.is_cancelled() {
                let mut joined = false;
                let end = self.member(&state, &mut joined, &stop).await;
                let Err(error) = end else { return };
                if joined {
                    backoff = delays();
                }
                let reason = error.to_string();
                state.send_if_modified(|state| {
                    let waiting = JoinState::Waiting(reason);
                    if *state == waiting {
                        return false;
                    }
                    tracing::warn!(reason = %error.code(), error = %error.chain(), "not joined");
                    *state = waiting;
                    true
                });
                let pause = backoff.next().unwrap_or(BACKOFF_MAX);
                if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        });
        (watched, task)
    }

    /// One membership: ends with an error when it is lost, with Ok when the process ends.
    async fn member(
        &self,
        state: &watch::Sender<JoinState>,
        joined: &mut bool,
        stop: &CancellationToken,
    ) -> Result<()> {
        let Some(joining) = stop.run_until_cancelled(self.join()).await else { return Ok(()) };
        let (mut client, mut session) = joining?;
        *joined = true;
        state.send_replace(JoinState::Joined);
        tracing::info!(controller = %session.controller_id, "joined");
        let mut acknowledged = Vec::new();
        let mut next = Instant::now() + self.heartbeat_interval;
        loop {
            let refresh = session.since + session.lifetime.saturating_sub(self.token_refresh_margin);
            tokio::select! {
                () = stop.cancelled() => {
                    self.goodbye(&mut client, &session).await;
                    return Ok(());
                }
                () = client.lost() => {
                    return Err(Error::new(ErrorCode::Unavailable, "the connection to the controller was lost"));
                }
                () = tokio::time::sleep_until(refresh.into()) => {
                    session = self.attest(&mut client).await?;
                    client.register(&session, &self.applicant, &self.capacity.measure().await).await?;
                }
                () = self.nudge.notified() => next = Instant::now(),
                () = tokio::time::sleep_until(next) => {
                    let commands = self.beat(&mut client, &session, &acknowledged).await?;
                    acknowledged = self.obey(commands)?;
                    let soon = !acknowledged.is_empty();
                    next = Instant::now() + if soon { ACKNOWLEDGE_DELAY } else { self.heartbeat_interval };
                }
            }
        }
    }

    async fn join(&self) -> Result<(ControllerClient, Arc<Session>)> {
        let mut client = ControllerClient::connect(&self.controller.endpoint).await?;
        let session = self.attest(&mut client).await?;
        let capabilities = self.capacity.measure().await;
        client.register(&session, &self.applicant, &capabilities).await?;
        // Commands that waited for this node are taken at once, not half a minute later.
        let commands = self.beat(&mut client, &session, &[]).await?;
        let acknowledged = self.obey(commands)?;
        if !acknowledged.is_empty() {
            self.beat(&mut client, &session, &acknowledged).await?;
        }
        Ok((client, session))
    }

    async fn attest(&self, client: &mut ControllerClient) -> Result<Arc<Session>> {
        let capabilities = self.capacity.measure().await;
        let session = match client.attest(&self.applicant, &capabilities, None).await {
            // Not known by key: the first contact, which needs the token.
            Err(error)
                if matches!(
                    error.code(),
                    ErrorCode::EnrolmentInvalid | ErrorCode::KeyMismatch | ErrorCode::NodeRemoved
                ) =>
            {
                let Some(reference) = &self.controller.token else { return Err(error) };
                let token = resolve_secret(reference)?;
                client.attest(&self.applicant, &capabilities, Some(token)).await?
            }
            attested => attested?,
        };
        let session = Arc::new(session);
        self.session.store(Some(session.clone()));
        Ok(session)
    }

    async fn beat(
        &self,
        client: &mut ControllerClient,
        session: &Session,
        acknowledged: &[CommandId],
    ) -> Result<Vec<(CommandId, Command)>> {
        let beat = Beat {
            capabilities: self.capacity.measure().await,
            running: self.supervisor.running(),
            held: self.supervisor.held(),
            acknowledged: acknowledged.to_vec(),
            draining: self.supervisor.is_draining(),
        };
        client.heartbeat(session, &self.applicant.node_id, beat).await
    }

    /// Applies commands in order; each names a state, so that one that comes twice changes nothing.
    fn obey(&self, commands: Vec<(CommandId, Command)>) -> Result<Vec<CommandId>> {
        commands
            .into_iter()
            .map(|(command_id, command)| {
                tracing::info!(%command_id, ?command, "obeyed");
                self.supervisor.set_draining(command == Command::Drain).map(|()| command_id)
            })
            .collect()
    }

    async fn goodbye(&self, client: &mut ControllerClient, session: &Session) {
        let goodbye = client.goodbye(session, &self.applicant.node_id, "the process ends");
        match tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await {
            Ok(Ok(())) => tracing::info!("said goodbye"),
            Ok(Err(error)) => tracing::warn!(error = %error.chain(), "the goodbye was not taken"),
            Err(_) => tracing::warn!("the goodbye was not answered"),
        }
    }
}
