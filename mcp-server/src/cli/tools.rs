//! `aegis tools`: the manifest kept as `tools.json`.

use cluster_core::types::error::{Error, Result};

use super::Context;
use crate::tools::ToolRegistry;

pub fn run(context: &Context) -> Result<()> {
    context.output.bytes(manifest()?.as_bytes());
    Ok(())
}

/// The answer to `tools/list` when nothing is switched off.
pub fn manifest() -> Result<String> {
    let mut text = serde_json::to_string_pretty(&ToolRegistry::all().listing())
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

    /// Counts what a model sees of each tool (name, description and argument schema) with the o200k vocabulary,
    /// without spaces. Other models' vocabularies differ by some per cent.
    #[test]
    fn tool_list_stays_within_its_token_budget() {
        const TOKENS_MAX: usize = 4500;
        let vocabulary = tiktoken_rs::o200k_base().unwrap();
        let count = |tool: &rmcp::model::Tool| {
            let seen = serde_json::json!({
                "name": tool.name, "description": tool.description, "input_schema": tool.input_schema
            });
            vocabulary.encode_ordinary(&seen.to_string()).len()
        };
        let counts: Vec<_> =
            ToolRegistry::all().manifests().iter().map(|tool| (count(tool), tool.name.clone())).collect();
        let total = counts.iter().map(|(count, _)| count).sum::<usize>();
        assert!(total <= TOKENS_MAX, "{total} tokens: {counts:?}");
    }

    #[test]
    fn a_diff_shows_only_what_changed() {
        assert_eq!(diff("a\nb\nc\n", "a\nx\nc\n"), "line 2:\n-b\n+x");
        assert_eq!(diff("a\n", "a\nb\n"), "line 2:\n+b");
    }
}
