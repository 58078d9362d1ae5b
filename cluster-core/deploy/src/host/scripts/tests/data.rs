//! Scripts that keep the data of containers.

use std::{fs, os::unix::fs::symlink};

use super::{
    super::*,
    host::{BASE, deploy},
    sandbox::{Sandbox, Shell},
};
use crate::model::project::PROJECT;

const LAST: &str = "complete";

/// A tar stream with these files, each under its path, and the entry that ends it.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files.iter().chain(&[(LAST, "")]) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn first_content_is_received_once_and_never_replaced() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        deploy(&sandbox, "r1");
        let paths = ["db/data", "logs"];
        let missing = |sandbox: &Sandbox| sandbox.run(MISSING_DATA, &[&base, paths[0], paths[1]]).success();
        assert_eq!(missing(&sandbox), "db/data\nlogs\n", "{shell:?}");
        let receive = |sandbox: &Sandbox, text: &str| {
            let stream = archive(&[("db/data/notes", text), ("logs/keep", text)]);
            sandbox.run_with(RECEIVE_DATA, &[&base, "r1", LAST, paths[0], paths[1]], &stream).success();
        };
        receive(&sandbox, "first");
        assert_eq!(missing(&sandbox), "", "{shell:?}");
        sandbox.write(&format!("{BASE}/.data/db/data/notes"), "written by a container");
        receive(&sandbox, "second");
        assert_eq!(sandbox.read(&format!("{BASE}/.data/db/data/notes")), "written by a container");
        assert_eq!(sandbox.read(&format!("{BASE}/.data/logs/keep")), "first");
        assert_eq!(sandbox.list(&format!("{BASE}/.data")), [".aegis", "db", "logs"]);
    }
}

#[test]
fn cut_stream_gives_no_content() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        deploy(&sandbox, "r1");
        let stream = archive(&[("logs/keep", "x")]);
        let cut = &stream[..512];
        let ended = sandbox.run_with(RECEIVE_DATA, &[&base, "r1", LAST, "logs"], cut);
        assert_ne!(ended.status, 0, "{shell:?}");
        assert!(!sandbox.exists(&format!("{BASE}/.data/logs")), "{shell:?}");
    }
}

/// Two empty directories of equal content were one, and each of them gets its own data.
#[test]
fn data_of_the_older_layout_moves_and_stays_reachable() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        deploy(&sandbox, "r1");
        let old = format!("{BASE}/releases/.files/abc");
        sandbox.write(&format!("{old}/notes"), "kept");
        for path in ["pgdata", "redis"] {
            symlink("../.files/abc", sandbox.path(&format!("{BASE}/releases/r1/{path}"))).unwrap();
        }
        // A container that has it mounted holds its inode.
        let mounted = fs::File::open(sandbox.path(&old)).unwrap();
        let text = sandbox.run(MISSING_DATA, &[&base, "pgdata", "redis", "new"]).success();
        assert_eq!(text, "new\n", "{shell:?}");
        for path in ["pgdata", "redis"] {
            assert_eq!(sandbox.read(&format!("{BASE}/.data/{path}/notes")), "kept", "{shell:?} {path}");
        }
        let inode = |file: &fs::File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let moved = fs::File::open(sandbox.path(&format!("{BASE}/.data/pgdata"))).unwrap();
        assert_eq!(inode(&moved), inode(&mounted));
        sandbox.write(&format!("{BASE}/.data/redis/own"), "1");
        assert!(!sandbox.exists(&format!("{BASE}/.data/pgdata/own")), "they are apart now");
        // A release of the older layout, to which a rollback may lead.
        assert_eq!(sandbox.read(&format!("{BASE}/releases/r1/pgdata/notes")), "kept");
        assert_eq!(sandbox.run(MISSING_DATA, &[&base, "pgdata", "redis"]).success(), "");
    }
}

#[test]
fn data_survives_clean_up_and_removal_but_not_that_of_volumes() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        deploy(&sandbox, "r1");
        sandbox.run(MISSING_DATA, &[&base, "pgdata"]).success();
        sandbox.write(&format!("{BASE}/.data/pgdata/notes"), "kept");
        sandbox.run(CLEAN_UP, &[&base, "ready.json", "1"]).success();
        sandbox.run(REMOVE, &[&base, PROJECT, "", ""]).success();
        assert_eq!(sandbox.read(&format!("{BASE}/.data/pgdata/notes")), "kept", "{shell:?}");
        deploy(&sandbox, "r2");
        sandbox.run(REMOVE, &[&base, PROJECT, "volumes", ""]).success();
        assert!(!sandbox.exists(&format!("{BASE}/.data")), "{shell:?}");
    }
}
