//! Progress reports to a waiting client, and bounded waits.
//!
//! A call never owns the work that it started: if the client gives up, only the wait ends. A call has one time budget
//! for its plan, the question to its person and its wait together.

use std::{borrow::Cow, time::Duration};

use cluster_core::{
    core::Core,
    types::error::{Error, ErrorCode, Result},
};
use rmcp::{
    RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
    service::{Peer, RequestContext},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{log_level, tools::arguments::WAIT_SECONDS_MAX};

/// Below the 60 s after which some clients abandon a call, with time for the answer itself.
pub const CALL_TIME_MAX: Duration = Duration::from_secs(WAIT_SECONDS_MAX);

/// Minimum interval of reports: twice a second.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// Maximum interval of reports, changed or not, which keeps HTTP streams and idle timers alive.
const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Work that runs by itself and can be watched.
pub trait Followed: Send + Sync + Sized {
    /// Waits for a change or until `wait` is over, and returns the current state.
    fn change(&self, core: &Core, wait: Duration) -> impl Future<Output = Result<Self>> + Send;

    /// Describes the state in one line.
    fn describe(&self) -> String;
}

/// Client of one call.
#[derive(Debug)]
pub struct Progress {
    /// Peer of the client; `None` if no client listens.
    peer: Option<Peer<RoleServer>>,
    /// End of the call's budget.
    deadline: Instant,
    /// Token for progress, as sent by the client.
    token: Option<ProgressToken>,
    /// Name of the logger, if the client listens to log messages.
    logger: Option<Cow<'static, str>>,
    gone: CancellationToken,
    counter: u32,
    sent_at: Option<Instant>,
    last: String,
    unsent: bool,
}

impl Progress {
    /// Reports to no client, for a plan that is made over REST.
    pub fn silent() -> Self {
        Self {
            peer: None,
            deadline: Instant::now() + CALL_TIME_MAX,
            token: None,
            logger: None,
            gone: CancellationToken::new(),
            counter: 0,
            sent_at: None,
            last: String::new(),
            unsent: false,
        }
    }

    pub fn of(context: &RequestContext<RoleServer>, logger: Option<Cow<'static, str>>) -> Self {
        Self {
            peer: Some(context.peer.clone()),
            deadline: Instant::now() + CALL_TIME_MAX,
            token: context.meta.get_progress_token(),
            logger,
            gone: context.ct.clone(),
            counter: 0,
            sent_at: None,
            last: String::new(),
            unsent: false,
        }
    }

    /// Waits until `enough` returns `true`, `wait` is over or the client is gone. Returns the last known state.
    pub async fn follow<V: Followed>(
        &mut self,
        core: &Core,
        first: V,
        wait: Duration,
        enough: impl Fn(&V) -> bool + Send,
    ) -> Result<V> {
        let deadline = self.deadline.min(Instant::now() + wait);
        let mut known = first;
        loop {
            self.note(known.describe());
            self.report().await;
            let left = deadline.saturating_duration_since(Instant::now());
            if enough(&known) || left.is_zero() {
                return Ok(known);
            }
            let slice = left.min(self.until_next_report());
            let gone = self.gone.clone();
            known = tokio::select! {
                biased;
                () = gone.cancelled() => return Ok(known),
                changed = known.change(core, slice) => changed?,
            };
        }
    }

    /// Returns the end of the call's budget.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Awaits an examination of hosts within the call's budget, and reports `what` from the first second.
    ///
    /// `look` is dropped when the budget is over, so it must change nothing.
    ///
    /// # Errors
    ///
    /// Returns `Timeout` at the end of the budget.
    pub async fn look<T>(&mut self, what: &str, look: impl Future<Output = Result<T>> + Send) -> Result<T> {
        tokio::pin!(look);
        let deadline = self.deadline;
        self.note(what.to_owned());
        loop {
            self.report().await;
            let slice = deadline.min(Instant::now() + self.until_next_report());
            tokio::select! {
                biased;
                looked = &mut look => return looked,
                () = tokio::time::sleep_until(slice) => {}
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorCode::Timeout,
                    format!("{what} took longer than {} s", CALL_TIME_MAX.as_secs()),
                )
                .remedy(
                    "nothing was changed; call again, or let a person run `aegis deploy HOST --plan`, which waits longer",
                ));
            }
        }
    }

    fn note(&mut self, message: String) {
        if message != self.last {
            self.last = message;
            self.unsent = true;
        }
    }

    fn until_next_report(&self) -> Duration {
        let interval = if self.unsent { REPORT_INTERVAL_MIN } else { REPORT_INTERVAL_MAX };
        match self.sent_at {
            Some(at) => interval.saturating_sub(at.elapsed()).max(Duration::from_millis(1)),
            None => interval,
        }
    }

    async fn report(&mut self) {
        let age = self.sent_at.map_or(Duration::MAX, |at| at.elapsed());
        if age < REPORT_INTERVAL_MIN || (!self.unsent && age < REPORT_INTERVAL_MAX) {
            return;
        }
        let Some(peer) = &self.peer else { return };
        let words = crate::text::indented(&self.last);
        // A client that is gone needs neither; its call is cancelled separately.
        if let Some(logger) = self.logger.as_ref().filter(|_| self.unsent) {
            #[expect(deprecated, reason = "older clients are served")]
            let _ = peer.notify_logging_message(log_level::message(logger, &words)).await;
        }
        if let Some(token) = &self.token {
            self.counter = self.counter.saturating_add(1);
            let note =
                ProgressNotificationParam::new(token.clone(), f64::from(self.counter)).with_message(words);
            let _ = peer.notify_progress(note).await;
        }
        self.sent_at = Some(Instant::now());
        self.unsent = false;
    }
}

/// Runs `work` to completion even if the caller is dropped.
pub async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|e| {
        tracing::error!(error = %e, "a task ended early");
        Err(cluster_core::types::error::Error::internal("the request was not finished"))
    })
}
