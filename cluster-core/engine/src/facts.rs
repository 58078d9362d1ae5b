//! Facts about the container engine, for callers that must not wait for it: heartbeats and health.
//!
//! An engine that hangs is asked for a few seconds only, and its last answer stands in for a moment. One
//! task asks it regularly; it ends with the node.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aegis_types::error::{Error, ErrorCode, Result};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Engine, EngineInfo};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// An engine that is silent for longer gets no new work.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const ASK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    last: Option<EngineInfo>,
    /// Since the first question that it left unanswered.
    silent_since: Option<Instant>,
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct EngineFacts {
    engine: Engine,
    state: Arc<Mutex<State>>,
    answers: Arc<watch::Sender<bool>>,
}

impl EngineFacts {
    pub fn new(engine: Engine) -> Self {
        Self { engine, state: Arc::default(), answers: Arc::new(watch::channel(true).0) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what the engine says now, or said a moment ago where it does not answer in time.
    ///
    /// # Errors
    ///
    /// The engine refuses, or has not answered for 10 s.
    pub async fn get(&self) -> Result<EngineInfo> {
        let asked = Instant::now();
        match tokio::time::timeout(ANSWER_TIMEOUT, self.engine.info()).await {
            Ok(Ok(info)) => {
                *self.lock() = State { last: Some(info.clone()), silent_since: None };
                Ok(info)
            }
            Ok(Err(error)) => {
                // It is known to be away: nothing stands in for it.
                *self.lock() = State { last: None, silent_since: Some(asked) };
                Err(error)
            }
            Err(_) => self.last_answer(asked),
        }
    }

    fn last_answer(&self, asked: Instant) -> Result<EngineInfo> {
        let mut state = self.lock();
        let silence = state.silent_since.get_or_insert(asked).elapsed();
        match &state.last {
            Some(info) if silence < SILENCE_MAX => Ok(info.clone()),
            _ => Err(Error::new(
                ErrorCode::Engine,
                format!("the container engine has not answered for {} s", silence.as_secs()),
            )
            .remedy("look at the engine's own log on the node; restart it if it hangs")),
        }
    }

    /// Changes when the engine stops to answer, and when it answers again.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }

    /// Asks regularly until told to stop.
    pub fn spawn(&self, stop: CancellationToken) {
        let facts = self.clone();
        tokio::spawn(async move {
            while let Some(answer) = stop.run_until_cancelled(facts.get()).await {
                let changed = facts
                    .answers
                    .send_if_modified(|answers| std::mem::replace(answers, answer.is_ok()) != answer.is_ok());
                match &answer {
                    Err(error) if changed => {
                        tracing::warn!(error = %error.chain(), "the container engine does not answer");
                    }
                    Ok(_) if changed => tracing::info!("the container engine answers again"),
                    _ => {}
                }
                if stop.run_until_cancelled(tokio::time::sleep(ASK_INTERVAL)).await.is_none() {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{UnixListener, UnixStream},
    };

    use super::*;

    /// Answers each question with the same facts until it hangs.
    async fn answer(mut stream: UnixStream, hangs: Arc<AtomicBool>) {
        let mut buffer = [0; 4096];
        while let Ok(1..) = stream.read(&mut buffer).await {
            if hangs.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
            let body = r#"{"ApiVersion":"1.44","ServerVersion":"26.1.5"}"#;
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nApi-Version: 1.44";
            let text = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn last_answer_stands_in_for_ten_seconds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let hangs = Arc::new(AtomicBool::new(false));
        let hanging = hangs.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, hanging.clone()));
            }
        });
        let facts = EngineFacts::new(Engine::new(Some(&path)).unwrap());
        assert_eq!(facts.get().await.unwrap().version, "26.1.5");
        hangs.store(true, Ordering::Release);
        // Its time limit is what is waited for.
        assert_eq!(facts.get().await.unwrap().version, "26.1.5");
        let since = facts.lock().silent_since.expect("its silence is noted");
        facts.lock().silent_since = since.checked_sub(SILENCE_MAX);
        let error = facts.get().await.unwrap_err();
        assert!(error.code() == ErrorCode::Engine && error.message().contains("not answered"), "{error}");
        hangs.store(false, Ordering::Release);
        assert_eq!(facts.get().await.unwrap().version, "26.1.5");
        assert!(facts.lock().silent_since.is_none());
    }
}
