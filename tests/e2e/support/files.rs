//! Files of a run.

use std::path::{Path, PathBuf};

/// Returns the directory for files that a person may want to read after a run.
pub fn logs_dir() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let dir = target.join("test-logs");
    std::fs::create_dir_all(&dir).expect("the log directory");
    dir
}

/// Returns every regular file below a directory, with its content.
pub fn below(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(below(&path));
        } else if path.is_file() {
            files.push((path.clone(), std::fs::read(&path).expect("a readable file")));
        }
    }
    files
}

pub fn holds(content: &[u8], text: &str) -> bool {
    content.windows(text.len()).any(|window| window == text.as_bytes())
}
