//! `%` tokens and `~` in values.

use std::path::{Path, PathBuf};

/// Values of the tokens.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    pub home: &'a Path,
    pub original: &'a str,
    /// Empty until the host name is known.
    pub host_name: &'a str,
    pub port: u16,
    pub user: &'a str,
    pub local_user: &'a str,
}

impl Tokens<'_> {
    pub fn expand(&self, text: &str) -> Result<String, String> {
        if text.contains("${") {
            return Err(format!("environment variables are not expanded in \"{text}\""));
        }
        let mut expanded = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                expanded.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => expanded.push('%'),
                Some('d') => expanded.push_str(&self.home.to_string_lossy()),
                Some('h') => expanded.push_str(self.host_name),
                Some('n') => expanded.push_str(self.original),
                Some('p') => expanded.push_str(&self.port.to_string()),
                Some('r') => expanded.push_str(self.user),
                Some('u') => expanded.push_str(self.local_user),
                Some('i') => expanded.push_str(&nix::unistd::getuid().to_string()),
                Some(other) => return Err(format!("the token %{other} in \"{text}\" is not supported")),
                None => return Err(format!("\"{text}\" ends in %")),
            }
        }
        Ok(expanded)
    }

    /// Expands a path. Relative paths are rejected: OpenSSH resolves them in the caller's working directory, which has
    /// no meaning in a daemon.
    pub fn path(&self, text: &str) -> Result<PathBuf, String> {
        let expanded = self.expand(text)?;
        match expanded.strip_prefix("~/") {
            Some(rest) => Ok(self.home.join(rest)),
            None if expanded.starts_with('/') => Ok(PathBuf::from(expanded)),
            None => Err(format!("\"{expanded}\" is neither absolute nor below ~/")),
        }
    }
}
