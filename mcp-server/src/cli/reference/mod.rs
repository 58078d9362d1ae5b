//! `aegis reference DIRECTORY`: writes the reference pages that are kept in `docs/reference`.
//!
//! Each page has one file here and one source in the code: the schema of the configuration, clap's tree of
//! commands, the closed set of error codes, the table of routes, the registry of tools. A test compares the
//! committed pages with the generated ones.

mod command_line;
mod configuration;
mod errors;
mod keys;
mod markdown;
mod rest;
mod tools;

use std::path::PathBuf;

use clap::Args;
use cluster_core::types::error::{Error, ErrorCode, Result};

use super::Context;

#[derive(Debug, Args)]
pub struct Reference {
    /// Directory that receives the pages; files of the same names are replaced
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Generated page: its file name and its text.
struct Page {
    file: &'static str,
    text: String,
}

/// Returns all pages in the order of the table of contents.
fn pages() -> [Page; 5] {
    [
        Page { file: "configuration.md", text: configuration::page() },
        Page { file: "cli.md", text: command_line::page() },
        Page { file: "errors.md", text: errors::page() },
        Page { file: "rest.md", text: rest::page() },
        Page { file: "tools.md", text: tools::page() },
    ]
}

impl Reference {
    /// Writes the pages and prints their paths.
    pub fn run(&self, context: &Context) -> Result<()> {
        for page in pages() {
            let path = self.directory.join(page.file);
            std::fs::write(&path, page.text).map_err(|e| {
                Error::new(ErrorCode::InvalidArgument, format!("cannot write {}: {e}", path.display()))
                    .remedy("name a directory that exists and that you may write")
            })?;
            context.output.say(&super::shown(&path));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_pages_match_the_code() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference");
        for page in pages() {
            let committed = std::fs::read_to_string(format!("{directory}/{}", page.file)).unwrap_or_default();
            let differing = committed
                .lines()
                .zip(page.text.lines())
                .position(|(old, new)| old != new)
                .unwrap_or_default();
            assert!(
                committed == page.text,
                "docs/reference/{} differs from the code, first in line {}: \
                 run `cargo run -p aegis -- reference docs/reference`",
                page.file,
                differing + 1
            );
        }
    }

    #[test]
    fn pages_keep_one_table_row_per_line() {
        for page in pages() {
            let mut columns = None;
            for line in page.text.lines() {
                let bars = line.replace("\\|", "").matches('|').count();
                match line.starts_with('|') {
                    true => assert_eq!(*columns.get_or_insert(bars), bars, "{}: {line}", page.file),
                    false => columns = None,
                }
            }
        }
    }
}
