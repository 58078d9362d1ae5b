//! Errors as JSON: `{code, message, remedy}` with the code's HTTP status.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use cluster_core::types::error::{Error, ErrorCode, Failure};
use http::StatusCode;

/// An error on its way out.
#[derive(Debug)]
pub struct Problem(pub Error);

pub type Answer<T> = Result<T, Problem>;

impl Problem {
    pub fn body(&self) -> Json<Failure> {
        Json(Failure::from(&self.0))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let code = self.0.code();
        if matches!(code, ErrorCode::Internal | ErrorCode::Storage) {
            tracing::error!(%code, error = %self.0.chain(), "a request failed");
        } else {
            tracing::debug!(%code, error = %self.0, "a request was refused");
        }
        let mut response = (crate::codes::of(code).http, self.body()).into_response();
        // For the audit log.
        response.extensions_mut().insert(code);
        response
    }
}

/// HTTP has a status of its own for this bound.
pub fn body_too_large() -> Response {
    let error = Error::new(ErrorCode::ResourceExhausted, "the body is larger than 4 MiB")
        .remedy("send less; files go by their path, as a workspace");
    (StatusCode::PAYLOAD_TOO_LARGE, Problem(error).body()).into_response()
}
