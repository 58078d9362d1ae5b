//! Wraps untrusted text of containers and hosts in random delimiters, so that it cannot close its own quotation.

use uuid::Uuid;

use crate::text::clean;

/// Length of a random number that cannot be guessed.
const MARK_LENGTH: usize = 12;

/// Delimiters of one document.
#[derive(Debug)]
pub struct UntrustedBlock(String);

impl UntrustedBlock {
    /// Generated after the text was written, so a text cannot contain its own delimiter.
    pub fn mint() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..MARK_LENGTH].to_owned())
    }

    /// Returns the cleaned text between the delimiters. Nothing is added to the text, so that pieces of one output join
    /// to the whole.
    pub fn around(&self, what: &str, text: &str) -> String {
        let mark = &self.0;
        format!("<untrusted-{mark} what=\"{what}\">\n{}</untrusted-{mark}>\n", clean(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;

    #[test]
    fn what_is_quoted_cannot_end_the_quotation() {
        for case in hostile::cases() {
            let text = String::from_utf8_lossy(&case.bytes);
            let quoted = UntrustedBlock::mint().around("stdout", &text);
            hostile::assert_fenced(case.name, &quoted);
            let mark = quoted.strip_prefix('<').and_then(|text| text.split(' ').next()).unwrap();
            assert_eq!(quoted.matches(&format!("</{mark}>")).count(), 1, "{}", case.name);
            assert_ne!(quoted, UntrustedBlock::mint().around("stdout", &text), "{}", case.name);
        }
    }
}
