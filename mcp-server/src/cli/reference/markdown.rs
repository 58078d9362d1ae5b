//! The few parts of Markdown that the pages use.

use std::fmt::Write as _;

/// Starts a page with its title, its source, and one paragraph.
pub fn head(title: &str, source: &str, text: &str) -> String {
    format!(
        "<!-- Generated from {source} by `aegis reference docs/reference`. Do not edit. -->\n\n\
         # {title}\n\n{text}\n"
    )
}

/// Appends a heading of the second level and the paragraph below it, if there is one.
pub fn section(page: &mut String, title: &str, text: &str) {
    let _ = write!(page, "\n## {title}\n");
    if !text.is_empty() {
        let _ = write!(page, "\n{}\n", prose(text));
    }
}

/// Appends a table. Cells are escaped here and nowhere else.
pub fn table<const N: usize>(page: &mut String, head: [&str; N], rows: &[[String; N]]) {
    let mut row = |cells: [&str; N]| {
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    };
    row(head);
    row([const { "---" }; N]);
    for cells in rows {
        let escaped = cells.each_ref().map(|text| cell(text));
        row(escaped.each_ref().map(String::as_str));
    }
}

/// Sets text as code; nothing becomes an empty cell.
pub fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// Escapes what Markdown or HTML would interpret outside code, and joins lines.
pub fn prose(text: &str) -> String {
    escaped(text, "<*")
}

fn cell(text: &str) -> String {
    escaped(text, "<*").replace('|', "\\|")
}

fn escaped(text: &str, special: &str) -> String {
    let mut is_code = false;
    let mut escaped = String::with_capacity(text.len());
    for character in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        is_code ^= character == '`';
        match character {
            '<' if !is_code && special.contains('<') => escaped.push_str("&lt;"),
            '*' if !is_code && special.contains('*') => escaped.push_str("\\*"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_outside_code_only() {
        assert_eq!(cell("a|b <c> *d*\n `<e>|*`"), "a\\|b &lt;c> \\*d\\* `<e>\\|*`");
    }

    #[test]
    fn table_has_head_rule_and_rows() {
        let mut page = String::new();
        table(&mut page, ["a", "b"], &[["1".into(), "2".into()]]);
        assert_eq!(page, "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
