//! Prepares text of containers and hosts for a model or a person. The result has no hidden or moving characters, no
//! terminal sequences and no known secret, and is bounded.
//!
//! Colours and emoji selectors only affect the look, and are removed. Any other invisible character is escaped, like
//! `\u{202e}`, so that the reader of a log sees it. A backslash of the text itself is unchanged. An escape therefore
//! shows what may have been there, and is not a reversible encoding.

pub mod time;
pub mod untrusted;

use std::{borrow::Cow, iter::repeat_n};

use cluster_core::types::secret::Secret;
use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory},
};
use serde_json::Value;

/// Replacement of a secret.
const REDACTED: &str = "(secret)";
/// Minimum length of a redacted value. Shorter values would match ordinary text everywhere.
const REDACTED_LENGTH_MIN: usize = 6;
/// Maximum number of combining marks on a letter. No script needs more, and a pile of them covers adjacent lines.
const COMBINING_MARKS_MAX: usize = 4;
/// Length limit of a colour's parameters; longer sequences are not colours.
const COLOUR_LENGTH_MAX: usize = 32;
/// Indentation of further lines in a single-line field.
const INDENT: usize = 4;

/// Returns the text with invisible characters escaped. Idempotent.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t')) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let (mut rest, mut marks) = (text, 0);
    while let Some(c) = rest.chars().next() {
        if let Some(after) = after_colour(rest) {
            rest = after;
            continue;
        }
        rest = &rest[c.len_utf8()..];
        let sight = CharClass::of(c);
        marks = if sight == CharClass::Mark { marks + 1 } else { 0 };
        match sight {
            CharClass::Plain => shown.push(c),
            // A bare carriage return rewrites a line on a terminal; here each state becomes a line.
            CharClass::Return if rest.starts_with('\n') => {}
            CharClass::Return => shown.push('\n'),
            CharClass::Mark if marks <= COMBINING_MARKS_MAX => shown.push(c),
            // One escape stands for all marks of the pile.
            CharClass::Mark if marks > COMBINING_MARKS_MAX + 1 => {}
            CharClass::Mark | CharClass::Hidden => shown.extend(c.escape_unicode()),
            CharClass::Look => {}
        }
    }
    Cow::Owned(shown)
}

/// Appearance of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CharClass {
    Plain,
    Return,
    /// Drawn on the letter before it.
    Mark,
    /// Invisible, or visible only by its effect on other characters.
    Hidden,
    /// Selects between two looks of the character before it.
    Look,
}

impl CharClass {
    fn of(c: char) -> Self {
        const IGNORABLE: icu_properties::CodePointSetDataBorrowed<'static> =
            CodePointSetData::new::<DefaultIgnorableCodePoint>();
        const CATEGORIES: icu_properties::CodePointMapDataBorrowed<'static, GeneralCategory> =
            CodePointMapData::<GeneralCategory>::new();
        match c {
            ' '..='~' | '\n' | '\t' => return Self::Plain,
            '\r' => return Self::Return,
            '\u{fe0e}' | '\u{fe0f}' => return Self::Look,
            c if IGNORABLE.contains(c) => return Self::Hidden,
            _ => {}
        }
        match CATEGORIES.get(c) {
            GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator => Self::Hidden,
            GeneralCategory::NonspacingMark | GeneralCategory::EnclosingMark => Self::Mark,
            _ => Self::Plain,
        }
    }
}

/// Returns the text after a leading colour sequence (SGR); `None` if there is no such sequence.
fn after_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[").or_else(|| text.strip_prefix('\u{9b}'))?;
    let end = parameters.bytes().take(COLOUR_LENGTH_MAX).position(|b| !matches!(b, b'0'..=b';'))?;
    parameters[end..].strip_prefix('m')
}

/// Prepares a result for its reader in one pass: removes null members, cleans every text, and redacts the call's
/// secrets.
pub fn sanitize(value: &mut Value, secrets: &[Secret]) {
    match value {
        Value::String(text) => {
            if let Cow::Owned(shown) = clean(text) {
                *text = shown;
            }
            redact(text, secrets);
        }
        Value::Array(items) => items.iter_mut().for_each(|item| sanitize(item, secrets)),
        Value::Object(object) => object.retain(|_, item| {
            sanitize(item, secrets);
            !item.is_null()
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Redacts secrets, also when the text was cut inside a secret: its beginning at the end, or its end at the beginning.
pub fn redact(text: &mut String, secrets: &[Secret]) {
    let is_telling = |part: &str| part.len() >= REDACTED_LENGTH_MIN;
    for secret in secrets.iter().map(Secret::reveal).filter(|secret| is_telling(secret)) {
        if text.contains(secret) {
            *text = text.replace(secret, REDACTED);
        }
        // The longest part first, of either kind.
        let cuts = || secret.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
        let mut beginnings = cuts().rev().map(|at| &secret[..at]);
        if let Some(part) = beginnings.find(|part| is_telling(part) && text.ends_with(part)) {
            text.replace_range(text.len() - part.len().., REDACTED);
        }
        let mut ends = cuts().map(|at| &secret[at..]);
        if let Some(part) = ends.find(|part| is_telling(part) && text.starts_with(part)) {
            text.replace_range(..part.len(), REDACTED);
        }
    }
}

/// Returns the first bytes of a cleaned text in whole characters, and whether something was cut.
pub fn head(text: &str, bytes_max: usize) -> (String, bool) {
    let mut shown = clean(text).into_owned();
    let end = shown.floor_char_boundary(bytes_max);
    let cut = end < shown.len();
    shown.truncate(end);
    (shown, cut)
}

/// Returns the last bytes of a cleaned text in whole characters, and whether something was cut.
pub fn tail(text: &str, bytes_max: usize) -> (String, bool) {
    let shown = clean(text);
    let start = shown.ceil_char_boundary(shown.len().saturating_sub(bytes_max));
    (shown[start..].to_owned(), start > 0)
}

/// Indents further lines below the first, so that no line looks like a line of this program.
pub fn indented(text: &str) -> String {
    let indent: String = repeat_n(' ', INDENT).collect();
    clean(text).trim_end().replace('\n', &format!("\n{indent}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    use crate::hostile;

    #[test]
    fn colours_go_and_what_hides_is_seen() {
        for (written, shown) in [
            ("\u{1b}[1;31merror\u{1b}[0m: no", "error: no"),
            ("a\u{1b}[2Jb\r\n\tc\0\u{202e}d\u{7f}", "a\\u{1b}[2Jb\n\tc\\u{0}\\u{202e}d\\u{7f}"),
            ("50 %\rdone", "50 %\ndone"),
            ("\u{26a0}\u{fe0f} heed", "\u{26a0} heed"),
            ("\u{e0041}", "\\u{e0041}"),
            ("a\u{2028}b\u{85}c", "a\\u{2028}b\\u{85}c"),
            ("\u{1b}\u{1b}[m[31mx", "\\u{1b}[31mx"),
            ("e\u{301}\u{323} Größe שלום สวัสดี", "e\u{301}\u{323} Größe שלום สวัสดี"),
        ] {
            assert_eq!(clean(written), shown, "{written:?}");
        }
        let piled = format!("a{}b", "\u{301}".repeat(50));
        assert_eq!(clean(&piled), format!("a{}\\u{{301}}b", "\u{301}".repeat(4)));
    }

    #[test]
    fn the_whole_corpus_is_seen_for_what_it_is() {
        for case in hostile::cases() {
            let text = String::from_utf8_lossy(&case.bytes);
            let shown = clean(&text);
            hostile::assert_seen(case.name, &shown);
            assert!(shown.contains(hostile::CANARY), "{}: the words themselves stay", case.name);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let text = String::from_utf8_lossy(&bytes);
            let shown = clean(&text).into_owned();
            hostile::assert_seen("random bytes", &shown);
            prop_assert_eq!(&clean(&shown), &shown, "once is enough");
        }

        #[test]
        fn whatever_the_characters_are(text in "\\PC{0,9}[\u{0}-\u{9f}]{0,9}[\u{200b}-\u{206f}\u{300}-\u{36f}\u{e0000}-\u{e01ef}\u{1b}\\[0-9;m\r\n]{0,60}", max in 0..200_usize) {
            let shown = clean(&text).into_owned();
            hostile::assert_seen("random characters", &shown);
            prop_assert_eq!(&clean(&shown), &shown, "once is enough");
            prop_assert!(head(&text, max).0.len() <= max && tail(&text, max).0.len() <= max);
        }
    }

    #[test]
    fn a_secret_never_leaves_even_inside_other_text() {
        let secrets = [Secret::new("eyJhbGciOi"), Secret::new("ab")];
        let mut value = json!({"log": ["token=eyJhbGciOi!", "cab"], "n": 1});
        sanitize(&mut value, &secrets);
        assert_eq!(value, json!({"log": ["token=(secret)!", "cab"], "n": 1}));
    }

    #[test]
    fn nulls_are_left_out_of_results() {
        let mut value = json!({"a": null, "b": [{"c": null, "d": 1}]});
        sanitize(&mut value, &[]);
        assert_eq!(value, json!({"b": [{"d": 1}]}));
    }

    #[test]
    fn no_part_of_a_secret_is_left_where_a_text_was_cut() {
        let redacted = |text: &str| {
            let mut text = text.to_owned();
            redact(&mut text, &[Secret::new("s3crét-and-long")]);
            text
        };
        assert_eq!(redacted("token s3crét-and"), "token (secret)");
        assert_eq!(redacted("crét-and-long end"), "(secret) end");
        assert_eq!(redacted("-and-long s3crét s3crét-and-long"), "(secret) s3crét (secret)");
        assert_eq!(redacted("long s3c"), "long s3c", "so little tells nothing");
    }

    #[test]
    fn cuts_never_split_a_character() {
        assert_eq!(head("aé", 2), ("a".to_owned(), true));
        assert_eq!(tail("éa", 2), ("a".to_owned(), true));
        assert_eq!(tail("éa", 3), ("éa".to_owned(), false));
        // The limit applies to the cleaned text.
        assert_eq!(head("\0\0", 5), ("\\u{0}".to_owned(), true));
    }
}
