//! How an error looks to an assistant: its words, and on requests that are no tool calls a code of JSON-RPC.

use cluster_core::{Error, ErrorCode};
use rmcp::{ErrorData, model::ErrorCode as ProtocolCode};
use serde_json::{Value, json};

use crate::tools::clean;

/// What is wrong, and on a line of its own what to do.
pub fn words(error: &Error) -> String {
    let words = match error.remedy_text() {
        Some(remedy) => format!("{}\nWhat to do: {remedy}", error.message()),
        None => error.message().to_owned(),
    };
    clean(&words)
}

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
    ErrorData::new(code, words(error), Some(data))
}
