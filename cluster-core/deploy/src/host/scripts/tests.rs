//! Scripts run here by three shells in temporary directories, with a stand-in `docker`. No host is needed.

mod authorized_keys;
mod before;
mod compose;
mod data;
mod host;
mod lock;
mod releases;
mod sandbox;

use std::process::Command;

use self::sandbox::{Sandbox, Shell};
use super::*;

#[test]
fn scripts_pass_shellcheck() {
    let dir = env!("CARGO_MANIFEST_DIR");
    let found = Command::new("find").args([dir, "-name", "*.sh"]).output().unwrap();
    let files = String::from_utf8(found.stdout).unwrap();
    let files: Vec<&str> = files.lines().collect();
    assert!(files.len() > ALL.len(), "{files:?}");
    let checked = Command::new("shellcheck").args(["-s", "sh"]).args(&files).output();
    let checked = checked.expect("shellcheck is installed: tests/run installs it");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn scripts_parse_under_every_shell() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        for (name, text) in ALL {
            let ended = sandbox.run(&format!("exit 0\n{text}"), &[]);
            assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{name} under {shell:?}");
        }
    }
}

/// The login shell reads such a script as one quoted word, and fish takes `\\` and `\'` in it for escapes.
#[test]
fn command_line_scripts_hold_no_escapes_of_fish() {
    for (name, text) in ON_COMMAND_LINE {
        assert!(!text.contains(r"\\") && !text.contains(r"\'"), "{name}");
    }
}
