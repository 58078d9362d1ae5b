//! A host with a base directory, as deployments leave it.

use std::{fs, time::Duration};

use super::{super::*, sandbox::Sandbox};
use crate::model::project::PROJECT;

pub const BASE: &str = "opt/edge";
pub const COMPOSE: &str = "services:\n  node:\n    image: n\n";

/// Writes the files of a release, as an upload does.
pub fn install_release(sandbox: &Sandbox, release: &str) {
    fs::create_dir_all(sandbox.path(BASE)).unwrap();
    sandbox.run(PREPARE, &[&sandbox.text(BASE), release, PROJECT]).success();
    let file = |name: &str| format!("{BASE}/releases/{release}/{name}");
    sandbox.write(&file("docker-compose.yml"), COMPOSE);
    sandbox.write(&file(".env"), "AEGIS_NODE_ID=\"n\"\n");
    sandbox.write(&file("release.json"), &format!("{{\"id\":\"{release}\"}}"));
}

pub fn deploy(sandbox: &Sandbox, release: &str) {
    install_release(sandbox, release);
    sandbox.run(SWITCH, &[&sandbox.text(BASE), release]).success();
}

pub fn up(sandbox: &Sandbox) {
    sandbox.run(UP, &[&sandbox.text(BASE), PROJECT]).success();
}

pub fn remove(sandbox: &Sandbox, only: &str) {
    sandbox.run(REMOVE, &[&sandbox.text(BASE), PROJECT, "", only]).success();
}

/// Makes every release a minute older than it was, so that the next one is newer.
pub fn age_releases(sandbox: &Sandbox) {
    for release in sandbox.list(&format!("{BASE}/releases")) {
        let path = sandbox.path(&format!("{BASE}/releases/{release}"));
        let file = fs::File::open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified - Duration::from_secs(60)).unwrap();
    }
}
