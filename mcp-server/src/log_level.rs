//! What a client hears of our work as log messages: the steps of its own calls, where it asked for them.
//!
//! An older client asks for its connection (`logging/setLevel`), one of 2026-07-28 for a request (`logLevel`
//! in its `_meta`). Whoever did not ask hears nothing. The protocol has deprecated it in favour of progress;
//! clients that know only this are still served. Our own log is not for clients.
#![expect(deprecated, reason = "older clients are served")]

use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::model::{LoggingLevel, LoggingMessageNotificationParam, RequestMetaObject};
use serde_json::json;

/// Of all that is said here.
const LEVEL: LoggingLevel = LoggingLevel::Info;

fn takes_in(level: LoggingLevel) -> bool {
    matches!(level, LoggingLevel::Debug | LEVEL)
}

/// What the client of a connection asked for.
#[derive(Debug, Default)]
pub struct LogLevel {
    heard: AtomicBool,
}

impl LogLevel {
    pub fn set(&self, level: LoggingLevel) {
        self.heard.store(takes_in(level), Ordering::Relaxed);
    }

    /// Whether the steps of this request are told.
    pub fn hears(&self, request: &RequestMetaObject) -> bool {
        request.log_level().map_or_else(|| self.heard.load(Ordering::Relaxed), takes_in)
    }
}

pub fn message(logger: &str, words: &str) -> LoggingMessageNotificationParam {
    LoggingMessageNotificationParam::new(LEVEL, json!(words)).with_logger(logger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_more_than_its_connection_and_silence_is_the_default() {
        let connection = LogLevel::default();
        let silent = RequestMetaObject::default();
        let asking = |level| {
            let mut request = RequestMetaObject::default();
            request.set_log_level(level);
            request
        };
        assert!(!connection.hears(&silent));
        assert!(connection.hears(&asking(LoggingLevel::Debug)));
        connection.set(LoggingLevel::Info);
        assert!(connection.hears(&silent));
        assert!(!connection.hears(&asking(LoggingLevel::Warning)));
        connection.set(LoggingLevel::Notice);
        assert!(!connection.hears(&silent));
    }
}
