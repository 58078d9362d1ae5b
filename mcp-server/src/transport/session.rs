//! Requests that `aegis mcp` owes its assistant, and their fate when the daemon disconnects and returns.
//!
//! Pure decisions: the input is an event and the time, and the output is lines for either side. Every request gets
//! exactly one answer, from the daemon or, if there will be no such answer, from this module. A request that only reads
//! is sent again over the next connection. `tools/call` never is, since the daemon may have carried it out. The state
//! of a session is restored on each connection, and the answers to that are hidden from the assistant. It consists of
//! the `initialize` of the older eras with its subscriptions and log level, and of every open `subscriptions/listen`.
//!
//! Questions of the daemon get unique numbers from this module. A person's answer to a question of an earlier
//! connection is therefore not mistaken for one of this connection.
//!
//! Deliberately without knowledge of tools, sockets or processes, which [`super::pipe`] has. There is no other session
//! state, since the daemon keeps nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::bytes::Bytes;

use super::message::{self, FromClient, FromDaemon, Id, Kind, Standing};

/// Maximum number of unanswered requests; further requests are rejected.
const REQUESTS_MAX: usize = 256;
/// Size limit of the requests' lines, which are kept while they may have to be sent (again).
const REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Maximum number of resources that an older client follows, including its log level.
const STANDING_MAX: usize = 256;
/// Maximum number of unanswered questions of the daemon.
const QUESTIONS_MAX: usize = 64;
/// Connections that a request may break before it is abandoned.
const BREAKS_MAX: u8 = 3;
/// Time that a request waits for a daemon. Below the 30 s after which assistants give up connecting.
pub const PATIENCE: Duration = Duration::from_secs(25);
/// Time for which the end of a subscription is held back. A daemon that stops ends its subscriptions within 2 s before
/// it closes the connection. Such an end is hidden from the assistant, since the subscription is restored.
const LISTEN_END_HELD: Duration = Duration::from_secs(3);

/// Action to take, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    ToClient(Bytes),
    ToDaemon(Bytes),
    /// Close this connection, which is unusable.
    HangUp,
}

/// Purpose for which the session needs a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    Nothing,
    /// A running daemon: no request waits, but subscriptions are open.
    Attach,
    /// A daemon that is started if it does not run.
    Launch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// The remembered `initialize` was sent; nothing else is sent before its answer.
    Opening,
    /// The session state was sent again; requests wait until the daemon has confirmed it.
    Resuming,
    Up,
}

#[derive(Debug)]
struct Request {
    id: Id,
    kind: Kind,
    line: Bytes,
    sent: bool,
    /// The assistant knows that this `subscriptions/listen` is active.
    acknowledged: bool,
    /// Time and line with which the daemon ended it.
    ended: Option<(Bytes, Instant)>,
    breaks: u8,
    since: Instant,
}

impl Request {
    /// Returns whether the assistant waits for an answer.
    fn is_owed(&self) -> bool {
        !self.acknowledged
    }
}

/// The `initialize` that was answered with a result.
#[derive(Debug)]
struct Opening {
    id: Id,
    line: Bytes,
    version: Option<String>,
    initialized: Option<Bytes>,
}

#[derive(Debug)]
pub struct Session {
    link: Link,
    /// Requests in order of arrival.
    requests: Vec<Request>,
    opening: Option<Opening>,
    /// Session state, with the request that set it.
    standing: BTreeMap<Standing, (Id, Bytes)>,
    /// Ids of answers to restored state, which are hidden.
    swallowed: BTreeSet<Id>,
    /// Questions by their number here, with the daemon's id.
    questions: BTreeMap<i64, Id>,
    questions_asked: i64,
    /// A request was sent over this connection; an earlier notification would end the connection.
    begun: bool,
}

impl Session {
    pub fn new() -> Self {
        Self {
            link: Link::Down,
            requests: Vec::new(),
            opening: None,
            standing: BTreeMap::new(),
            swallowed: BTreeSet::new(),
            questions: BTreeMap::new(),
            questions_asked: 0,
            begun: false,
        }
    }

    pub fn wants(&self) -> Want {
        if self.link != Link::Down {
            Want::Nothing
        } else if self.requests.iter().any(Request::is_owed) {
            Want::Launch
        } else if self.requests.is_empty() && !self.is_subscribed() {
            Want::Nothing
        } else {
            Want::Attach
        }
    }

    /// Returns whether there is a subscription. A log level alone causes no messages.
    fn is_subscribed(&self) -> bool {
        self.standing.keys().any(|kept| *kept != Standing::LogLevel)
    }

    /// Returns whether a request waits for an answer that will come by itself. Subscriptions do not count.
    pub fn is_owed(&self) -> bool {
        self.requests.iter().any(|request| request.kind != Kind::Listen)
    }

    /// Returns the time at which [`tick`](Self::tick) has something to do.
    pub fn wakes_at(&self) -> Option<Instant> {
        let times = self.requests.iter().filter_map(|request| match &request.ended {
            Some((_, at)) => Some(*at + LISTEN_END_HELD),
            None if self.gives_up_on(request) => Some(request.since + PATIENCE),
            None => None,
        });
        times.min()
    }

    fn gives_up_on(&self, request: &Request) -> bool {
        !request.sent && request.is_owed()
    }

    /// Handles a line of the assistant above the size limit.
    pub fn too_long(&self, bytes_max: usize) -> Vec<Effect> {
        vec![Effect::ToClient(message::unread(&format!("a line has at most {bytes_max} bytes")))]
    }

    /// Handles a line of the assistant.
    pub fn client_said(&mut self, line: Bytes, now: Instant) -> Vec<Effect> {
        match message::read_client(&line) {
            Err(no_message) => vec![Effect::ToClient(no_message.answer)],
            Ok(FromClient::Request { id, kind }) => self.request(id, kind, line, now),
            Ok(FromClient::Cancelled { request }) => self.cancelled(request.as_ref(), line),
            Ok(FromClient::Initialized) => {
                if let Some(opening) = &mut self.opening {
                    opening.initialized = Some(line.clone());
                }
                self.pass_on(line)
            }
            Ok(FromClient::Notification) => self.pass_on(line),
            Ok(FromClient::Answer { id, message }) => {
                let asked = match id {
                    Some(Id::Number(number)) => self.questions.remove(&number),
                    Some(Id::Text(_)) | None => None,
                };
                // An answer to a question of an earlier connection is dropped.
                let answer = asked.map(|id| Effect::ToDaemon(message::with_id(message, &id)));
                answer.into_iter().collect()
            }
        }
    }

    fn request(&mut self, id: Id, kind: Kind, line: Bytes, now: Instant) -> Vec<Effect> {
        let refuse = |id, words: &str| vec![Effect::ToClient(message::refusal(id, words))];
        let is_replayed = self.link == Link::Opening && self.opening.as_ref().is_some_and(|it| it.id == id);
        if is_replayed || self.swallowed.contains(&id) || self.requests.iter().any(|it| it.id == id) {
            return refuse(None, "another request with this id has no answer yet");
        }
        let kept: usize = self.requests.iter().map(|request| request.line.len()).sum();
        if self.requests.len() >= REQUESTS_MAX || kept + line.len() > REQUEST_BYTES_MAX {
            return refuse(Some(&id), "too many requests wait for an answer: wait for some of them");
        }
        match &kind {
            Kind::Standing(asked)
                if self.standing.len() >= STANDING_MAX && !self.standing.contains_key(asked) =>
            {
                return refuse(Some(&id), "too many resources are subscribed to: unsubscribe from some");
            }
            Kind::Unsubscribe { uri } => {
                self.standing.remove(&Standing::Subscription { uri: uri.clone() });
            }
            _ => {}
        }
        let (acknowledged, ended) = (false, None);
        let request = Request { id, kind, line, sent: false, acknowledged, ended, breaks: 0, since: now };
        self.requests.push(request);
        if self.link == Link::Up { self.send_requests() } else { Vec::new() }
    }

    fn cancelled(&mut self, request: Option<&Id>, line: Bytes) -> Vec<Effect> {
        let known = self.requests.iter().position(|it| Some(&it.id) == request);
        // The opening cannot be cancelled, by the protocol.
        let Some(at) = known.filter(|at| self.requests[*at].kind != Kind::Initialize) else {
            return Vec::new();
        };
        let request = self.requests.remove(at);
        if request.sent { self.pass_on(line) } else { Vec::new() }
    }

    /// Passes on a notification, which is valid only on its own connection.
    fn pass_on(&self, line: Bytes) -> Vec<Effect> {
        if self.link == Link::Up && self.begun { vec![Effect::ToDaemon(line)] } else { Vec::new() }
    }

    /// Handles a completed handshake with a daemon.
    pub fn connected(&mut self) -> Vec<Effect> {
        match &self.opening {
            Some(opening) => {
                self.link = Link::Opening;
                self.begun = true;
                vec![Effect::ToDaemon(opening.line.clone())]
            }
            None => self.resume(),
        }
    }

    /// Restores the session state if there is any, then sends waiting requests.
    fn resume(&mut self) -> Vec<Effect> {
        let initialized = self.opening.as_ref().and_then(|opening| opening.initialized.clone());
        let mut effects: Vec<_> = initialized.map(Effect::ToDaemon).into_iter().collect();
        for (id, line) in self.standing.values() {
            self.swallowed.insert(id.clone());
            effects.push(Effect::ToDaemon(line.clone()));
        }
        effects.extend(self.resumed());
        effects
    }

    fn resumed(&mut self) -> Vec<Effect> {
        if !self.swallowed.is_empty() {
            self.link = Link::Resuming;
            return Vec::new();
        }
        self.link = Link::Up;
        self.send_requests()
    }

    fn send_requests(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for request in self.requests.iter_mut().filter(|request| !request.sent) {
            request.sent = true;
            self.begun = true;
            // A line that is never sent again need not be kept.
            let line = match request.kind {
                Kind::Call { .. } => std::mem::take(&mut request.line),
                _ => request.line.clone(),
            };
            effects.push(Effect::ToDaemon(line));
        }
        effects
    }

    /// Handles a line of the daemon. Invalid messages and unmatched answers are dropped.
    pub fn daemon_said(&mut self, line: Bytes, now: Instant) -> Vec<Effect> {
        match message::read_daemon(&line) {
            None => Vec::new(),
            Some(FromDaemon::Answer { id, failed }) => self.answered(&id, failed, line, now),
            Some(FromDaemon::Question { id }) => self.asked(id, &line),
            Some(FromDaemon::Cancelled { request }) => self.cancelled_by_daemon(&request, line),
            Some(FromDaemon::Acknowledged { listen }) => {
                let open = self.requests.iter_mut().find(|it| it.id == listen && it.kind == Kind::Listen);
                match open {
                    Some(request) => {
                        request.breaks = 0;
                        let again = std::mem::replace(&mut request.acknowledged, true);
                        if again { Vec::new() } else { vec![Effect::ToClient(line)] }
                    }
                    None => Vec::new(),
                }
            }
            Some(FromDaemon::Other) => vec![Effect::ToClient(line)],
        }
    }

    fn answered(&mut self, id: &Id, failed: bool, line: Bytes, now: Instant) -> Vec<Effect> {
        if self.link == Link::Opening
            && let Some(opening) = self.opening.as_ref().filter(|opening| opening.id == *id)
        {
            if !failed && message::negotiated_version(&line) == opening.version {
                return self.resume();
            }
            let mut effects = self.refused(
                "the aegis daemon was started anew and does not take up this session: restart the \
                 assistant's connection to aegis",
            );
            effects.push(Effect::HangUp);
            return effects;
        }
        if self.swallowed.remove(id) {
            if failed {
                self.standing.retain(|_, (asked, _)| asked != id);
            }
            return self.resumed();
        }
        let Some(at) = self.requests.iter().position(|request| request.sent && request.id == *id) else {
            return Vec::new();
        };
        if self.requests[at].acknowledged && !failed {
            self.requests[at].ended = Some((line, now));
            return Vec::new();
        }
        let request = self.requests.remove(at);
        match request.kind {
            Kind::Initialize if !failed => {
                let version = message::negotiated_version(&line);
                let (id, line) = (request.id, request.line);
                self.opening = Some(Opening { id, line, version, initialized: None });
            }
            Kind::Standing(asked) if !failed => {
                self.standing.insert(asked, (request.id, request.line));
            }
            _ => {}
        }
        vec![Effect::ToClient(line)]
    }

    fn asked(&mut self, id: Id, line: &[u8]) -> Vec<Effect> {
        if self.questions.len() >= QUESTIONS_MAX {
            return vec![Effect::ToDaemon(message::failure(&id, "too many questions have no answer yet"))];
        }
        let number = self.questions_asked;
        let Some(line) = message::line_with_id(line, &Id::Number(number)) else { return Vec::new() };
        self.questions_asked += 1;
        self.questions.insert(number, id);
        vec![Effect::ToClient(line)]
    }

    fn cancelled_by_daemon(&mut self, request: &Id, line: Bytes) -> Vec<Effect> {
        let asked = self.questions.iter().find(|(_, id)| *id == request).map(|(number, _)| *number);
        if let Some(number) = asked {
            self.questions.remove(&number);
            let words = "the server takes its question back";
            return vec![Effect::ToClient(message::cancelled(&Id::Number(number), words))];
        }
        let ended = self.requests.iter().position(|it| it.id == *request && it.kind == Kind::Listen);
        match ended {
            Some(at) => {
                self.requests.remove(at);
                vec![Effect::ToClient(line)]
            }
            None => Vec::new(),
        }
    }

    /// Handles a broken connection.
    pub fn lost(&mut self, now: Instant) -> Vec<Effect> {
        self.link = Link::Down;
        self.begun = false;
        self.swallowed.clear();
        let mut effects = Vec::new();
        for number in std::mem::take(&mut self.questions).into_keys() {
            let words = "the connection on which it was asked broke";
            effects.push(Effect::ToClient(message::cancelled(&Id::Number(number), words)));
        }
        self.requests.retain_mut(|request| {
            if !request.sent {
                return true;
            }
            request.breaks = request.breaks.saturating_add(1);
            if let Kind::Call { tool, stateless } = &request.kind {
                effects.push(Effect::ToClient(message::tool_error(&request.id, *stateless, &cut(tool))));
                return false;
            }
            if request.breaks >= BREAKS_MAX && !request.acknowledged {
                let words = format!(
                    "the connection to the aegis daemon broke {BREAKS_MAX} times while this request was under \
                     way; aegis.log in the data directory says why"
                );
                effects.push(Effect::ToClient(message::failure(&request.id, &words)));
                return false;
            }
            (request.sent, request.ended, request.since) = (false, None, now);
            true
        });
        effects
    }

    /// Fails all waiting requests: there is no daemon, and retries are useless.
    pub fn refused(&mut self, words: &str) -> Vec<Effect> {
        self.give_up(|_| true, words)
    }

    /// Handles the passage of time. `why` is the known reason why there is no daemon yet.
    pub fn tick(&mut self, now: Instant, why: Option<&str>) -> Vec<Effect> {
        let words = match why {
            Some(why) => format!(
                "no aegis daemon could be reached for {} s: {why}. The next request tries again",
                PATIENCE.as_secs()
            ),
            None => format!(
                "the aegis daemon is not up after {} s; it may still come. Ask again, or see aegis.log in \
                 the data directory",
                PATIENCE.as_secs()
            ),
        };
        let mut effects = self.give_up(|request| request.since + PATIENCE <= now, &words);
        self.requests.retain(|request| match &request.ended {
            Some((line, at)) if *at + LISTEN_END_HELD <= now => {
                effects.push(Effect::ToClient(line.clone()));
                false
            }
            _ => true,
        });
        effects
    }

    fn give_up(&mut self, on: impl Fn(&Request) -> bool, words: &str) -> Vec<Effect> {
        let (given_up, kept) = std::mem::take(&mut self.requests)
            .into_iter()
            .partition(|request| self.gives_up_on(request) && on(request));
        self.requests = kept;
        let told = |request: Request| Effect::ToClient(message::failure(&request.id, words));
        Vec::into_iter(given_up).map(told).collect()
    }
}

/// Returns the message for a model whose call was running.
fn cut(tool: &str) -> String {
    format!(
        "The connection to the aegis daemon broke while {} was under way, so its answer is lost; whether it \
         was carried out is not known here. Deployments and executions that were begun go on by themselves. \
         What to do: ask for their state by id (get_deployment_status, get_execution), or find them with \
         list_deployments. A call that only reads can be made again at once. One that changes something can \
         be made again with the same idempotency_key; without one, look first whether it was carried out.",
        cluster_core::types::text::shown(tool)
    )
}

#[cfg(test)]
mod tests;
