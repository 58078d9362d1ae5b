//! Tools and clients that come from npm: those of `tests/clients/package-lock.json`.

use std::path::PathBuf;

use tokio::process::Command;

use super::testbed::from_environment;

/// Returns the directory in which `tests/run` has installed the modules.
fn modules() -> PathBuf {
    PathBuf::from(from_environment("AEGIS_TEST_NPM")).join("node_modules")
}

/// Returns Node with a script of a package (`@scope/name/dist/index.js`).
pub fn script_of_package(path: &str) -> Command {
    script(&modules().join(path))
}

/// Returns Node with a script of this project, which finds the packages through `AEGIS_TEST_NPM`.
pub fn script(path: &std::path::Path) -> Command {
    let mut command = Command::new(modules().join("node/bin/node"));
    command.arg(path).env("NO_COLOR", "1").kill_on_drop(true);
    command
}
