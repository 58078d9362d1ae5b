//! Open executions of each caller, counted so that one caller cannot fill the queue for all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aegis_types::error::{Error, ErrorCode, Result};

/// Counts of open executions by caller, shared by the tasks of executions.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenByCaller(Arc<Mutex<HashMap<String, u32>>>);

/// Place of one execution in its caller's count. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct CallerPlace {
    counts: OpenByCaller,
    caller: String,
}

impl OpenByCaller {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a new execution.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted` where the caller has `max` open executions.
    pub fn take(&self, caller: &str, max: u32) -> Result<CallerPlace> {
        let mut counts = self.lock();
        let count = counts.entry(caller.to_owned()).or_default();
        if *count >= max {
            return Err(Error::new(
                ErrorCode::ResourceExhausted,
                format!("{caller} has {count} open executions, the most that one caller may have"),
            )
            .remedy("wait until some have ended, or raise spec.runtime.max_executions_per_caller"));
        }
        *count += 1;
        Ok(CallerPlace { counts: self.clone(), caller: caller.to_owned() })
    }

    /// Takes a place for an execution that was accepted before a restart.
    pub fn restore(&self, caller: &str) -> CallerPlace {
        *self.lock().entry(caller.to_owned()).or_default() += 1;
        CallerPlace { counts: self.clone(), caller: caller.to_owned() }
    }
}

impl Drop for CallerPlace {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_a_limit_of_its_own() {
        let counts = OpenByCaller::default();
        let restored = counts.restore("token ci");
        let first = counts.take("token ci", 2).unwrap();
        let error = counts.take("token ci", 2).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert_eq!(error.message(), "token ci has 2 open executions, the most that one caller may have");
        let other = counts.take("uid 1000", 1).unwrap();
        drop(first);
        counts.take("token ci", 2).unwrap();
        drop((restored, other));
        assert!(counts.lock().is_empty());
    }
}
