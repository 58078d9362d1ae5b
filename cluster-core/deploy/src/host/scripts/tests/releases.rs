//! Scripts that look at containers and releases.

use std::fs;

use super::{
    super::*,
    host::{self, BASE, deploy, install_release},
    sandbox::{Sandbox, Shell},
};
use crate::{
    health::{CONTAINER_FORMAT, StackSnapshot},
    model::{
        project::PROJECT,
        release::{NOTE_FILE, READY_FILE},
    },
};

#[test]
fn containers_lists_those_of_the_project_alone() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.container("a", PROJECT, "node", "");
        sandbox.container("b", "other", "web", "");
        let text = sandbox.run(CONTAINERS, &[PROJECT, CONTAINER_FORMAT]).success();
        let look = StackSnapshot::parse(&text);
        assert!(look.runs("node") && look.containers.len() == 1 && look.now_seconds > 0, "{text}");
    }
}

#[test]
fn standing_looks_for_containers_where_no_release_is() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        let standing =
            |sandbox: &Sandbox| sandbox.run(STANDING, &[&base, "r1", NOTE_FILE, PROJECT]).success();
        assert_eq!(standing(&sandbox), "");
        sandbox.container("a", PROJECT, "node", "");
        assert_eq!(standing(&sandbox), "container=a\n");
        deploy(&sandbox, "r1");
        assert_eq!(standing(&sandbox), "current=r1\ncomplete=yes\n");
    }
}

/// Containers keep data in a directory of the release, and a file is larger than any that was sent.
#[test]
fn digests_are_of_named_files_alone() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.write("current/.env", "A=1\n");
        sandbox.write("current/pgdata/base", &"x".repeat(4096));
        sandbox.write("current/www/big", &"x".repeat(64));
        let names = b".env\nwww/big\ngone\npgdata\n";
        let text = sandbox.run_with(FILE_DIGESTS, &[&sandbox.text("current"), "32"], names).success();
        let expected = format!("{}  .env\nlarge  www/big\n", crate::hex_digest(b"A=1\n"));
        assert_eq!(text, expected, "{shell:?}");
    }
}

#[test]
fn kept_names_a_large_note_and_prints_the_others() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        deploy(&sandbox, "r1");
        install_release(&sandbox, "r2");
        sandbox.write(&format!("{BASE}/releases/r2/{NOTE_FILE}"), &"x".repeat(100));
        let base = sandbox.text(BASE);
        let text = sandbox.run(KEPT, &[&base, NOTE_FILE, READY_FILE, "64"]).success();
        assert_eq!(text, "note={\"id\":\"r1\"}\nlarge=r2\ncurrent=r1\n", "{shell:?}");
        let note = sandbox.run(READ_NOTE, &[&base, "r2", NOTE_FILE]).success();
        assert_eq!(note, "x".repeat(100));
    }
}

#[test]
fn mark_succeeds_and_clean_up_drops_what_no_release_needs() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        sandbox.write("docker/images", "app:1 sha256:old\napp:2 sha256:new\nuser:1 sha256:theirs\n");
        for (number, image) in ["sha256:old", "sha256:new", "sha256:new"].iter().enumerate() {
            let release = format!("r{number}");
            deploy(&sandbox, &release);
            let mark = format!("{{\"images\":{{\"app\":\"{image}\"}}}}");
            sandbox.run(MARK, &[&base, &release, READY_FILE, &mark, image]).success();
            assert_eq!(sandbox.read(&format!("{BASE}/releases/{release}/{READY_FILE}")), format!("{mark}\n"));
            // Releases are ordered by time.
            host::age_releases(&sandbox);
        }
        sandbox.write(&format!("{BASE}/releases/.files/unused/x"), "x");
        sandbox.run(CLEAN_UP, &[&base, READY_FILE, "2"]).success();
        assert_eq!(sandbox.list(&format!("{BASE}/releases")), [".files", ".images", "r1", "r2"], "{shell:?}");
        assert!(sandbox.list(&format!("{BASE}/releases/.files")).is_empty());
        assert_eq!(sandbox.read("docker/images"), "app:2 sha256:new\nuser:1 sha256:theirs\n");
        assert_eq!(sandbox.read(&format!("{BASE}/releases/.images")), "sha256:new\n");

        // An image that a container uses is tried again later.
        sandbox.write("docker/used", "sha256:new\n");
        fs::remove_file(sandbox.path(&format!("{BASE}/releases/r1/{READY_FILE}"))).unwrap();
        fs::remove_file(sandbox.path(&format!("{BASE}/releases/r2/{READY_FILE}"))).unwrap();
        sandbox.run(CLEAN_UP, &[&base, READY_FILE, "2"]).success();
        assert_eq!(sandbox.read(&format!("{BASE}/releases/.images")), "sha256:new\n");
    }
}

/// A container that ran as root left files there which the login may not remove.
#[test]
fn clean_up_that_fails_says_why_and_does_the_rest() {
    // BusyBox runs its own `rm` without looking for a program.
    for shell in [Shell::Dash, Shell::BashPosix] {
        let sandbox = Sandbox::new(shell);
        let base = sandbox.text(BASE);
        for release in ["r0", "r1", "r2"] {
            deploy(&sandbox, release);
            host::age_releases(&sandbox);
        }
        // The stand-in for `rm` refuses one directory: root, who runs the tests, may remove all.
        sandbox.program(
            "rm",
            "#!/bin/sh\ncase \"$*\" in *r0*) echo 'rm: r0: Permission denied' >&2; exit 1;; esac\nexec /bin/rm \"$@\"\n",
        );
        let ended = sandbox.run(CLEAN_UP, &[&base, READY_FILE, "1"]);
        assert_eq!((ended.status, ended.stderr.as_str()), (1, "rm: r0: Permission denied\n"), "{shell:?}");
        assert_eq!(sandbox.list(&format!("{BASE}/releases")), ["r0", "r2"], "{shell:?}");
    }
}

#[test]
fn secrets_are_read_from_env_and_private_files() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        deploy(&sandbox, "r1");
        sandbox.write(&format!("{BASE}/current/app.env"), "DATABASE_URL=postgres://u:pw@db/x\n");
        sandbox.write(&format!("{BASE}/current/private.list"), "app.env\ngone\n");
        let text = sandbox.run(READ_SECRETS, &[&sandbox.text(BASE), "MARK", "private.list"]).success();
        assert_eq!(
            text, "AEGIS_NODE_ID=\"n\"\n\nMARK\nDATABASE_URL=postgres://u:pw@db/x\n\nMARK\n",
            "{shell:?}"
        );
    }
}
