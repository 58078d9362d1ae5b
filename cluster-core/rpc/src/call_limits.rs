//! Bounds of a call before it is authenticated: its size, and how many are under way on its connection.
//!
//! A server reads a whole message before its handler sees it. Without a bound here, an unknown
//! caller could have many megabytes held on its behalf.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aegis_types::error::{Error, ErrorCode};
use http::{HeaderMap, Request, Response};
use http_body_util::Limited;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{places::Authenticated, status::to_status, wire::MESSAGE_BYTES_MAX};
use crate::via::PeerInfo;

/// An attestation with its certificate request has a few kilobytes.
const UNPROVEN_BYTES_MAX: usize = 64 * 1024;
/// Size of what a member says of itself in one call.
const MEMBER_BYTES_MAX: usize = 1024 * 1024;
/// The frame of a message.
const FRAME_BYTES: usize = 1024;
/// Until a member's call is answered, its own sending included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
const CLUSTER_SERVICE: &str = "/aegis.cluster.v1.NodeClusterService/";
/// Carries an order with its input.
const FORWARD_EXECUTION: &str = "ForwardExecution";
/// A stream of pieces, each of which is bounded.
const PUT_CONTENT: &str = "/aegis.agent.v1.WorkerService/PutContent";

/// Whether a request bears a sound token. Its signature and its rights are checked later.
#[derive(Clone)]
pub struct Known(Arc<dyn Fn(&HeaderMap) -> bool + Send + Sync>);

impl Known {
    pub fn of(is_known: impl Fn(&HeaderMap) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_known))
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

/// The token of a request, if it bears one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
}

#[derive(Debug, Clone)]
pub struct CallLimits(Known);

impl CallLimits {
    pub fn new(known: Known) -> Self {
        Self(known)
    }
}

impl<S> Layer<S> for CallLimits {
    type Service = LimitedCalls<S>;
    fn layer(&self, inner: S) -> Self::Service {
        LimitedCalls { known: self.0.clone(), inner }
    }
}

#[derive(Debug, Clone)]
pub struct LimitedCalls<S> {
    known: Known,
    inner: S,
}

/// The bytes that a call may bring, and the time it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    bytes_max: Option<usize>,
    timeout: Option<Duration>,
}

fn bounds(path: &str, is_known: bool) -> Bounds {
    let cluster_call = path.strip_prefix(CLUSTER_SERVICE).filter(|call| *call != FORWARD_EXECUTION);
    let timeout = cluster_call.map(|_| CALL_TIMEOUT);
    let bytes_max = match (is_known, cluster_call) {
        (false, _) => Some(UNPROVEN_BYTES_MAX),
        (true, Some(_)) => Some(MEMBER_BYTES_MAX),
        (true, None) if path == PUT_CONTENT => None,
        (true, None) => Some(MESSAGE_BYTES_MAX + FRAME_BYTES),
    };
    Bounds { bytes_max, timeout }
}

impl<S> Service<Request<Body>> for LimitedCalls<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let proven =
            request.extensions().get::<PeerInfo>().map_or_else(Authenticated::default, |e| e.proven.clone());
        let is_known = proven.is_set() || (self.known.0)(request.headers());
        let Bounds { bytes_max, timeout } = bounds(request.uri().path(), is_known);
        let request = match bytes_max {
            Some(bytes_max) => request.map(|body| Body::new(Limited::new(body, bytes_max))),
            None => request,
        };
        // The one that is ready is used; its clone waits for the next call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let calls = proven.calls(is_known);
        Box::pin(async move {
            // Never closed. Held until the answer begins.
            let _under_way = calls.acquire_owned().await;
            match timeout {
                None => inner.call(request).await,
                Some(limit) => match tokio::time::timeout(limit, inner.call(request)).await {
                    Ok(answered) => answered,
                    Err(_) => {
                        let late = Error::new(ErrorCode::Timeout, "the call was not finished in time");
                        Ok(to_status(&late).into_http())
                    }
                },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_callers_have_small_calls_alone() {
        let of = |path: &str, is_known| bounds(path, is_known).bytes_max;
        let (attest, forward) = ("AttestNode", FORWARD_EXECUTION);
        let cluster = |call: &str| format!("{CLUSTER_SERVICE}{call}");
        for path in
            [&cluster(attest), &cluster(forward), PUT_CONTENT, "/aegis.runtime.v1.AegisRuntime/ExecuteAgent"]
        {
            assert_eq!(of(path, false), Some(UNPROVEN_BYTES_MAX), "{path}");
        }
        assert_eq!(of(&cluster("Heartbeat"), true), Some(MEMBER_BYTES_MAX));
        assert_eq!(of(&cluster(forward), true), Some(MESSAGE_BYTES_MAX + FRAME_BYTES));
        assert_eq!(of(PUT_CONTENT, true), None, "each of its pieces is bounded");
        assert!(bounds(&cluster("Heartbeat"), true).timeout.is_some());
        assert!(bounds(&cluster(forward), true).timeout.is_none());
    }
}
