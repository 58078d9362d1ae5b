//! Reading requests so that every refusal is one of our errors, with what is wrong and where.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    response::{IntoResponse as _, Response},
};
use cluster_core::{controller::audit::Arguments, types::error::Error};
use http::{StatusCode, request::Parts};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{Problem, body_too_large};

/// A JSON object; no body is an empty one.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let arguments = request.extensions().get::<Arguments>().cloned().unwrap_or_default();
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                return body_too_large();
            }
            Problem(Error::invalid("the body could not be read").remedy("send it again")).into_response()
        })?;
        read(&bytes, &arguments).map(Self).map_err(|error| Problem(error).into_response())
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8], arguments: &Arguments) -> cluster_core::types::error::Result<T> {
    let value: Value = if bytes.is_empty() {
        Value::Object(serde_json::Map::new())
    } else {
        // The parser's own words could repeat the content; the place is enough.
        serde_json::from_slice(bytes).map_err(|e| {
            Error::invalid(format!("the body is not JSON (line {}, column {})", e.line(), e.column()))
        })?
    };
    arguments.note(&value);
    crate::tools::parse(value)
}

/// The query string; unknown parameters are refused by the type.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::<T>::try_from_uri(&parts.uri)
            .map_err(|e| Error::invalid(format!("query: {}", crate::text::clean(&e.body_text()))))?;
        Ok(Self(query.0))
    }
}

/// A part of the path that is one of our ids.
pub struct Named<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(|e| Error::invalid(format!("path: {}", crate::text::clean(&e.body_text()))))?;
        Ok(Self(path.0))
    }
}

/// Size limit of a request; larger requests are rejected with 413.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
