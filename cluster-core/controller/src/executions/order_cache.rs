//! Manifests and inputs of executions that were just submitted, so that the driver of an execution that is placed at
//! once need not read them from the database. The cache is bounded; whatever it does not hold is read.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aegis_types::{
    execution::record::{ExecutionRecord, OrderContent},
    ids::ExecutionId,
};

/// Largest entry. A waiting execution keeps no more than this in memory.
const ENTRY_BYTES_MAX: u64 = 4 * 1024;
const BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct OrderCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    orders: HashMap<ExecutionId, (OrderContent, u64)>,
    bytes: u64,
}

impl OrderCache {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the content of an execution is small enough to be kept.
    pub fn accepts(record: &ExecutionRecord) -> bool {
        record.order_bytes <= ENTRY_BYTES_MAX
    }

    /// Keeps the content of a new execution, unless the cache is full.
    pub fn insert(&self, record: &ExecutionRecord, content: OrderContent) {
        let (mut entries, bytes) = (self.entries(), record.order_bytes);
        if !Self::accepts(record) || entries.bytes + bytes > BYTES_MAX {
            return;
        }
        if entries.orders.insert(record.execution_id.clone(), (content, bytes)).is_none() {
            entries.bytes += bytes;
        }
    }

    /// Removes and returns the content of an execution.
    pub fn take(&self, id: &ExecutionId) -> Option<OrderContent> {
        let mut entries = self.entries();
        let (content, bytes) = entries.orders.remove(id)?;
        entries.bytes -= bytes;
        if entries.orders.is_empty() {
            // A burst must not leave its table behind.
            entries.orders.shrink_to_fit();
        }
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::execution::{
        record::NewExecution,
        request::{ExecutionRequest, Submission},
    };

    fn new(order_bytes: u64) -> NewExecution {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let submission = Submission::check(request).unwrap();
        let mut new = NewExecution::new(submission, String::new(), String::new(), 0);
        new.record.order_bytes = order_bytes;
        new
    }

    #[test]
    fn content_is_taken_once() {
        let (cache, new) = (OrderCache::default(), new(10));
        cache.insert(&new.record, new.content.clone());
        assert_eq!(cache.take(&new.record.execution_id), Some(new.content));
        assert_eq!(cache.take(&new.record.execution_id), None);
        assert_eq!(cache.entries().bytes, 0);
    }

    #[test]
    fn cache_is_bounded() {
        let (cache, large) = (OrderCache::default(), new(ENTRY_BYTES_MAX + 1));
        cache.insert(&large.record, large.content);
        assert_eq!(cache.take(&large.record.execution_id), None);
        for _ in 0..2 * BYTES_MAX / ENTRY_BYTES_MAX {
            let small = new(ENTRY_BYTES_MAX);
            cache.insert(&small.record, small.content);
        }
        let entries = cache.entries();
        assert_eq!((entries.bytes, entries.orders.len() as u64), (BYTES_MAX, BYTES_MAX / ENTRY_BYTES_MAX));
    }
}
