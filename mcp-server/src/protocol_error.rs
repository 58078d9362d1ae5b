//! How an error looks on requests that are no tool calls: a code of JSON-RPC, and the same words that a
//! tool's error has.

use cluster_core::{Error, ErrorCode};
use rmcp::{ErrorData, model::ErrorCode as ProtocolCode};
use serde_json::{Value, json};

use crate::tools::clean;

/// Of a request that names a resource.
pub fn of_resource(error: &Error, uri: &str) -> ErrorData {
    let data = json!({ "code": error.code(), "uri": clean(&cluster_core::ids::shown(uri)) });
    let code = match error.code() {
        // rmcp writes it as invalid params for clients of 2026-07-28, as that version wants it.
        ErrorCode::NotFound => ProtocolCode::RESOURCE_NOT_FOUND,
        other => code(other),
    };
    say(code, error, data)
}

/// Of a request whose arguments are at fault, if anything of it is.
pub fn of_arguments(error: &Error) -> ErrorData {
    say(code(error.code()), error, json!({ "code": error.code() }))
}

fn code(code: ErrorCode) -> ProtocolCode {
    match code {
        ErrorCode::InvalidArgument | ErrorCode::NotFound | ErrorCode::ResourceExhausted => {
            ProtocolCode::INVALID_PARAMS
        }
        _ => ProtocolCode::INTERNAL_ERROR,
    }
}

fn say(code: ProtocolCode, error: &Error, data: Value) -> ErrorData {
    // The caller reads message and remedy; the causes are for us.
    if matches!(error.code(), ErrorCode::Internal | ErrorCode::Storage) {
        tracing::error!(code = %error.code(), error = %error.chain(), "a request failed");
    }
    let mut words = error.message().to_owned();
    if let Some(remedy) = error.remedy_text() {
        words.push_str("\nWhat to do: ");
        words.push_str(remedy);
    }
    ErrorData::new(code, clean(&words), Some(data))
}
