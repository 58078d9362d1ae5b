//! The line of the link's own key in `~/.ssh/authorized_keys`.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{
    super::AUTHORIZED_KEYS,
    sandbox::{Sandbox, Shell, finish, snapshot},
};

const KEYS: &str = "home/.ssh/authorized_keys";
const PUBLIC: &str = "ssh-ed25519 AAAA";
/// Hosts with one home directory that are deployed to at once.
const HOSTS: usize = 8;
const ROUNDS: usize = 6;

fn install(node: &str) -> [String; 5] {
    ["ours", node, "restrict,port-forwarding", PUBLIC, "# the command\necho done\n"].map(str::to_owned)
}

fn remove(node: &str) -> [String; 5] {
    ["ours", node, "", "", ""].map(str::to_owned)
}

fn args(arguments: &[String; 5]) -> [&str; 5] {
    arguments.each_ref().map(String::as_str)
}

fn line(sandbox: &Sandbox, node: &str) -> String {
    let script = sandbox.text(&format!("home/.ssh/aegis-link-ours-{node}"));
    format!("restrict,port-forwarding,command=\"sh '{script}'\" {PUBLIC} aegis link of ours node {node}")
}

fn foreign() -> String {
    (0..20).map(|number| format!("ssh-ed25519 FOREIGN{number} someone@{number}\n")).collect()
}

fn with_foreign(shell: Shell) -> Sandbox {
    let sandbox = Sandbox::new(shell);
    sandbox.write(KEYS, &foreign());
    sandbox
}

#[test]
fn key_line_is_installed_once_and_removed() {
    for shell in Shell::ALL {
        let sandbox = with_foreign(shell);
        fs::set_permissions(sandbox.path(KEYS), std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        for _ in 0..2 {
            sandbox.run(AUTHORIZED_KEYS, &args(&install("a"))).success();
        }
        sandbox.run(AUTHORIZED_KEYS, &args(&install("b"))).success();
        let expected = format!("{}{}\n{}\n", foreign(), line(&sandbox, "a"), line(&sandbox, "b"));
        assert_eq!(sandbox.read(KEYS), expected, "{shell:?}");
        assert_eq!(sandbox.mode(KEYS), 0o640);
        assert_eq!(sandbox.read("home/.ssh/aegis-link-ours-a"), "# the command\necho done\n");

        sandbox.run(AUTHORIZED_KEYS, &args(&remove("a"))).success();
        assert_eq!(sandbox.read(KEYS), format!("{}{}\n", foreign(), line(&sandbox, "b")));
        sandbox.run(AUTHORIZED_KEYS, &args(&remove("b"))).success();
        assert_eq!(sandbox.read(KEYS), foreign());
        assert_eq!(sandbox.list("home/.ssh"), ["authorized_keys"], "{shell:?}");
    }
}

#[test]
fn key_line_without_a_change_writes_nothing() {
    for shell in Shell::ALL {
        let sandbox = with_foreign(shell);
        let inode = |sandbox: &Sandbox| fs::metadata(sandbox.path(KEYS)).unwrap().ino();
        let (before, files) = (inode(&sandbox), snapshot(&sandbox.path("home")));
        let touched = fs::metadata(sandbox.path("home/.ssh")).unwrap().mtime_nsec();
        sandbox.run(AUTHORIZED_KEYS, &args(&remove("a"))).success();
        assert_eq!((inode(&sandbox), snapshot(&sandbox.path("home"))), (before, files));
        assert_eq!(
            fs::metadata(sandbox.path("home/.ssh")).unwrap().mtime_nsec(),
            touched,
            "no file was made"
        );

        sandbox.run(AUTHORIZED_KEYS, &args(&install("a"))).success();
        let before = inode(&sandbox);
        sandbox.run(AUTHORIZED_KEYS, &args(&install("a"))).success();
        assert_eq!(inode(&sandbox), before);

        let bare = Sandbox::new(shell);
        bare.run(AUTHORIZED_KEYS, &args(&remove("a"))).success();
        assert!(bare.list("home").is_empty(), "no ~/.ssh is made for a removal");
    }
}

#[test]
fn key_line_of_earlier_version_is_replaced() {
    for shell in Shell::ALL {
        let sandbox = with_foreign(shell);
        let earlier = format!("{}restrict {PUBLIC} aegis link of ours\n", foreign());
        sandbox.write(KEYS, &earlier);
        sandbox.write("home/.ssh/aegis-link-ours", "x");
        sandbox.run(AUTHORIZED_KEYS, &args(&install("a"))).success();
        assert_eq!(sandbox.read(KEYS), format!("{}{}\n", foreign(), line(&sandbox, "a")));
        assert!(!sandbox.exists("home/.ssh/aegis-link-ours"));

        sandbox.write(KEYS, &earlier);
        sandbox.write("home/.ssh/aegis-link-ours", "x");
        sandbox.run(AUTHORIZED_KEYS, &args(&remove("b"))).success();
        assert_eq!(sandbox.read(KEYS), foreign());
        assert!(!sandbox.exists("home/.ssh/aegis-link-ours"));
    }
}

#[test]
fn key_file_behind_a_link_stays_there() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.write("home/keys/admin", "ssh-rsa AAAA no newline at the end");
        fs::create_dir(sandbox.path("home/.ssh")).unwrap();
        std::os::unix::fs::symlink(sandbox.path("home/keys/admin"), sandbox.path(KEYS)).unwrap();
        sandbox.run(AUTHORIZED_KEYS, &args(&install("a"))).success();
        let expected = format!("ssh-rsa AAAA no newline at the end\n{}\n", line(&sandbox, "a"));
        assert_eq!(sandbox.read("home/keys/admin"), expected);
        assert!(fs::symlink_metadata(sandbox.path(KEYS)).unwrap().is_symlink());
        assert_eq!(sandbox.list("home/keys"), ["admin"]);
    }
}

/// Hosts with a shared home directory are deployed to and removed from at the same moment.
#[test]
fn key_lines_of_hosts_with_one_home_lose_no_foreign_line() {
    for shell in Shell::ALL {
        let sandbox = with_foreign(shell);
        for round in 0..ROUNDS {
            let installs = round % 2 == 0;
            let nodes: Vec<String> = (0..HOSTS).map(|host| format!("n{host}")).collect();
            let started: Vec<_> = nodes
                .iter()
                .map(|node| {
                    sandbox
                        .start(AUTHORIZED_KEYS, &args(&if installs { install(node) } else { remove(node) }))
                })
                .collect();
            for child in started {
                let ended = finish(child);
                assert_eq!(ended.status, 0, "{shell:?}, round {round}: {ended:?}");
            }
            let text = sandbox.read(KEYS);
            assert!(text.starts_with(&foreign()), "{shell:?}, round {round}: {text}");
            let ours = text.lines().filter(|line| line.contains("aegis link")).count();
            assert_eq!(ours, if installs { HOSTS } else { 0 }, "{shell:?}, round {round}: {text}");
        }
        assert_eq!(sandbox.list("home/.ssh"), ["authorized_keys"], "{shell:?}");
    }
}
