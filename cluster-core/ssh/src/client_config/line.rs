//! One line of a configuration file: a keyword and its arguments.

use std::{fmt, path::Path, sync::Arc};

/// Position of a line, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}", self.file.display(), self.line)
    }
}

/// The keyword in lower case and the arguments without their quotes; `None` for blank lines and
/// comments. The keyword ends at blanks or one `=`; a word that begins with `#` begins a comment.
pub(super) fn split(line: &str) -> Result<Option<(String, Vec<String>)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest);
    Ok(Some((keyword.to_ascii_lowercase(), words(rest)?)))
}

fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.peek() {
            None | Some('#') => return Ok(words),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quote = None;
        while let Some(c) = chars.next_if(|c| quote.is_some() || !c.is_whitespace()) {
            match (c, quote) {
                ('\\', _) => match chars.next_if(|next| matches!(next, '"' | '\'' | '\\' | ' ')) {
                    Some(escaped) => word.push(escaped),
                    None => word.push('\\'),
                },
                (c, Some(open)) if c == open => quote = None,
                ('"' | '\'', None) => quote = Some(c),
                (c, _) => word.push(c),
            }
        }
        if quote.is_some() {
            return Err("a quotation mark is not closed");
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_ssh_does() {
        type Words = (&'static str, &'static [&'static str]);
        let cases: [(&str, Option<Words>); 10] = [
            ("", None),
            ("  # comment", None),
            ("Host a b", Some(("host", &["a", "b"]))),
            ("\tPort=22", Some(("port", &["22"]))),
            ("Port = 22 # ssh", Some(("port", &["22"]))),
            ("IdentityFile \"~/my key\"", Some(("identityfile", &["~/my key"]))),
            ("IdentityFile ~/my\\ key", Some(("identityfile", &["~/my key"]))),
            ("User 'it\"s'", Some(("user", &["it\"s"]))),
            ("Include a=b", Some(("include", &["a=b"]))),
            ("Compression", Some(("compression", &[]))),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(keyword, words)| {
                (keyword.to_owned(), words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
            });
            assert_eq!(split(line), Ok(expected), "{line:?}");
        }
        assert!(split("User \"open").is_err());
    }
}
