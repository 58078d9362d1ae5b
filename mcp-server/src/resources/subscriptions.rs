//! Notifies clients of changed resources, in both eras of the protocol.
//!
//! Older clients subscribe to one resource at a time. Each subscription is a task owned by its connection's table, so
//! all end with the connection. A client of 2026-07-28 sends one request that lasts as long as it listens, and its
//! subscriptions live inside that request. Both use the same two budgets, the connection's and the controller's. A
//! resource is notified at most once a second; changes in between are merged. A subscription ends after its last
//! notification, when its deployment or execution has ended.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster_core::{
    core::Core,
    types::error::{Error, ErrorCode, Result},
};
use futures::future::join_all;
use rmcp::{
    ErrorData, RoleServer,
    model::{ResourceUpdatedNotificationParam, SubscriptionFilter},
    service::{Peer, SubscriptionContext, SubscriptionSink},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{uri::ResourceUri, watch::Watch};
use crate::protocol_error;

/// Subscriptions of one connection. (Over HTTP, a request of 2026-07-28 is a connection.)
pub const PER_CONNECTION_MAX: usize = 64;
/// Subscriptions of all connections together.
pub const IN_ALL_MAX: usize = 1024;
const NOTE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Budget that all connections share.
#[derive(Debug, Clone)]
pub struct Budget(pub(super) Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(IN_ALL_MAX)))
    }
}

/// Subscriptions of one connection, which end with the connection.
#[derive(Debug)]
pub struct Subscriptions {
    own: Arc<Semaphore>,
    all: Budget,
    /// Tasks of an older client, by URI as the client wrote it.
    tasks: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
    /// The client sends no more input: it is gone, or is about to leave.
    end_of_input: CancellationToken,
}

/// Permit to follow one resource.
#[derive(Debug)]
struct Slot {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Receiver of notifications.
enum Listener {
    Older(Peer<RoleServer>),
    Newer(SubscriptionSink),
}

impl Listener {
    /// Returns whether the listener is notified at the start. A newer client is answered before its resources are
    /// watched, and changes in between would be lost. Each resource is therefore notified once after the watch has
    /// started.
    const fn is_told_first(&self) -> bool {
        matches!(self, Self::Newer(_))
    }

    /// Sends a notification. Returns `false` if the listener is gone.
    async fn tell(&self, uri: &str) -> bool {
        match self {
            Self::Older(peer) => {
                peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await.is_ok()
            }
            Self::Newer(sink) => sink.notify_resource_updated(uri).await.is_ok(),
        }
    }
}

/// One resource followed for one listener.
struct Followed {
    uri: String,
    watch: Watch,
    listener: Listener,
    _slot: Slot,
}

impl Followed {
    /// Runs until the resource has ended or the listener is gone.
    async fn run(mut self, core: Core) {
        let mut news = self.listener.is_told_first();
        while news || self.watch.changed(&core).await {
            news = false;
            let told_at = Instant::now();
            if !self.listener.tell(&self.uri).await {
                return;
            }
            tokio::time::sleep_until(told_at + NOTE_INTERVAL_MIN).await;
        }
    }
}

impl Subscriptions {
    pub fn new(all: Budget) -> Self {
        let own = Arc::new(Semaphore::new(PER_CONNECTION_MAX));
        Self { own, all, tasks: Mutex::default(), end_of_input: CancellationToken::new() }
    }

    /// Returns the token that the connection's reader cancels at its end, so that no listening request keeps waiting.
    pub fn end_of_input(&self) -> CancellationToken {
        self.end_of_input.clone()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, AbortOnDropHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> Result<Slot> {
        let full = |whose: &str, max: usize| {
            Error::new(ErrorCode::ResourceExhausted, format!("{whose} follows {max} resources already"))
                .remedy("end a subscription first, or follow fewer resources")
        };
        let own = self.own.clone().try_acquire_owned();
        let own = own.map_err(|_| full("this connection", PER_CONNECTION_MAX))?;
        let all = self.all.0.clone().try_acquire_owned();
        let all = all.map_err(|_| full("this controller", IN_ALL_MAX))?;
        Ok(Slot { _own: own, _all: all })
    }

    async fn follow(&self, core: &Core, uri: &str, listener: Listener) -> Result<Followed> {
        let resource: ResourceUri = uri.parse()?;
        let slot = self.slot()?;
        let watch = Watch::open(core, &resource).await?;
        Ok(Followed { uri: uri.to_owned(), watch, listener, _slot: slot })
    }

    /// Subscribes an older client. Changes after the answer are notified. Idempotent.
    pub async fn subscribe(
        &self,
        core: &Core,
        uri: &str,
        peer: Peer<RoleServer>,
    ) -> std::result::Result<(), ErrorData> {
        {
            let mut tasks = self.tasks();
            // Drops tasks whose resource has ended.
            tasks.retain(|_, task| !task.is_finished());
            if tasks.contains_key(uri) {
                return Ok(());
            }
        }
        let followed = self.follow(core, uri, Listener::Older(peer)).await;
        let followed = followed.map_err(|error| protocol_error::of_resource(&error, uri))?;
        let task = AbortOnDropHandle::new(tokio::spawn(followed.run(core.clone())));
        self.tasks().insert(uri.to_owned(), task);
        Ok(())
    }

    /// Ends a subscription. A missing subscription is no error: it may have ended by itself.
    pub fn unsubscribe(&self, uri: &str) {
        self.tasks().remove(uri);
    }

    /// Serves one request of 2026-07-28 until its client ends it, or the server stops.
    pub async fn listen(
        &self,
        core: &Core,
        context: &SubscriptionContext,
    ) -> std::result::Result<(), ErrorData> {
        let uris = context.accepted().resource_subscriptions.iter().flatten().collect::<BTreeSet<_>>();
        let mut following = Vec::with_capacity(uris.len());
        for uri in uris {
            let followed = self.follow(core, uri, Listener::Newer(context.sink().clone())).await;
            following.push(followed.map_err(|error| protocol_error::of_resource(&error, uri))?);
        }
        let told = join_all(following.into_iter().map(|followed| followed.run(core.clone())));
        let until_ended = async {
            told.await;
            // All subscriptions have ended; the request continues until its client ends it.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = context.cancelled() => {}
            () = self.end_of_input.cancelled() => {}
            () = until_ended => {}
        }
        Ok(())
    }
}

/// Returns the supported part of a requested filter: resources with valid names. Whether each of them exists is
/// checked, and reported, when listening begins.
pub fn accepted(requested: &SubscriptionFilter, offers: &dyn Fn(&str) -> bool) -> SubscriptionFilter {
    let uris = requested.resource_subscriptions.iter().flatten();
    let is_told = |uri: &&String| uri.parse::<ResourceUri>().is_ok_and(|resource| offers(resource.tool()));
    let uris = uris.filter(is_told).cloned().collect::<Vec<_>>();
    let mut accepted = SubscriptionFilter::new();
    accepted.resource_subscriptions = (!uris.is_empty()).then_some(uris);
    accepted
}
