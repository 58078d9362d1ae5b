//! The connections that are open under TLS, with what their peers showed, so that they can be cut when
//! that is trusted no longer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// Which end the peer is: different rules hold for its certificate.
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

/// One connection's place in the table; it leaves with it.
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

    /// The peer's chain is empty where it showed none.
    pub fn enter(&self, side: PeerSide, chain: Vec<CertificateDer<'static>>) -> Entry {
        let cut = CancellationToken::new();
        let mut table = self.lock();
        table.next += 1;
        let number = table.next;
        table.open.insert(number, Open { side, chain, cut: cut.clone() });
        Entry { number, table: self.clone(), cut }
    }

    /// Cuts those whose peer is refused by this judge; tells how many.
    pub fn cut_where(&self, refused: impl Fn(PeerSide, &[CertificateDer<'static>]) -> bool) -> usize {
        let table = self.lock();
        let doomed = table.open.values().filter(|open| {
            !open.chain.is_empty() && !open.cut.is_cancelled() && refused(open.side, &open.chain)
        });
        doomed.map(|open| open.cut.cancel()).count()
    }
}
