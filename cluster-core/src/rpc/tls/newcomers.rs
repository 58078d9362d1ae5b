//! Connections that have not proven anything yet, counted by address: one machine that opens many and
//! says nothing takes no place from the others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Many nodes may stand behind one address and come back at once; who is too much tries again.
const PER_ADDRESS_MAX: usize = 64;

#[derive(Debug, Clone, Default)]
pub(super) struct Newcomers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One such connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Newcomer {
    from: IpAddr,
    all: Newcomers,
}

impl Newcomers {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None when the address has as many as it may.
    pub fn admit(&self, from: IpAddr) -> Option<Newcomer> {
        let mut counted = self.lock();
        let count = counted.entry(from).or_default();
        if *count >= PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Newcomer { from, all: self.clone() })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut counted = self.all.lock();
        if let Some(count) = counted.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                counted.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gets_it_back() {
        let newcomers = Newcomers::default();
        let [here, there] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut held: Vec<_> = (0..PER_ADDRESS_MAX).map(|_| newcomers.admit(here).unwrap()).collect();
        assert!(newcomers.admit(here).is_none());
        assert!(newcomers.admit(there).is_some());
        held.pop();
        assert!(newcomers.admit(here).is_some());
        drop(held);
        assert!(newcomers.lock().is_empty(), "nothing is kept of who is gone");
    }
}
