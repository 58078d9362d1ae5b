//! Hostile output of a container, and the rules for every text that shows it to an assistant or a person. Shared by the
//! unit tests of `aegis` and the test with a real container.
//!
//! Each case contains [`CANARY`] in plain sight, so that a test can find where the container's text appeared. The rules
//! are written by hand and from the standard's tables, independent of the tested code.

mod cases;

pub use cases::{CANARY, cases};

/// Characters that hide, move or reorder text, or control a terminal. First and last of each range.
const HIDING: &[(u32, u32, &str)] = &[
    (0x00, 0x08, "control"),
    (0x0b, 0x1f, "control"),
    (0x7f, 0x9f, "control"),
    (0xad, 0xad, "soft hyphen"),
    (0x34f, 0x34f, "grapheme joiner"),
    (0x61c, 0x61c, "bidirectional"),
    (0x115f, 0x1160, "filler"),
    (0x17b4, 0x17b5, "filler"),
    (0x180b, 0x180f, "selector"),
    (0x200b, 0x200f, "zero width or bidirectional"),
    (0x2028, 0x202e, "separator or bidirectional"),
    (0x2060, 0x206f, "zero width or bidirectional"),
    (0x3164, 0x3164, "filler"),
    (0xfe00, 0xfe0f, "selector"),
    (0xfeff, 0xfeff, "zero width"),
    (0xffa0, 0xffa0, "filler"),
    (0xfff9, 0xfffb, "annotation"),
    (0x1d173, 0x1d17a, "format"),
    (0xe0000, 0xe0fff, "tag or selector"),
];

/// Maximum number of combining marks of the common block on one letter.
const MARKS_MAX: usize = 4;

/// Checks that no character hides, moves or piles up.
pub fn assert_seen(about: &str, text: &str) {
    let mut marks = 0;
    for c in text.chars() {
        let code = u32::from(c);
        let hiding = HIDING.iter().find(|(first, last, _)| (*first..=*last).contains(&code));
        assert!(hiding.is_none(), "{about}: U+{code:04X} ({}) in {text:?}", hiding.map_or("", |h| h.2));
        marks = if (0x300..=0x36f).contains(&code) { marks + 1 } else { 0 };
        assert!(marks <= MARKS_MAX, "{about}: marks are piled up in {text:?}");
    }
}

/// Checks that the container's text is only between the delimiters of one fence, and does not close it.
pub fn assert_fenced(about: &str, text: &str) {
    assert_seen(about, text);
    let mut inside: Option<String> = None;
    let mut mark: Option<String> = None;
    for line in text.lines() {
        let end = inside.as_ref().map(|mark| format!("</{mark}>"));
        match end {
            Some(end) if line.ends_with(&end) => inside = None,
            Some(_) => {}
            None => {
                assert!(!line.contains(CANARY), "{about}: it stands outside of the marks: {line}\n{text}");
                let opened = line.strip_prefix("<untrusted-").and_then(|rest| rest.split(' ').next());
                if let Some(random) = opened {
                    assert!(random.len() >= 12, "{about}: the mark can be guessed: {line}");
                    let name = format!("untrusted-{random}");
                    assert_eq!(mark.get_or_insert_with(|| name.clone()), &name, "{about}: one mark a text");
                    inside = Some(name);
                }
            }
        }
    }
    assert!(inside.is_none() && mark.is_some(), "{about}: no closed quotation\n{text}");
}

/// Checks a tool's result: the container's text is only in fields declared as untrusted. `where_it_may` names those
/// fields by their path.
pub fn assert_marked(about: &str, result: &serde_json::Value, where_it_may: &[&str]) {
    walk(result, "", &mut |path, text| {
        assert_seen(about, text);
        let allowed = where_it_may.contains(&path);
        assert!(allowed || !text.contains(CANARY), "{about}: the container's words are in {path}: {text}");
    });
}

/// Visits every string, with its path; elements of a list share the path `list[]`.
fn walk(value: &serde_json::Value, path: &str, see: &mut dyn FnMut(&str, &str)) {
    match value {
        serde_json::Value::String(text) => see(path, text),
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| walk(item, &format!("{path}[]"), see));
        }
        serde_json::Value::Object(object) => {
            for (name, item) in object {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(item, &below, see);
            }
        }
        _ => {}
    }
}
