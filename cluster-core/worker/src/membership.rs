//! A worker's relationship with its controller: connect, attest, register, heartbeat, and again for
//! ever; goodbye when the process ends.
//!
//! One task, with a visible state. It logs the first failure and every change of reason, not every try.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aegis_config::{applied::AppliedConfig, settings::ControllerSettings};
use aegis_fs::resolve_secret;
use aegis_identity::random;
use aegis_rpc::{
    controller_client::{Beat, ControllerClient, JoiningNode, Session},
    controller_line::LinkTls,
    tls::Credentials,
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    heartbeat::Command,
    ids::CommandId,
};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{api::CurrentSession, capacity::Capacity, supervisor::Supervisor};

const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The controller's socket costs nothing to try: a returning controller is found within seconds.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Between tries of a refresh that the controller cannot serve just now.
const REFRESH_RETRY: Duration = Duration::from_secs(5);
/// A token is refreshed no sooner than this, whatever its lifetime and margin.
const REFRESH_MIN: Duration = Duration::from_secs(30);
/// Refreshes of nodes that came back together are spread over this part of a token's life.
const REFRESH_SPREAD: u32 = 10;
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// Acknowledged at once rather than with the next regular heartbeat.
const ACKNOWLEDGE_DELAY: Duration = Duration::from_millis(50);

/// Orders of the person whose machine this is, waiting for the task.
const ORDERS_MAX: usize = 8;
/// Between looks at what still runs on a node that is to shut down.
const SHUTDOWN_INTERVAL: Duration = Duration::from_millis(500);

/// Command of the operator of this machine.
#[derive(Debug)]
enum Order {
    /// To be no member any more; true once that is done.
    Leave(oneshot::Sender<Result<bool>>),
    RotateKey(oneshot::Sender<Result<()>>),
}

/// A cheap handle on the worker's task.
#[derive(Debug, Clone)]
pub struct Member {
    state: watch::Receiver<JoinState>,
    orders: mpsc::Sender<Order>,
}

impl Member {
    pub fn state(&self) -> JoinState {
        self.state.borrow().clone()
    }

    /// Asks the controller to remove this node, which first is drained: ask again until it is true.
    pub async fn leave(&self) -> Result<bool> {
        self.order(Order::Leave).await
    }

    /// Changes this node's key.
    pub async fn rotate_key(&self) -> Result<()> {
        self.order(Order::RotateKey).await
    }

    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T>>) -> Order) -> Result<T> {
        if let JoinState::Waiting(reason) = self.state() {
            return Err(Error::new(ErrorCode::Unavailable, format!("this node has not joined: {reason}"))
                .remedy("`aegis status` says when it has"));
        }
        let (answer, answered) = oneshot::channel();
        let gone = || Error::new(ErrorCode::Unavailable, "the membership ended before it answered");
        self.orders.send(order(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// How a membership ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process was told to stop.
    Stopped,
    /// The controller shut this node down.
    ShutDown,
    /// The node is no member any more.
    Left,
}

/// State of the worker's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinState {
    Connecting,
    Joined,
    /// No member any more, by its own wish or at an operator's order: the process ends.
    Left,
    /// Not joined, and why; it goes on trying.
    Waiting(String),
}

#[derive(Debug)]
pub struct WorkerTask {
    pub applicant: JoiningNode,
    pub controller: ControllerSettings,
    pub tls: LinkTls,
    pub session: CurrentSession,
    pub supervisor: Supervisor,
    pub capacity: Capacity,
    /// The controller asks for a heartbeat now.
    pub nudge: Arc<Notify>,
    /// Cancelled when the process is to end: the controller shut this node down, or it left.
    pub end: CancellationToken,
    pub applied: AppliedConfig,
    /// The data directory.
    pub data: PathBuf,
}

/// Returns the time after which a token is refreshed: at half of its life, so that an outage of what signs it is
/// outlived by the other half. Nodes that attested together come at different moments, and no node so soon that it
/// would attest over and over. The margin counts where a token lives no longer than twice that.
fn refresh_after(lifetime: Duration, margin: Duration, jitter: f64) -> Duration {
    let due = (lifetime / 2).min(lifetime.saturating_sub(margin));
    due.saturating_sub((lifetime / REFRESH_SPREAD).mul_f64(jitter)).max(REFRESH_MIN)
}

/// A number from 0 to 1.
fn rand_share() -> Result<f64> {
    Ok(f64::from(u16::from_le_bytes(random::<2>()?)) / f64::from(u16::MAX))
}

/// Resolves with a change of what is watched; never where there is nothing to watch.
async fn changed<T>(watched: &mut Option<watch::Receiver<T>>) {
    let changed = match watched {
        Some(version) => version.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

impl WorkerTask {
    /// Runs until told to stop.
    pub fn spawn(self, stop: CancellationToken) -> (Member, tokio::task::JoinHandle<()>) {
        let (state, watched) = watch::channel(JoinState::Connecting);
        let (orders, mut ordered) = mpsc::channel(ORDERS_MAX);
        let member = Member { state: watched, orders };
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
                let end = self.member(&state, &mut joined, &mut ordered, &stop).await;
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
        (member, task)
    }

    /// One membership: ends with an error when it is lost, with Ok when the process ends.
    async fn member(
        &self,
        state: &watch::Sender<JoinState>,
        joined: &mut bool,
        orders: &mut mpsc::Receiver<Order>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let Some(joining) = stop.run_until_cancelled(self.join()).await else { return Ok(()) };
        let (mut client, mut session) = joining?;
        *joined = true;
        state.send_replace(JoinState::Joined);
        tracing::info!(controller = %session.controller_id, "joined");
        let end = match self.belong(&mut client, &mut session, orders, stop).await {
            // What failed then was in the way of stopping.
            Err(_) if stop.is_cancelled() => End::Stopped,
            end => end?,
        };
        match end {
            // The next controller that this machine joins is its operator's choice.
            End::Left => self.applicant.known.forget()?,
            End::Stopped | End::ShutDown => self.goodbye(&mut client, &session).await,
        }
        if end != End::Stopped {
            tracing::info!(?end, "the membership is over, and the process ends");
            state.send_replace(JoinState::Left);
            self.end.cancel();
        }
        Ok(())
    }

    /// Heartbeats, renewals and orders, until the membership is over or lost.
    async fn belong(
        &self,
        client: &mut ControllerClient,
        session: &mut Arc<Session>,
        orders: &mut mpsc::Receiver<Order>,
        stop: &CancellationToken,
    ) -> Result<End> {
        let mut acknowledged = Vec::new();
        let mut configured = self.applied.watch();
        let mut next = Instant::now() + self.applied.settings().heartbeat_interval;
        let mut refresh_again = None;
        let mut jitter = rand_share()?;
        let mut look = tokio::time::interval(SHUTDOWN_INTERVAL);
        let mut certificate = self.tls.credentials().map(Credentials::version);
        let mut engine = self.capacity.engine_changes();
        loop {
            let settings = self.applied.settings();
            let due = session.since + refresh_after(session.lifetime, settings.token_refresh_margin, jitter);
            let refresh = refresh_again.unwrap_or(due);
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                () = client.lost() => {
                    return Err(Error::new(ErrorCode::Unavailable, "the connection to the controller was lost"));
                }
                () = tokio::time::sleep_until(refresh) => match self.renew(client, session).await {
                    Ok(()) => (refresh_again, jitter) = (None, rand_share()?),
                    // The controller cannot sign just now, and our token is good for a while yet.
                    Err(error) if error.code() == ErrorCode::Unavailable && session.is_valid() => {
                        tracing::warn!(error = %error.chain(), "the token could not be refreshed yet");
                        refresh_again = Some(Instant::now() + REFRESH_RETRY);
                    }
                    Err(error) => return Err(error),
                },
                Some(order) = orders.recv() => {
                    if self.take(order, client, session).await? {
                        return Ok(End::Left);
                    }
                }
                _ = look.tick(), if self.supervisor.control().is_closing() && acknowledged.is_empty() => {
                    if self.supervisor.running() == 0 {
                        return Ok(End::ShutDown);
                    }
                }
                // A shorter interval holds at once, not after the longer one.
                _ = configured.changed() => {
                    next = next.min(Instant::now() + self.applied.settings().heartbeat_interval);
                }
                () = changed(&mut certificate) => {
                    // Shown from now on; the session is the same.
                    *client = ControllerClient::connect(&self.controller.endpoint, &self.tls).await?;
                }
                () = self.nudge.notified() => next = Instant::now(),
                // The controller hears of it at once, and sends no more work, or some again.
                () = changed(&mut engine) => next = Instant::now(),
                () = tokio::time::sleep_until(next) => {
                    let commands = self.beat(client, session, &acknowledged).await?;
                    acknowledged = self.obey(commands);
                    let soon = !acknowledged.is_empty();
                    next = Instant::now() + if soon { ACKNOWLEDGE_DELAY } else { settings.heartbeat_interval };
                }
            }
        }
    }

    /// True when the node is no member any more.
    async fn take(
        &self,
        order: Order,
        client: &mut ControllerClient,
        session: &mut Arc<Session>,
    ) -> Result<bool> {
        match order {
            Order::Leave(answer) => {
                let left = client.leave(session, &self.applicant.node_id, "its operator's wish").await;
                let done = matches!(left, Ok(true));
                // The asker may have gone.
                let _ = answer.send(left);
                Ok(done)
            }
            Order::RotateKey(answer) => {
                let rotated = self.rotate_key(client, session).await;
                let done = rotated.is_ok();
                let _ = answer.send(rotated);
                if done {
                    self.renew(client, session).await?;
                }
                Ok(false)
            }
        }
    }

    async fn join(&self) -> Result<(ControllerClient, Arc<Session>)> {
        let mut client = ControllerClient::connect(&self.controller.endpoint, &self.tls).await?;
        let session = self.attest(&mut client).await?;
        if client.is_bare() {
            // With the certificate that has just come.
            client = ControllerClient::connect(&self.controller.endpoint, &self.tls).await?;
        }
        let capabilities = self.capacity.measure().await;
        let interval = self.applied.settings().heartbeat_interval;
        client.register(&session, &self.applicant, &capabilities, interval).await?;
        self.sync(&mut client, &session).await?;
        // Commands that waited for this node are taken at once, not half a minute later.
        let commands = self.beat(&mut client, &session, &[]).await?;
        let acknowledged = self.obey(commands);
        if !acknowledged.is_empty() {
            self.beat(&mut client, &session, &acknowledged).await?;
        }
        Ok((client, session))
    }

    /// Attests and registers again. The new session stands as soon as there is one: it has ended the older.
    async fn renew(&self, client: &mut ControllerClient, session: &mut Arc<Session>) -> Result<()> {
        *session = self.attest(client).await?;
        let (capabilities, interval) =
            (self.capacity.measure().await, self.applied.settings().heartbeat_interval);
        client.register(session, &self.applicant, &capabilities, interval).await
    }

    /// The next key is kept until the controller's answer is known: see [`Self::attest`].
    async fn rotate_key(&self, client: &mut ControllerClient, session: &Session) -> Result<()> {
        let keys = &self.applicant.keys;
        let next = keys.prepare_next()?;
        match client.rotate_key(session, &self.applicant.node_id, &next).await {
            Ok(()) => {
                keys.adopt_next()?;
                tracing::info!(key = ?keys.current().public(), "changed its key");
                Ok(())
            }
            // It may have been pinned: the next attestation shows.
            Err(error) if matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Timeout) => Err(error),
            Err(error) => {
                keys.drop_next()?;
                Err(error)
            }
        }
    }

    /// Catches up on the configuration that was pushed while this node was away.
    async fn sync(&self, client: &mut ControllerClient, session: &Session) -> Result<()> {
        let (current, _) = self.applied.report();
        match client.sync_config(session, &self.applicant.node_id, current).await {
            Ok(Some((version, json))) => {
                // Refused, it is told by the heartbeat, and the node goes on with what it has.
                let _ = self.applied.apply(&version, &json);
                Ok(())
            }
            Ok(None) => Ok(()),
            // A controller that keeps no layers.
            Err(error) if error.code() == ErrorCode::NotOffered => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn attest(&self, client: &mut ControllerClient) -> Result<Arc<Session>> {
        let capabilities = self.capacity.measure().await;
        let (applicant, keys, tls) = (&self.applicant, &self.applicant.keys, &self.tls);
        let mut attested = client.attest(applicant, keys.current(), &capabilities, None, tls).await;
        if attested.as_ref().is_err_and(|error| error.code() == ErrorCode::KeyMismatch)
            && let Some(next) = keys.next()?
        {
            // A change whose answer was lost.
            attested = client.attest(applicant, Arc::new(next), &capabilities, None, tls).await;
            if attested.is_ok() {
                keys.adopt_next()?;
            }
        }
        let session = match attested {
            Ok(session) => session,
            // Not known by key: the first contact, which needs the token.
            Err(error)
                if matches!(
                    error.code(),
                    ErrorCode::EnrolmentInvalid | ErrorCode::KeyMismatch | ErrorCode::NodeRemoved
                ) =>
            {
                let Some(reference) = &self.controller.token else { return Err(error) };
                // A token that was spent is gone, and was for the first contact.
                let Ok(token) = resolve_secret(reference) else { return Err(error) };
                // The key of a removed node is void: the token admits a new one.
                let is_void = error.code() == ErrorCode::NodeRemoved;
                let key = if is_void { Arc::new(keys.prepare_next()?) } else { keys.current() };
                let enrolled = client.attest(applicant, key, &capabilities, Some(token), tls).await;
                let session = enrolled.map_err(|second| reason_to_tell(error, second))?;
                if is_void {
                    keys.adopt_next()?;
                }
                self.drop_token(reference);
                session
            }
            Err(error) => return Err(error),
        };
        self.supervisor.control().follow(&session.cluster_id, &session.controller_key)?;
        let session = Arc::new(session);
        self.session.store(Some(session.clone()));
        Ok(session)
    }

    /// A spent token is of no use to this node, nor to anybody who reads it. Only a file of the data
    /// directory's is removed: another is its operator's.
    fn drop_token(&self, reference: &str) {
        let path = reference.strip_prefix("file:").map(Path::new);
        let Some(path) = path.filter(|path| path.starts_with(&self.data)) else { return };
        match std::fs::remove_file(path) {
            Ok(()) => tracing::info!("removed the spent enrolment token"),
            Err(error) => tracing::warn!(%error, "the spent enrolment token was not removed"),
        }
    }

    async fn beat(
        &self,
        client: &mut ControllerClient,
        session: &Session,
        acknowledged: &[CommandId],
    ) -> Result<Vec<(CommandId, Command)>> {
        let (config_version, config_error) = self.applied.report();
        let beat = Beat {
            capabilities: self.capacity.measure().await,
            running: self.supervisor.running(),
            held: self.supervisor.held(),
            acknowledged: acknowledged.to_vec(),
            draining: self.supervisor.control().is_draining(),
            config_version,
            config_error,
            interval: self.applied.settings().heartbeat_interval,
        };
        client.heartbeat(session, &self.applicant.node_id, beat).await
    }

    /// Applies commands in order; each names a state, so that one that comes twice changes nothing. One that
    /// cannot be kept (a full disk, say) comes again with the next heartbeat; those before it are done.
    fn obey(&self, commands: Vec<(CommandId, Command)>) -> Vec<CommandId> {
        let mut acknowledged = Vec::with_capacity(commands.len());
        for (command_id, command) in commands {
            if let Err(error) = obey(&self.supervisor, &self.applied, command) {
                tracing::error!(%command_id, error = %error.chain(), "a command could not be obeyed");
                break;
            }
            tracing::info!(%command_id, "obeyed");
            acknowledged.push(command_id);
        }
        acknowledged
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

/// Returns the error that a person must hear of: why the key was refused, with the token's as a note. What
/// became of the token says nothing of a node whose key was replaced or that was removed.
fn reason_to_tell(of_key: Error, of_token: Error) -> Error {
    let by_token = matches!(
        of_token.code(),
        ErrorCode::EnrolmentInvalid
            | ErrorCode::EnrolmentExpired
            | ErrorCode::KeyMismatch
            | ErrorCode::NodeRemoved
    );
    if of_key.code() == ErrorCode::EnrolmentInvalid || !by_token {
        return of_token;
    }
    let message = format!("{} (its enrolment token does not help: {})", of_key.message(), of_token.message());
    let error = Error::new(of_key.code(), message);
    match of_key.remedy_text() {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

/// Does what a command says. A configuration that is refused is obeyed too: its refusal is told by the
/// next heartbeat, and sending it again would not help.
pub fn obey(supervisor: &Supervisor, applied: &AppliedConfig, command: Command) -> Result<()> {
    match command {
        Command::Drain => supervisor.control().set_draining(true),
        Command::Resume => supervisor.control().set_draining(false),
        Command::Shutdown => {
            supervisor.control().close();
            Ok(())
        }
        Command::PushConfig { version, body } => {
            let _ = applied.apply(&version, &body);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_key_is_the_reason_and_the_token_a_note() {
        let of = |code| Error::new(code, code.name()).remedy("do");
        let tell = |key, token| reason_to_tell(of(key), of(token));
        for alarm in [ErrorCode::KeyMismatch, ErrorCode::NodeRemoved] {
            let told = tell(alarm, ErrorCode::EnrolmentInvalid);
            assert_eq!((told.code(), told.remedy_text()), (alarm, Some("do")));
            assert!(told.message().starts_with(alarm.name()) && told.message().contains("EnrolmentInvalid"));
            assert_eq!(tell(alarm, ErrorCode::Unavailable).code(), ErrorCode::Unavailable);
        }
        let told = tell(ErrorCode::EnrolmentInvalid, ErrorCode::EnrolmentExpired);
        assert_eq!(told.code(), ErrorCode::EnrolmentExpired, "a first contact is about its token");
    }

    #[test]
    fn refresh_is_due_at_half_of_a_life_and_spread() {
        let hour = Duration::from_secs(3_600);
        let after = |margin, jitter| refresh_after(hour, Duration::from_secs(margin), jitter).as_secs();
        assert_eq!((after(120, 0.0), after(120, 1.0)), (1_800, 1_440), "half of its life is left");
        assert_eq!(after(2_400, 0.0), 1_200, "a margin beyond half of it counts");
        let short =
            |jitter| refresh_after(Duration::from_secs(200), Duration::from_secs(120), jitter).as_secs();
        assert_eq!((short(0.0), short(1.0)), (80, 60));
        for lifetime in [0, 1, 10] {
            let after = refresh_after(Duration::from_secs(lifetime), Duration::from_secs(120), 1.0);
            assert_eq!(after, REFRESH_MIN);
        }
    }
}
