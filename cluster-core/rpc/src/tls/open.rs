//! Open TLS connections with their peers' certificates, so that they can be cut when a peer is no longer trusted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// Role of the peer; its certificate is checked by the rules of that role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerSide {
    Client,
    Server,
}

#[derive(Debug)]
struct Open {
    side: PeerSide,
    chain: Vec<CertificateDer<'static>>,
    cut: CancellationToken,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Open>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct OpenConnections(Arc<Mutex<Table>>);

/// Entry of one connection in the table, removed when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    number: u64,
    table: OpenConnections,
    pub cut: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.table.lock().open.remove(&self.number);
    }
}

impl OpenConnections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection. `chain` is empty if the peer showed no certificate.
    pub fn enter(&self, side: PeerSide, chain: Vec<CertificateDer<'static>>) -> Entry {
        let cut = CancellationToken::new();
        let mut table = self.lock();
        table.next += 1;
        let number = table.next;
        table.open.insert(number, Open { side, chain, cut: cut.clone() });
        Entry { number, table: self.clone(), cut }
    }

    /// Cuts the connections whose peer `refused` rejects, and returns their number.
    pub fn cut_where(&self, refused: impl Fn(PeerSide, &[CertificateDer<'static>]) -> bool) -> usize {
        let table = self.lock();
        let doomed = table.open.values().filter(|open| {
            !open.chain.is_empty() && !open.cut.is_cancelled() && refused(open.side, &open.chain)
        });
        doomed.map(|open| open.cut.cancel()).count()
    }
}
