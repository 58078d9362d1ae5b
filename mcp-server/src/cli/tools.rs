//! `aegis tools`: the manifest kept as `tools.json`.

use cluster_core::{Error, Result};

use super::Context;
use crate::tools::Catalogue;

pub fn run(context: &Context) -> Result<()> {
    context.output.bytes(manifest()?.as_bytes());
    Ok(())
}

/// The answer to `tools/list` when nothing is switched off.
pub fn manifest() -> Result<String> {
    let mut text = serde_json::to_string_pretty(&Catalogue::all().listing())
        .map_err(|e| Error::internal("the manifest cannot be written").source(e))?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first lines that differ, as a diff shows them.
    fn diff(kept: &str, made: &str) -> String {
        const LINES_SHOWN_MAX: usize = 40;
        let (kept, made): (Vec<_>, Vec<_>) = (kept.lines().collect(), made.lines().collect());
        let same_head = kept.iter().zip(&made).take_while(|(a, b)| a == b).count();
        let rest = kept.len().min(made.len()) - same_head;
        let same_tail =
            kept.iter().rev().zip(made.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
        let old = kept[same_head..kept.len() - same_tail].iter().map(|line| format!("-{line}"));
        let new = made[same_head..made.len() - same_tail].iter().map(|line| format!("+{line}"));
        let lines: Vec<_> = old.chain(new).take(LINES_SHOWN_MAX).collect();
        format!("line {}:\n{}", same_head + 1, lines.join("\n"))
    }

    #[test]
    fn tools_json_is_what_the_code_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools.json");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let made = manifest().unwrap();
        assert!(
            kept == made,
            "tools.json differs from the code; `aegis tools > tools.json` writes it anew\n{}",
            diff(&kept, &made)
        );
    }

    /// What every assistant pays for the list in its context. Counted as the answer is sent, without spaces,
    /// with the o200k vocabulary; other models' differ by some per cent.
    #[test]
    fn the_list_is_within_four_thousand_tokens() {
        const TOKENS_MAX: usize = 4000;
        let vocabulary = tiktoken_rs::o200k_base().unwrap();
        let count = |value: &serde_json::Value| vocabulary.encode_ordinary(&value.to_string()).len();
        let listing = Catalogue::all().listing();
        let each: Vec<_> = listing["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tool| format!("{} {}", count(tool), tool["name"]))
            .collect();
        assert!(count(&listing) <= TOKENS_MAX, "{} tokens:\n{}", count(&listing), each.join("\n"));
    }

    #[test]
    fn a_diff_shows_only_what_changed() {
        assert_eq!(diff("a\nb\nc\n", "a\nx\nc\n"), "line 2:\n-b\n+x");
        assert_eq!(diff("a\n", "a\nb\n"), "line 2:\n+b");
    }
}
