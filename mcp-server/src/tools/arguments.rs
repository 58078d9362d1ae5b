//! Parses a caller's arguments: rejects unknown names, names the place of an error, and checks ranges.
//!
//! rmcp checks neither ranges nor unknown fields, and some clients remove limits from the schemas, so all checks are
//! made here. REST bodies are parsed by the same functions.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use cluster_core::types::{
    error::{Error, Result},
    secret::Secret,
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// Below the 60 s after which some clients abandon a call.
pub const WAIT_SECONDS_MAX: u64 = 45;
pub const PAGE_LIMIT_DEFAULT: u32 = 20;
pub const PAGE_LIMIT_MAX: u32 = 100;

/// How much a result tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    #[default]
    Concise,
    Detailed,
}

/// Parses an argument object. A null counts as omitted.
pub fn parse<T: DeserializeOwned>(mut arguments: Value) -> Result<T> {
    if let Value::Object(object) = &mut arguments {
        object.retain(|_, value| !value.is_null());
    }
    serde_path_to_error::deserialize(arguments).map_err(|e| {
        let path = bounded(&e.path().to_string());
        let why = bounded(&e.into_inner().to_string());
        let place = if path == "." { String::new() } else { format!("{path}: ") };
        Error::invalid(format!("{place}{why}")).remedy("correct the argument and send it again")
    })
}

/// Bounds an error of serde, which repeats the caller's names and values: they may be long or hostile.
fn bounded(text: &str) -> String {
    const ERROR_BYTES_MAX: usize = 400;
    match crate::text::head(text, ERROR_BYTES_MAX) {
        (head, true) => format!("{head}…"),
        (head, false) => head,
    }
}

pub fn check_range<T: PartialOrd + Display>(name: &str, value: T, range: RangeInclusive<T>) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(Error::invalid(format!("{name}: {value} is out of range {} to {}", range.start(), range.end()))
        .remedy(format!("give a value from {} to {}", range.start(), range.end())))
}

/// Checks a wait, which must not exceed the patience of clients.
pub fn wait(seconds: Option<u64>, default: u64) -> Result<Duration> {
    check_range("wait_seconds", seconds.unwrap_or(default), 0..=WAIT_SECONDS_MAX).map(Duration::from_secs)
}

pub fn page_limit(limit: Option<u32>) -> Result<usize> {
    let limit = check_range("limit", limit.unwrap_or(PAGE_LIMIT_DEFAULT), 1..=PAGE_LIMIT_MAX)?;
    Ok(limit as usize)
}

/// Checks a secret from an assistant or over HTTP: a literal value or the name of a declared secret. References to this
/// machine's files and environment are for the configuration and the command line.
pub fn check_secret(name: &str, value: Option<Secret>) -> Result<Option<Secret>> {
    let Some(value) = value else { return Ok(None) };
    if ["env:", "file:"].iter().any(|scheme| value.reveal().starts_with(scheme)) {
        return Err(Error::invalid(format!("{name}: env: and file: references are not taken here"))
            .remedy("leave it out to use the operator's own, or let a person run `aegis deploy`"));
    }
    Ok((!value.is_empty()).then_some(value))
}

/// Parses a secret so that no error can repeat it.
pub fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(Secret::new(text))),
        _ => Err(serde::de::Error::custom("it must be a string")),
    }
}

/// Makes a page cursor: the id after which the page continues. Opaque to callers.
pub fn cursor_of(id: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("after:{id}"))
}

pub fn cursor(text: &str) -> Result<String> {
    use base64::Engine as _;
    const CURSOR_LENGTH_MAX: usize = 256;
    let wrong = || {
        Error::invalid("cursor: it is not one that this tool returned")
            .remedy("pass next_cursor of the last answer, or leave it out to begin again")
    };
    if text.len() > CURSOR_LENGTH_MAX {
        return Err(wrong());
    }
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    text.strip_prefix("after:").map(str::to_owned).ok_or_else(wrong)
}

/// Default wait of every tool that starts something on a host.
pub const WAIT_SECONDS_DEFAULT: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        host: String,
        #[serde(default)]
        tags: Vec<String>,
        #[serde(default, deserialize_with = "secret")]
        token: Option<Secret>,
    }

    #[test]
    fn an_error_says_what_and_where() {
        let error = parse::<Sample>(json!({"host": "a", "tags": ["x", 3]})).unwrap_err();
        assert!(error.message().starts_with("tags[1]: "), "{error}");
        let error = parse::<Sample>(json!({"host": "a", "hots": 1})).unwrap_err();
        assert!(error.message().contains("hots"), "{error}");
        let error = parse::<Sample>(json!({})).unwrap_err();
        assert!(error.message().contains("host"), "{error}");
    }

    #[test]
    fn null_means_left_out_and_a_secret_is_never_repeated() {
        assert!(parse::<Sample>(json!({"host": "a", "tags": null, "token": null})).is_ok());
        let error = parse::<Sample>(json!({"host": "a", "token": 123_456_789})).unwrap_err();
        assert!(!error.to_string().contains("123456789"), "{error}");
    }

    #[test]
    fn a_long_unknown_name_is_shown_bounded() {
        let error = parse::<Sample>(json!({"host": "a", "x".repeat(10_000): 1})).unwrap_err();
        assert!(error.to_string().len() < 1000);
    }

    #[test]
    fn ranges_are_said() {
        assert_eq!(wait(None, 20).unwrap(), Duration::from_secs(20));
        let error = wait(Some(46), 20).unwrap_err();
        assert_eq!(error.message(), "wait_seconds: 46 is out of range 0 to 45");
        assert!(page_limit(Some(0)).is_err());
    }

    #[test]
    fn references_to_this_machine_are_not_taken_from_an_assistant() {
        for bad in ["env:HOME", "file:/etc/shadow"] {
            assert!(check_secret("tunnel_token", Some(Secret::new(bad))).is_err());
        }
        assert!(check_secret("tunnel_token", Some(Secret::new(""))).unwrap().is_none());
    }

    #[test]
    fn a_cursor_reads_back_and_a_made_up_one_does_not() {
        assert_eq!(cursor(&cursor_of("node-1")).unwrap(), "node-1");
        for bad in ["", "node-1", "!!", &"a".repeat(300)] {
            assert!(cursor(bad).is_err(), "{bad}");
        }
    }
}
