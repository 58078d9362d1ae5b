//! Hosts as people have them: homes on a server, BusyBox for the usual tools, directories in memory, several Docker
//! contexts, other image stores.

use cluster_core::{
    deploy::{
        DeploymentState, StepName,
        host::{HostSession, link_key},
    },
    ssh::LinkKey,
    types::{ids::NodeId, principal::Origin},
};

use crate::{
    bench::{BASE, Bench, bench},
    link::settings,
    sshd::{Sshd, inside},
    support::{GOOD_NODE, host, run, stand_in_node},
};

/// Deploys, deploys again, and removes; the host is as it was before.
async fn becomes_a_node_twice(bench: &Bench) {
    let first = bench.deploy(&bench.request()).await;
    let again = bench.deploy(&bench.request()).await;
    bench.cluster.links.lock().await.clear();
    let root = host(0).connect().await;
    HostSession { connection: &root, base: BASE }.remove(true).await.unwrap();
    run(&root, r#"docker volume rm -f aitheros-edge_node_data >/dev/null; rm -rf -- "$1""#, &[BASE]).await;
    assert_eq!(first.state, DeploymentState::Ready, "{:?}", first.failure);
    assert_eq!(again.state, DeploymentState::Ready, "{:?}", again.failure);
}

async fn finding_codes(bench: &Bench) -> Vec<String> {
    let plan = bench.deployments.plan(&bench.request(), Origin::Assistant).await.unwrap();
    plan.findings.into_iter().map(|finding| finding.code.to_string()).collect()
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn keys_in_a_shared_home_survive_other_hosts() {
    const ROUNDS: usize = 5;
    const OTHERS: &str = r#"for n in 1 2 3 4 5; do
        echo "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI$n other-$n" >> ~/.ssh/authorized_keys; done"#;
    let dir = tempfile::tempdir().unwrap();
    let key = LinkKey::load_or_create(&dir.path().join("link-key.pem")).unwrap();
    let mut hosts = Vec::new();
    for number in 0..2 {
        let mut host = host(number);
        host.user = "roaming".into();
        let mut settings = settings(None);
        settings.node = NodeId::parse(format!("roaming-{number}")).unwrap();
        hosts.push((host.connect().await, settings));
    }
    let [(one, first), (two, second)] = hosts.as_slice() else { unreachable!() };
    run(one, OTHERS, &[]).await;
    let before = run(two, "cat ~/.ssh/authorized_keys", &[]).await;
    assert_eq!(before.lines().count(), 6, "one home on both hosts: {before}");
    for _ in 0..ROUNDS {
        tokio::try_join!(link_key::install(one, &key, first), link_key::install(two, &key, second)).unwrap();
        let both = run(one, "cat ~/.ssh/authorized_keys", &[]).await;
        assert!(both.starts_with(&before) && both.lines().count() == 8, "{both}");
        tokio::try_join!(link_key::uninstall(one, "test", &first.node), link_key::install(two, &key, second))
            .unwrap();
        let other = run(one, "cat ~/.ssh/authorized_keys", &[]).await;
        assert!(other.contains("roaming-1") && !other.contains("roaming-0"), "{other}");
        tokio::try_join!(
            link_key::uninstall(one, "test", &first.node),
            link_key::uninstall(two, "test", &second.node)
        )
        .unwrap();
        assert_eq!(run(one, "cat ~/.ssh/authorized_keys", &[]).await, before);
    }
    let left = run(two, "ls -A ~/.ssh; sed -i '/ other-/d' ~/.ssh/authorized_keys", &[]).await;
    assert!(!left.contains("aegis-link"), "{left}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn busybox_host_becomes_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(0).connect().await;
    run(&root, r#"install -d -m 700 -o alpine "$1""#, &[BASE]).await;
    let path = "SetEnv=PATH=/usr/local/busybox:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";
    let sshd = Sshd::start(&host(0), &[path]);
    let mut alpine = sshd.host.clone();
    alpine.user = "alpine".into();
    let connection = alpine.connect().await;
    let tools = run(&connection, r#"sed --help 2>&1 | head -n 1; ls -l "/proc/$$/exe""#, &[]).await;
    assert!(
        tools.contains("BusyBox") && tools.contains("/busybox"),
        "tools and shell are BusyBox's: {tools}"
    );
    becomes_a_node_twice(&bench(alpine, Some(stand_in_node(dir.path(), "good", GOOD_NODE)))).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn chosen_docker_context_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(0).connect().await;
    let other = "docker context create other --docker host=unix:///nowhere.sock && docker context use other";
    run(&root, other, &[]).await;
    assert!(!inside(&host(0).container, "docker info >/dev/null 2>&1", &[]), "the context is in force");
    becomes_a_node_twice(&bench(host(0), Some(stand_in_node(dir.path(), "good", GOOD_NODE)))).await;
    run(&root, "docker context use default && docker context rm other", &[]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn base_in_memory_and_a_sudo_that_logs_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(0).connect().await;
    let node = stand_in_node(dir.path(), "good", GOOD_NODE);
    run(&root, "mount -t tmpfs -o size=2g none /opt", &[]).await;
    let volatile = finding_codes(&bench(host(0), Some(node.clone()))).await;
    run(&root, "umount /opt", &[]).await;
    let mut sudoer = host(0);
    sudoer.user = "sudoer".into();
    run(&root, "echo 'Defaults:sudoer log_input' > /etc/sudoers.d/log", &[]).await;
    let logged = finding_codes(&bench(sudoer.clone(), Some(node.clone()))).await;
    run(&root, "echo 'Defaults:sudoer !log_input' >> /etc/sudoers.d/log", &[]).await;
    let unlogged = finding_codes(&bench(sudoer, Some(node))).await;
    run(&root, "rm -rf /etc/sudoers.d/log /var/log/sudo-io", &[]).await;
    assert_eq!((volatile, logged, unlogged), (vec!["volatile".into()], vec!["sudo_log".into()], vec![]));
}

/// The store that new installations of Docker 29 have.
#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn containerd_image_store_holds_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let root = host(1).connect().await;
    let store = r#"mkdir -p /etc/docker
        echo '{"features": {"containerd-snapshotter": true}, "storage-driver": "native"}' > /etc/docker/daemon.json
        pkill -x dockerd; timeout 30 sh -c 'until docker info -f "{{.DriverStatus}}" 2>/dev/null | grep -q containerd; do sleep 0.1; done'"#;
    run(&root, store, &[]).await;
    let bench = bench(host(1), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    let first = bench.deploy(&bench.request()).await;
    let again = bench.deploy(&bench.request()).await;
    bench.cluster.links.lock().await.clear();
    HostSession { connection: &root, base: BASE }.remove(true).await.unwrap();
    let classic = r#"docker volume rm -f aitheros-edge_node_data >/dev/null; rm -rf -- "$1" /etc/docker/daemon.json
        pkill -x dockerd; timeout 30 sh -c 'while docker info -f "{{.DriverStatus}}" 2>&1 | grep -qE "containerd|Cannot"; do sleep 0.1; done'"#;
    run(&root, classic, &[BASE]).await;
    for view in [&first, &again] {
        assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
    }
    let images = again.steps.iter().find(|step| step.name == StepName::Images).unwrap();
    let evidence = images.evidence.as_deref().unwrap();
    assert!(evidence.contains("on the host"), "the image is not sent again: {evidence}");
}
