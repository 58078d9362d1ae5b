//! Log messages for clients: the steps of a client's own calls, if the client asked for them.
//!
//! An older client asks for its connection (`logging/setLevel`), a client of 2026-07-28 for a request (`logLevel` in
//! its `_meta`). Without a request nothing is sent. The protocol has deprecated log messages in favour of progress;
//! clients that only know log messages are still served. The daemon's own log is not sent to clients.
#![expect(deprecated, reason = "older clients are served")]

use std::sync::atomic::{AtomicBool, Ordering};

use rmcp::model::{LoggingLevel, LoggingMessageNotificationParam, RequestMetaObject};
use serde_json::json;

/// Level of all messages.
const LEVEL: LoggingLevel = LoggingLevel::Info;

fn takes_in(level: LoggingLevel) -> bool {
    matches!(level, LoggingLevel::Debug | LEVEL)
}

/// Level that the client of a connection requested.
#[derive(Debug, Default)]
pub struct LogLevel {
    heard: AtomicBool,
}

impl LogLevel {
    pub fn set(&self, level: LoggingLevel) {
        self.heard.store(takes_in(level), Ordering::Relaxed);
    }

    /// Returns whether the steps of this request are sent.
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
    fn request_level_overrides_connection_and_default_is_silent() {
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
