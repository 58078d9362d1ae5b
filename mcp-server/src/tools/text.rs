//! Text from containers and hosts on its way to a model: without control characters, without known
//! secrets, and bounded.

use cluster_core::deploy::Secret;
use serde_json::Value;

/// What stands in the place of a secret.
const REDACTED: &str = "(secret)";
/// Shorter values would be found everywhere in ordinary text.
const REDACTED_LENGTH_MIN: usize = 6;

/// Without control characters, but for line ends and tabs. Escape sequences could hide text from a
/// person or speak to a terminal.
pub fn clean(text: &str) -> String {
    // A bare carriage return rewrites a line on a terminal; here each state of it is a line.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .filter(|c| !is_invisible(*c))
        .collect()
}

/// Characters that reorder or hide text without being control characters: bidirectional overrides
/// and the tag block, with which text can be smuggled past a reader.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{e0000}'..='\u{e007f}')
}

/// Every string of a result, cleaned and without the call's secrets.
pub fn clean_value(value: &mut Value, secrets: &[Secret]) {
    match value {
        Value::String(text) => *text = redact(clean(text), secrets),
        Value::Array(items) => items.iter_mut().for_each(|item| clean_value(item, secrets)),
        Value::Object(object) => object.values_mut().for_each(|item| clean_value(item, secrets)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

pub fn redact(mut text: String, secrets: &[Secret]) -> String {
    for secret in secrets {
        if secret.reveal().len() >= REDACTED_LENGTH_MIN && text.contains(secret.reveal()) {
            text = text.replace(secret.reveal(), REDACTED);
        }
    }
    text
}

/// The first bytes of a text, whole characters only, and whether something was left out.
pub fn head(text: &str, bytes_max: usize) -> (&str, bool) {
    let end = text.floor_char_boundary(bytes_max);
    (&text[..end], end < text.len())
}

/// The last bytes of a text, whole characters only, and whether something was left out.
pub fn tail(text: &str, bytes_max: usize) -> (&str, bool) {
    let start = text.ceil_char_boundary(text.len().saturating_sub(bytes_max));
    (&text[start..], start > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn control_characters_go_and_lines_stay() {
        assert_eq!(clean("a\u{1b}[31mb\r\n\tc\0\u{202e}d\u{7f}"), "a[31mb\n\tcd");
        assert_eq!(clean("50 %\rdone"), "50 %\ndone");
    }

    #[test]
    fn a_secret_never_leaves_even_inside_other_text() {
        let secrets = [Secret::new("eyJhbGciOi"), Secret::new("ab")];
        let mut value = json!({"log": ["token=eyJhbGciOi!", "cab"], "n": 1});
        clean_value(&mut value, &secrets);
        assert_eq!(value, json!({"log": ["token=(secret)!", "cab"], "n": 1}));
    }

    #[test]
    fn cuts_never_split_a_character() {
        assert_eq!(head("aé", 2), ("a", true));
        assert_eq!(tail("éa", 2), ("a", true));
        assert_eq!(tail("éa", 3), ("éa", false));
    }
}
