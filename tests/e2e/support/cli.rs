//! The command line, used like a script.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::poll::within;

pub const BINARY: &str = env!("CARGO_BIN_EXE_aegis");
const LIMIT: Duration = Duration::from_secs(150);

#[derive(Debug)]
pub struct Answer {
    words: String,
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Returns the stdout of a successful run.
    pub fn succeeded(self) -> String {
        assert_eq!(self.status, 0, "aegis {}: {}{}", self.words, self.stdout, self.stderr);
        self.stdout
    }

    /// Returns the stderr of a failed run.
    pub fn failed(&self) -> &str {
        assert_ne!(self.status, 0, "aegis {} succeeded: {}", self.words, self.stdout);
        &self.stderr
    }

    pub fn json(self) -> Value {
        let words = self.words.clone();
        let stdout = self.succeeded();
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("aegis {words}: {e}: {stdout}"))
    }
}

pub async fn run(data: &Path, words: &[&str], environment: &[(&str, &str)], stdin: &[u8]) -> Answer {
    let mut child = Command::new(BINARY)
        .args(words)
        .envs(environment.iter().copied())
        .env("AEGIS_DATA_DIR", data)
        .env_remove("RUST_LOG")
        // No configuration of whoever runs the tests.
        .current_dir(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("aegis starts");
    let mut input = child.stdin.take().expect("a pipe");
    // A program that does not read its input closes it.
    let _ = input.write_all(stdin).await;
    drop(input);
    let words = words.join(" ");
    let output = within(&format!("aegis {words}"), LIMIT, child.wait_with_output()).await.expect("output");
    Answer {
        words,
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
