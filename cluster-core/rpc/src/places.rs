//! Places for the connections of one server, assigned before anything is known about a caller.
//!
//! A connection is unproven until a call on it was authenticated. Unproven connections are counted by network and
//! evicted. When a network has used its share, its oldest connection is closed. A caller that opens many silent
//! connections therefore blocks others only briefly. A connection with a recent call is kept for a moment. Otherwise a
//! thousand nodes that reconnect behind one address would be closed during their attestation. Proven connections are
//! counted by node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use aegis_types::ids::NodeId;
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::descriptors;

/// Maximum number of connections. A node needs one or two.
const CONNECTIONS_MAX: usize = 2048;
/// Unproven connections may use one place in this many; the other places are for members.
const UNPROVEN_SHARE: usize = 4;
/// Many nodes may be behind one address and reconnect at once.
const PER_NETWORK_MAX: usize = 128;
/// A node renews its connection before it closes the older one; a few calls may continue meanwhile.
const PER_NODE_MAX: usize = 8;
/// Time for an attestation and a first sealed call on a slow line.
const ATTESTATION_TIME: Duration = Duration::from_secs(2);
/// A node attests and makes its first sealed call within a second or two.
const PROOF_TIMEOUT: Duration = Duration::from_secs(30);
/// Concurrent calls on an unproven connection; an attestation consists of two consecutive calls.
const UNPROVEN_CALLS_MAX: usize = 8;
/// Concurrent calls of a caller with a valid token. Streams count until they begin.
const KNOWN_CALLS_MAX: usize = 32;

/// Returns the network of an address. One IPv6 customer has a /64 to choose addresses from.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Unproven connections, ordered by age.
    unproven: BTreeMap<u64, Unproven>,
    networks: HashMap<IpAddr, BTreeSet<u64>>,
    /// Proven connections, with the node that proved its identity, if any.
    proven: HashMap<u64, Option<NodeId>>,
    nodes: HashMap<NodeId, BTreeMap<u64, CancellationToken>>,
}

#[derive(Debug)]
struct Unproven {
    network: IpAddr,
    cut: CancellationToken,
    opened_at: Instant,
    has_called: Arc<AtomicBool>,
}

impl Unproven {
    /// Returns whether the connection is attesting and must not be evicted yet.
    fn attests(&self) -> bool {
        self.has_called.load(Ordering::Relaxed) && self.opened_at.elapsed() < ATTESTATION_TIME
    }
}

impl State {
    fn forget_unproven(&mut self, number: u64) -> Option<CancellationToken> {
        let Unproven { network, cut, .. } = self.unproven.remove(&number)?;
        if let Some(numbers) = self.networks.get_mut(&network) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.networks.remove(&network);
            }
        }
        Some(cut)
    }

    /// Closes the oldest evictable unproven connection of a network, or of all networks.
    fn make_way(&mut self, network: Option<IpAddr>) {
        let is_candidate =
            |open: &Unproven| network.is_none_or(|network| open.network == network) && !open.attests();
        let oldest = self.unproven.iter().find(|(_, open)| is_candidate(open)).map(|(number, _)| *number);
        if let Some(cut) = oldest.and_then(|number| self.forget_unproven(number)) {
            cut.cancel();
        }
    }

    fn unproven_of(&self, network: IpAddr) -> usize {
        self.networks.get(&network).map_or(0, BTreeSet::len)
    }

    fn forget(&mut self, number: u64) {
        self.forget_unproven(number);
        if let Some(Some(node_id)) = self.proven.remove(&number)
            && let Some(open) = self.nodes.get_mut(&node_id)
        {
            open.remove(&number);
            if open.is_empty() {
                self.nodes.remove(&node_id);
            }
        }
    }
}

/// All places of one server.
#[derive(Debug, Clone)]
pub(super) struct ConnectionPermits {
    connections_max: usize,
    state: Arc<Mutex<State>>,
}

impl Default for ConnectionPermits {
    fn default() -> Self {
        Self { connections_max: descriptors::connections(CONNECTIONS_MAX), state: Arc::default() }
    }
}

impl ConnectionPermits {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for one more connection. `None` if proven or attesting connections use all places.
    pub fn admit(&self, from: IpAddr) -> Option<Authenticated> {
        let network = network_of(from);
        let mut state = self.lock();
        if state.unproven_of(network) >= PER_NETWORK_MAX {
            state.make_way(Some(network));
        }
        let unproven_max = (self.connections_max / UNPROVEN_SHARE).max(1);
        let is_full = |state: &State| {
            let unproven = state.unproven.len();
            unproven + state.proven.len() >= self.connections_max || unproven >= unproven_max
        };
        if is_full(&state) {
            state.make_way(None);
        }
        if is_full(&state) || state.unproven_of(network) >= PER_NETWORK_MAX {
            return None;
        }
        state.next += 1;
        let (number, cut, has_called) = (state.next, CancellationToken::new(), Arc::<AtomicBool>::default());
        let (opened_at, told) = (Instant::now(), has_called.clone());
        state.unproven.insert(number, Unproven { network, cut: cut.clone(), opened_at, has_called });
        state.networks.entry(network).or_default().insert(number);
        drop(state);
        Some(Authenticated::of(Some(Place { number, cut, has_called: told, places: self.clone() })))
    }
}

/// Place of one connection, until it is dropped.
#[derive(Debug)]
struct Place {
    number: u64,
    cut: CancellationToken,
    has_called: Arc<AtomicBool>,
    places: ConnectionPermits,
}

impl Place {
    fn prove(&self, node_id: Option<&NodeId>) {
        let mut state = self.places.lock();
        // Evicted meanwhile.
        if state.forget_unproven(self.number).is_none() {
            return;
        }
        state.proven.insert(self.number, node_id.cloned());
        let Some(node_id) = node_id else { return };
        let open = state.nodes.entry(node_id.clone()).or_default();
        open.insert(self.number, self.cut.clone());
        if open.len() > PER_NODE_MAX
            && let Some((_, oldest)) = open.pop_first()
        {
            tracing::warn!(%node_id, "closed the oldest of too many connections of one node");
            oldest.cancel();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().forget(self.number);
    }
}

#[derive(Debug)]
struct Standing {
    is_proven: AtomicBool,
    unproven_calls: Arc<Semaphore>,
    known_calls: Arc<Semaphore>,
    place: Option<Place>,
}

/// Records whether a call on the connection was authenticated. All clones share the connection's state.
#[derive(Debug, Clone)]
pub struct Authenticated(Arc<Standing>);

impl Default for Authenticated {
    fn default() -> Self {
        Self::of(None)
    }
}

impl Authenticated {
    fn of(place: Option<Place>) -> Self {
        Self(Arc::new(Standing {
            is_proven: AtomicBool::new(false),
            unproven_calls: Arc::new(Semaphore::new(UNPROVEN_CALLS_MAX)),
            known_calls: Arc::new(Semaphore::new(KNOWN_CALLS_MAX)),
            place,
        }))
    }

    /// Records that a call was authenticated. `node_id` is set for a node, and `None` for an operator.
    pub fn set(&self, node_id: Option<&NodeId>) {
        if !self.0.is_proven.swap(true, Ordering::AcqRel)
            && let Some(place) = &self.0.place
        {
            place.prove(node_id);
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.is_proven.load(Ordering::Acquire)
    }

    /// Returns the semaphore for concurrent calls on the connection.
    pub(super) fn calls(&self, is_known: bool) -> Arc<Semaphore> {
        if let Some(place) = &self.0.place {
            place.has_called.store(true, Ordering::Relaxed);
        }
        if is_known { self.0.known_calls.clone() } else { self.0.unproven_calls.clone() }
    }

    /// Resolves when the connection must be closed.
    pub(super) fn cut(&self) -> CancellationToken {
        self.0.place.as_ref().map(|place| place.cut.clone()).unwrap_or_default()
    }

    /// Returns the watch that ends the connection, and starts its time limit for authentication.
    pub(super) fn watch(&self) -> ProofWatch {
        self.watch_for(PROOF_TIMEOUT)
    }

    pub(super) fn watch_for(&self, limit: Duration) -> ProofWatch {
        ProofWatch {
            proven: self.clone(),
            cut: Box::pin(self.cut().cancelled_owned()),
            deadline: Some(Box::pin(tokio::time::sleep(limit))),
        }
    }
}

/// Ends a connection that is evicted, or on which nothing was authenticated in time.
pub(super) struct ProofWatch {
    proven: Authenticated,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl ProofWatch {
    pub fn proven(&self) -> &Authenticated {
        &self.proven
    }

    /// Ready when the connection has to end.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Pending;
        }
        self.deadline = None;
        if self.proven.is_set() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections_max: usize) -> ConnectionPermits {
        ConnectionPermits { connections_max, state: Arc::default() }
    }

    fn is_cut(proven: &Authenticated) -> bool {
        proven.cut().is_cancelled()
    }

    #[test]
    fn oldest_unproven_of_a_network_makes_way() {
        let places = places(1_024);
        let [here, there] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let member = places.admit(here).unwrap();
        let node_id = NodeId::parse("edge-1").unwrap();
        member.set(Some(&node_id));
        let other = places.admit(there).unwrap();
        let held: Vec<_> = (0..1_000).map(|_| places.admit(here).unwrap()).collect();
        let open = held.iter().filter(|proven| !is_cut(proven)).count();
        assert_eq!(open, PER_NETWORK_MAX);
        assert!(!is_cut(&held[999]) && is_cut(&held[0]), "the newest has a moment to prove itself");
        assert!(!is_cut(&member) && !is_cut(&other));
        held[0].set(Some(&node_id));
        assert_eq!(places.lock().proven.len(), 1, "what was closed is not proven any more");
        drop((held, other, member));
        let state = places.lock();
        assert!(state.unproven.is_empty() && state.networks.is_empty());
        assert!(state.proven.is_empty() && state.nodes.is_empty(), "nothing is kept of who is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn connection_that_attests_is_left_a_moment() {
        let (places, here) = (places(1_024), IpAddr::from([192, 0, 2, 1]));
        let held: Vec<_> = (0..PER_NETWORK_MAX).map(|_| places.admit(here).unwrap()).collect();
        let [silent, attesting] = [&held[3], &held[0]];
        for proven in held.iter().filter(|proven| !Arc::ptr_eq(&proven.0, &silent.0)) {
            proven.calls(false);
        }
        let first = places.admit(here).expect("the silent one makes way");
        assert!(is_cut(silent) && !is_cut(attesting));
        first.calls(false);
        assert!(places.admit(here).is_none(), "all others attest");
        attesting.set(Some(&NodeId::parse("edge-1").unwrap()));
        let second = places.admit(here).expect("one has ended");
        tokio::time::advance(ATTESTATION_TIME).await;
        let third = places.admit(here).expect("the oldest has had its time");
        assert!(is_cut(&held[1]) && !is_cut(attesting) && !is_cut(&second) && !is_cut(&third));
    }

    #[test]
    fn unproven_ones_of_many_networks_leave_room_for_members() {
        let places = places(100);
        let held: Vec<_> =
            (0..200).map(|last| places.admit(IpAddr::from([192, 0, 2, last])).unwrap()).collect();
        assert_eq!(held.iter().filter(|proven| !is_cut(proven)).count(), 25);
        let members: Vec<_> = (0..100)
            .map(|number| {
                let proven = places.admit(IpAddr::from([198, 51, 100, number])).unwrap();
                proven.set(Some(&NodeId::parse(format!("n{number}")).unwrap()));
                proven
            })
            .collect();
        assert!(members.iter().all(|proven| !is_cut(proven)));
        assert!(places.admit(IpAddr::from([203, 0, 113, 1])).is_none(), "all places are the members'");
    }

    #[test]
    fn node_has_a_share_of_connections() {
        let places = places(1_024);
        let node_id = NodeId::parse("edge-1").unwrap();
        let held: Vec<_> = (0..20)
            .map(|last| {
                let proven = places.admit(IpAddr::from([192, 0, 2, last])).unwrap();
                proven.set(Some(&node_id));
                proven
            })
            .collect();
        let open: Vec<_> = held.iter().map(|proven| !is_cut(proven)).collect();
        assert_eq!(open.iter().filter(|open| **open).count(), PER_NODE_MAX);
        assert!(open[12..].iter().all(|open| *open), "the newest stay");
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::5"), of("2001:db8:0:1:ffff::1"));
        assert_ne!(of("2001:db8:0:1::5"), of("2001:db8:0:2::5"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
