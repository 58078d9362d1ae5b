//! The link's own key: what it may do on a host, and what becomes of the link with and without it.

use std::{process::Command, sync::Arc};

use cluster_core::{
    deploy::{DeploySettings, HostAccess, host::link_key},
    ssh::{
        ConnectOptions, Connection, Credentials, ForwardEndpoint, LinkHandle, LinkKey, LinkState, SshTarget,
    },
    types::principal::Origin,
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    link::{BASE, BOTH, Link, prepare, settings},
    sshd::inside,
    support::{Host, LIMIT, MemoryJournal, host, run},
};

const KEYS: &str = "cat ~/.ssh/authorized_keys";

/// A controller with a key of its own; its login's key file may go.
fn controller(host: &Host, target: &SshTarget, key: &LinkKey) -> HostAccess {
    let settings = DeploySettings {
        known_hosts: vec![host.known_hosts_path.clone()],
        key_dirs: vec![target.key_path.as_ref().unwrap().parent().unwrap().to_owned()],
        approved_hosts: vec!["10.*".into()],
        link_key: Some(key.clone()),
        ..Default::default()
    };
    HostAccess::new(Arc::new(settings), Arc::new(MemoryJournal::default()))
}

async fn cut(host: &Host, link: &mut Link) {
    assert!(inside(&host.container, r#"read -r pid _ < "$1/run/link.session" && kill -9 "$pid""#, &[BASE]));
    link.down().await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn the_links_own_key_forwards_and_does_nothing_else() {
    for ports in BOTH {
        let (host, dir) = (host(1), tempfile::tempdir().unwrap());
        prepare(&host).await;
        let (login, own) = (dir.path().join("login"), dir.path().join("link-key.pem"));
        std::fs::copy(&host.key_path, &login).unwrap();
        let key = LinkKey::load_or_create(&own).unwrap();
        let target = SshTarget { key_path: Some(login.clone()), ..host.target() };
        let hosts = controller(&host, &target, &key);
        let root = host.connect().await;
        let before = run(&root, KEYS, &[]).await;
        for _ in 0..2 {
            link_key::install(&root, &key, &settings(ports)).await.unwrap();
        }
        let installed = run(&root, KEYS, &[]).await;
        assert!(installed.starts_with(&before) && installed.lines().count() == before.lines().count() + 1);
        assert!(installed.contains("restrict,port-forwarding") && installed.contains("aegis link of test"));

        let start = || {
            let (sender, streams) = mpsc::channel(1);
            let dialer = hosts.dialer(target.clone(), Origin::Assistant);
            let handle = LinkHandle::start(settings(ports), dialer, None, sender);
            Link { handle, streams, host: host.clone() }
        };
        let mut link = start();
        link.up().await;
        link.carries().await;
        // The login's key is gone; the stale session's place is taken over all the same.
        std::fs::remove_file(&login).unwrap();
        cut(&host, &mut link).await;
        link.up().await;
        link.carries().await;

        // Whatever it asks for, and whoever asks. What it runs would end our link.
        link.handle.stop().await;
        let known = format!("UserKnownHostsFile={}", host.known_hosts_path.display());
        let asked = Command::new("ssh")
            .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", &known, "-i"])
            .arg(&own)
            .args([&format!("root@{}", host.ip), "id; touch /tmp/aegis-test-shell"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&asked.stdout), "AEGIS-LINK\n", "{asked:?}");
        run(&root, "[ ! -e /tmp/aegis-test-shell ]", &[]).await;
        let credentials = Credentials { link_key: Some(key.clone()), ..Default::default() };
        let options = ConnectOptions { credentials, ..host.known() };
        let confined = Connection::open(&host.target(), &options).await.unwrap();
        assert!(confined.script("id", &[], LIMIT).await.is_err());
        assert!(confined.sftp().await.is_err());
        if ports.is_some() {
            assert!(confined.open_channel(&ForwardEndpoint::Port(22)).await.is_err());
            let socket = ForwardEndpoint::Socket("/var/run/docker.sock".into());
            assert!(confined.open_channel(&socket).await.is_err());
        }
        confined.close().await;

        // Refused, it is the login's turn again, when there is one.
        let mut link = start();
        link.up().await;
        link.carries().await;
        link_key::uninstall(&root, "test", &settings(ports).node).await.unwrap();
        assert_eq!(run(&root, KEYS, &[]).await, before);
        run(&root, r#"! ls ~/.ssh/aegis-link-* 2>/dev/null"#, &[]).await;
        cut(&host, &mut link).await;
        let mut state = link.handle.state();
        let no_login = |state: &LinkState| {
            state.failure().is_some_and(|failure| failure.message.contains("no such file"))
        };
        let down = timeout(LIMIT, state.wait_for(no_login)).await.map(|down| down.is_ok());
        assert_eq!(down, Ok(true), "{:?}", *link.handle.state().borrow());
        std::fs::copy(&host.key_path, &login).unwrap();
        link.up().await;
        link.carries().await;
        link.end().await;
    }
}
