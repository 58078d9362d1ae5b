//! Files and stacks that stood on the host before us: noted, saved once, and brought back by a removal.

use std::fs;

use super::{
    super::*,
    host::{BASE, COMPOSE, deploy, remove, up},
    sandbox::{Sandbox, Shell, snapshot},
};
use crate::model::project::PROJECT;

const OWN: &str = "services:\n  web:\n    image: theirs\n";

fn base(name: &str) -> String {
    format!("{BASE}/{name}")
}

/// A stack of the operator's in the base directory, which runs.
fn with_own_stack(shell: Shell) -> Sandbox {
    let sandbox = Sandbox::new(shell);
    sandbox.write(&base("docker-compose.yml"), OWN);
    sandbox.write(&base("notes.txt"), "mine");
    let (dir, file) = (sandbox.text(BASE), sandbox.text(&base("docker-compose.yml")));
    sandbox.container("web", PROJECT, "web", &format!("dir={dir}\nfiles={file}"));
    sandbox
}

#[test]
fn own_stack_comes_back_and_runs_as_before() {
    for shell in Shell::ALL {
        let sandbox = with_own_stack(shell);
        let before = snapshot(&sandbox.path(BASE));
        deploy(&sandbox, "r1");
        assert_eq!(sandbox.read(&base("docker-compose.yml.before-aegis")), OWN);
        assert_eq!(sandbox.read(&base("docker-compose.yml")), COMPOSE);
        up(&sandbox);
        deploy(&sandbox, "r2");
        remove(&sandbox, "");
        assert_eq!(snapshot(&sandbox.path(BASE)), before, "{shell:?}");
        let started = sandbox.calls("compose").pop().unwrap();
        assert!(started.ends_with("up -d web"), "{started}");
        assert_eq!(sandbox.list("docker/containers"), [format!("{PROJECT}-web")]);
    }
}

#[test]
fn compose_knows_the_directory_of_the_stack() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        deploy(&sandbox, "r1");
        up(&sandbox);
        let directory = fs::canonicalize(sandbox.path(BASE)).unwrap();
        assert_eq!(sandbox.read("docker/directories").trim(), directory.to_str().unwrap(), "{shell:?}");
    }
}

#[test]
fn own_stack_that_did_not_run_is_not_started() {
    for shell in Shell::ALL {
        let sandbox = with_own_stack(shell);
        fs::remove_file(sandbox.path("docker/containers/web")).unwrap();
        deploy(&sandbox, "r1");
        up(&sandbox);
        remove(&sandbox, "");
        assert_eq!(sandbox.read(&base("docker-compose.yml")), OWN);
        assert!(sandbox.list("docker/containers").is_empty(), "{shell:?}");
    }
}

/// `sed -i` replaces our link by a regular file.
#[test]
fn edited_file_is_kept_beside_and_never_in_force() {
    for shell in Shell::ALL {
        let sandbox = with_own_stack(shell);
        deploy(&sandbox, "r1");
        let edited = COMPOSE.replace("image: n", "image: edited");
        fs::remove_file(sandbox.path(&base("docker-compose.yml"))).unwrap();
        sandbox.write(&base("docker-compose.yml"), &edited);

        let refused = sandbox.run(UP, &[&sandbox.text(BASE), PROJECT]);
        assert!(refused.status != 0 && refused.stderr.contains("not the one of the release"), "{refused:?}");
        assert!(sandbox.calls("compose").is_empty(), "{shell:?}");

        for release in ["r1", "r2"] {
            deploy(&sandbox, release);
            assert_eq!(sandbox.read(&base("docker-compose.yml")), COMPOSE);
            assert_eq!(sandbox.read(&base("docker-compose.yml.edited-1")), edited);
            assert_eq!(sandbox.read(&base("docker-compose.yml.before-aegis")), OWN, "saved once");
        }
        // A second edit is kept too, also by the removal.
        fs::remove_file(sandbox.path(&base("docker-compose.yml"))).unwrap();
        sandbox.write(&base("docker-compose.yml"), "again");
        remove(&sandbox, "");
        assert_eq!(sandbox.read(&base("docker-compose.yml")), OWN);
        assert_eq!(sandbox.read(&base("docker-compose.yml.edited-1")), edited);
        assert_eq!(sandbox.read(&base("docker-compose.yml.edited-2")), "again");
    }
}

#[test]
fn links_and_directories_of_others_are_saved() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.write("srv/compose.yml", OWN);
        fs::create_dir_all(sandbox.path(BASE)).unwrap();
        std::os::unix::fs::symlink(
            sandbox.path("srv/compose.yml"),
            sandbox.path(&base("docker-compose.yml")),
        )
        .unwrap();
        sandbox.write(&base(".env/kept"), "x");
        let before = snapshot(&sandbox.path("opt"));
        deploy(&sandbox, "r1");
        assert_eq!(sandbox.read(&base("docker-compose.yml")), COMPOSE);
        assert_eq!(sandbox.read("srv/compose.yml"), OWN);
        up(&sandbox);
        remove(&sandbox, "");
        assert_eq!(snapshot(&sandbox.path("opt")), before, "{shell:?}");
    }
}

/// A take-over that fails before anything was started.
#[test]
fn files_alone_are_removed_and_containers_stay() {
    for shell in Shell::ALL {
        let sandbox = with_own_stack(shell);
        let before = snapshot(&sandbox.path(BASE));
        deploy(&sandbox, "r1");
        remove(&sandbox, "files");
        assert_eq!(snapshot(&sandbox.path(BASE)), before);
        assert_eq!(sandbox.list("docker/containers"), ["web"]);
        assert!(sandbox.calls("compose").is_empty() && sandbox.calls("rm").is_empty(), "{shell:?}");
    }
}

/// A stack that another controller put under another base directory is given back by its own files.
#[test]
fn stack_of_another_directory_is_started_again() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.write("srv/other/docker-compose.yml", OWN);
        let (dir, file) = (sandbox.text("srv/other"), sandbox.text("srv/other/docker-compose.yml"));
        sandbox.container("web", PROJECT, "web", &format!("dir={dir}\nfiles={file}"));
        deploy(&sandbox, "r1");
        up(&sandbox);
        remove(&sandbox, "");
        let text = sandbox.read(&format!("docker/containers/{PROJECT}-web"));
        assert!(text.contains(&format!("dir={dir}\nfiles={file}")), "{text}");
        assert!(!sandbox.exists(&base("releases")), "{shell:?}");
    }
}

#[test]
fn first_deployment_without_anything_before_leaves_nothing() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        let before = snapshot(&sandbox.path(""));
        let held = super::lock::hold(&sandbox, "d1", 3);
        assert_eq!((sandbox.mode("opt"), sandbox.mode(BASE)), (0o755, 0o700), "parents have the usual mode");
        deploy(&sandbox, "r1");
        up(&sandbox);
        remove(&sandbox, "");
        super::lock::release(held);
        let left = snapshot(&sandbox.path(""));
        let ours = |line: &&String| !line.contains("/docker/");
        assert!(left.iter().filter(ours).eq(before.iter().filter(ours)), "{shell:?}: {left:?}");
    }
}
