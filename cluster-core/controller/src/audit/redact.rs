//! Arguments as they may be kept: no secret, nothing long, nothing that speaks to a terminal.
//!
//! A field is judged by its name, and by what its text looks like. What a container is given as input may be
//! anything, so that its length alone is told, and of its environment the names.

use serde_json::{Map, Value};

const TEXT_CHARS_MAX: usize = 200;
const LIST_ITEMS_MAX: usize = 20;
const FIELDS_MAX: usize = 50;
const DEPTH_MAX: usize = 8;
/// Longest text of an entry's arguments.
const BYTES_MAX: usize = 2 * 1024;
const HIDDEN: &str = "(hidden)";

/// A field whose name holds one of these may hold a secret.
const SECRET_NAMES: [&str; 10] = [
    "token",
    "secret",
    "passw",
    "passphrase",
    "credential",
    "authorization",
    "api_key",
    "apikey",
    "private_key",
    "value",
];
/// Fields of which the names inside are told and no values.
const MAPS_OF_VALUES: [&str; 2] = ["env", "environment"];
/// Fields of which the length is told.
const CONTENTS: [&str; 3] = ["input", "content", "manifest"];

pub(super) fn redacted(value: &Value) -> String {
    cut(without_secrets("", value, 0).to_string(), BYTES_MAX)
}

/// One line of so many characters.
pub(super) fn line(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut line: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

fn cut(mut text: String, bytes_max: usize) -> String {
    const MARK: char = '…';
    if text.len() > bytes_max {
        let end = (0..=bytes_max - MARK.len_utf8()).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push(MARK);
    }
    text
}

fn without_secrets(name: &str, value: &Value, depth: usize) -> Value {
    let name = name.to_ascii_lowercase();
    if depth == DEPTH_MAX {
        return Value::String("…".to_owned());
    }
    if MAPS_OF_VALUES.contains(&name.as_str()) {
        return match value {
            Value::Object(fields) => object(fields, |_, value| hidden(value)),
            other => hidden(other),
        };
    }
    match value {
        Value::String(text) if CONTENTS.contains(&name.as_str()) => {
            Value::String(format!("({} bytes)", text.len()))
        }
        scalar if is_secret(&name) => hidden(scalar),
        Value::Object(fields) => object(fields, |name, value| without_secrets(name, value, depth + 1)),
        Value::Array(items) => {
            let shown = items.iter().take(LIST_ITEMS_MAX).map(|item| without_secrets(&name, item, depth + 1));
            let more = items.len().saturating_sub(LIST_ITEMS_MAX);
            let more = (more > 0).then(|| Value::String(format!("({more} more)")));
            Value::Array(shown.chain(more).collect())
        }
        Value::String(text) => Value::String(line(&plain(text), TEXT_CHARS_MAX)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn object(fields: &Map<String, Value>, mut each: impl FnMut(&str, &Value) -> Value) -> Value {
    let fields = fields.iter().take(FIELDS_MAX);
    Value::Object(fields.map(|(name, value)| (line(name, TEXT_CHARS_MAX), each(name, value))).collect())
}

fn is_secret(name: &str) -> bool {
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Masks a value. The name of an operator's secret and an absent value are shown.
fn hidden(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("secret:") => Value::String(line(text, TEXT_CHARS_MAX)),
        Value::String(text) if text.is_empty() => value.clone(),
        Value::Null | Value::Bool(_) => value.clone(),
        _ => Value::String(HIDDEN.to_owned()),
    }
}

/// Without what is a secret by its looks: a login in a URL, a token of ours, what follows `Bearer`, and the
/// right side of an assignment to a name that may hold one.
fn plain(text: &str) -> String {
    let mut hide_next = false;
    let words = text.split(' ').map(|word| {
        let hide = std::mem::replace(&mut hide_next, word.eq_ignore_ascii_case("bearer"));
        match word.split_once('=') {
            _ if hide || word.contains("aegis_") => HIDDEN.to_owned(),
            Some((name, _)) if is_secret(&name.to_ascii_lowercase()) => format!("{name}={HIDDEN}"),
            _ => without_login(word),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn without_login(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MARKER: &str = "marker-4f1";

    #[test]
    fn what_may_be_a_secret_is_not_kept() {
        for (given, kept) in [
            (json!({"tunnel_token": MARKER}), json!({"tunnel_token": HIDDEN})),
            (json!({"confirm_token": MARKER}), json!({"confirm_token": HIDDEN})),
            (json!({"value": MARKER}), json!({"value": HIDDEN})),
            (json!({"Password": {"a": MARKER}}), json!({"Password": HIDDEN})),
            (json!({"tokens": [MARKER]}), json!({"tokens": HIDDEN})),
            (json!({"env": {"A": MARKER}}), json!({"env": {"A": HIDDEN}})),
            (json!({"env": {"A": "secret:name"}}), json!({"env": {"A": "secret:name"}})),
            (json!({"env": [MARKER]}), json!({"env": HIDDEN})),
            (json!({"input": MARKER}), json!({"input": "(10 bytes)"})),
            (
                json!({"remote_llm_url": format!("https://u:{MARKER}@h/p@q")}),
                json!({"remote_llm_url": format!("https://{HIDDEN}@h/p@q")}),
            ),
            (
                json!({"command": ["curl", "-H", format!("Authorization: Bearer {MARKER} x")]}),
                json!({"command": ["curl", "-H", format!("Authorization: Bearer {HIDDEN} x")]}),
            ),
            (
                json!({"command": ["sh", "-c", format!("API_TOKEN={MARKER} run --password={MARKER}")]}),
                json!({"command": ["sh", "-c", format!("API_TOKEN={HIDDEN} run --password={HIDDEN}")]}),
            ),
            (json!({"command": [format!("aegis_{MARKER}")]}), json!({"command": [HIDDEN]})),
            (
                json!({"config": {"spec": {"deploy": {"registries": {"r": {"password": MARKER}}}}}}),
                json!({"config": {"spec": {"deploy": {"registries": {"r": {"password": HIDDEN}}}}}}),
            ),
        ] {
            assert_eq!(redacted(&given), kept.to_string());
        }
    }

    #[test]
    fn what_is_none_is_kept() {
        let given = json!({"host": "edge1", "tags": ["gpu"], "dry_run": true, "ssh_port": 22, "node_id": "n",
            "idempotency_key": "k", "tunnel_token": "", "link": null});
        assert_eq!(redacted(&given), given.to_string());
    }

    #[test]
    fn everything_is_bounded() {
        let long = json!({ "host": "x".repeat(100_000) });
        assert!(redacted(&long).len() < 300, "{}", redacted(&long));
        let wide: Value =
            (0..1000).map(|n| (format!("f{n}"), json!("é".repeat(500)))).collect::<Map<_, _>>().into();
        assert!(redacted(&wide).len() <= BYTES_MAX);
        let many = json!({ "tags": vec!["t"; 1000] });
        assert!(redacted(&many).contains("(980 more)"));
        let deep = (0..100).fold(json!(MARKER), |inner, _| json!({ "a": inner }));
        assert!(!redacted(&deep).contains(MARKER));
        assert_eq!(line("a\u{1b}[31m\nb", 5), "a\u{fffd}[31…");
    }
}
