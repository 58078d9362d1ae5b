//! The only module in which tests wait.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

const INTERVAL: Duration = Duration::from_millis(50);

/// Polls until there is a value. Fails with `what` at the time limit.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return Some(answer);
            }
            if Instant::now() >= deadline {
                return None;
            }
            sleep(INTERVAL).await;
        }
    };
    // The question itself may hang.
    match timeout(limit + INTERVAL, asked).await {
        Ok(Some(answer)) => answer,
        _ => panic!("not within {limit:?}: {what}"),
    }
}

/// Limits the time of one future.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}
