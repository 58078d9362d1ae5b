//! Reading the files: every line with the blocks it stands in, `Include` followed in place.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_types::error::{Error, Result};

use super::{
    block::{Block, Condition},
    line::{self, Place},
};

const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// OpenSSH's own bound.
const DEPTH_MAX: usize = 16;
/// Files read in all, so that wide includes end as deep ones do.
const FILES_MAX: usize = 256;

/// One line that is neither a comment, nor an `Include`, nor the head of a block.
#[derive(Debug)]
pub(super) struct Directive {
    /// All of them must apply: a file included inside a block counts only where the block does.
    pub scope: Vec<Arc<Block>>,
    pub keyword: String,
    pub words: Vec<String>,
    pub place: Place,
}

pub(super) struct Reader<'a> {
    home: &'a Path,
    pub directives: Vec<Directive>,
    /// Files being read now, outermost first.
    open: Vec<PathBuf>,
    files: usize,
    blocks: usize,
}

impl<'a> Reader<'a> {
    pub fn new(home: &'a Path) -> Self {
        Self { home, directives: Vec::new(), open: Vec::new(), files: 0, blocks: 0 }
    }

    /// Whether there was such a file.
    pub fn read(&mut self, path: &Path, outer: &[Arc<Block>]) -> Result<bool> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(unfit(path, "it cannot be reached").source(error)),
        };
        if self.open.contains(&real) {
            return Err(unfit(path, "it includes itself"));
        }
        self.files += 1;
        if self.open.len() >= DEPTH_MAX || self.files > FILES_MAX {
            return Err(unfit(path, "too many files include each other"));
        }
        let text = text_of(&real)?;
        self.open.push(real);
        let outcome = self.lines(&text, path, outer);
        self.open.pop();
        outcome.map(|()| true)
    }

    fn lines(&mut self, text: &str, path: &Path, outer: &[Arc<Block>]) -> Result<()> {
        let file: Arc<Path> = path.into();
        let mut scope = outer.to_vec();
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: file.clone(), line: index + 1 };
            let wrong = |why: &str| Error::invalid(format!("ssh configuration {place}: {why}"));
            let Some((keyword, words)) = line::split(line).map_err(wrong)? else { continue };
            match keyword.as_str() {
                "host" | "match" => {
                    let condition = match (keyword.as_str(), words.is_empty()) {
                        (_, true) => Err("it names nothing"),
                        ("host", false) => Ok(Condition::Host(words)),
                        (_, false) => Condition::parse_match(&words),
                    };
                    scope.truncate(outer.len());
                    scope.push(Arc::new(Block { id: self.blocks, condition: condition.map_err(wrong)? }));
                    self.blocks += 1;
                }
                "include" => {
                    for pattern in &words {
                        for path in self.included(pattern).map_err(wrong)? {
                            self.read(&path, &scope)?;
                        }
                    }
                }
                _ => self.directives.push(Directive { scope: scope.clone(), keyword, words, place }),
            }
        }
        Ok(())
    }

    /// A relative name lies in `~/.ssh`, wherever the including file lies.
    fn included(&self, pattern: &str) -> Result<Vec<PathBuf>, &'static str> {
        let home = glob::Pattern::escape(&self.home.to_string_lossy());
        let pattern = match pattern.strip_prefix("~/") {
            Some(rest) => format!("{home}/{rest}"),
            None if pattern.starts_with('/') => pattern.to_owned(),
            None if pattern.starts_with('~') => {
                return Err("Include of another user's home is not supported");
            }
            None => format!("{home}/.ssh/{pattern}"),
        };
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let found = glob::glob_with(&pattern, options).map_err(|_| "Include holds no valid pattern")?;
        Ok(found.filter_map(Result::ok).filter(|path| !path.is_dir()).take(FILES_MAX + 1).collect())
    }
}

/// Through one descriptor: a file that others may write decides where we connect, so it is refused.
fn text_of(path: &Path) -> Result<String> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true), flags)
        .open(path)
        .map_err(|error| unfit(path, "it cannot be read").source(error))?;
    let metadata = file.metadata().map_err(|error| unfit(path, "it cannot be examined").source(error))?;
    if !metadata.is_file() {
        return Err(unfit(path, "it is not a regular file"));
    }
    let us = nix::unistd::geteuid().as_raw();
    if metadata.mode() & 0o022 != 0 || (metadata.uid() != us && metadata.uid() != 0) {
        return Err(unfit(path, "others may write it")
            .remedy(format!("chmod 600 {0}; chown it to yourself", path.display())));
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(unfit(path, "it is larger than 1 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| unfit(path, "it cannot be read").source(error))?;
    String::from_utf8(bytes).map_err(|_| unfit(path, "it is not text"))
}

fn unfit(path: &Path, why: &str) -> Error {
    Error::invalid(format!("ssh configuration {}: {why}", path.display()))
        .remedy("correct it, or name another file in spec.deploy.ssh_config")
}
