//! Restrictions of an sshd, with which a deployment still works.

use std::process::Command;

use cluster_core::{
    deploy::{DeploymentState, DeploymentView},
    ssh::LinkState,
    types::principal::Origin,
};

use crate::{
    bench::{BASE, Bench, bench},
    support::{GOOD_NODE, Host, LIMIT, host, run, stand_in_node},
};

/// Second sshd of a host with its own settings, which ends when dropped.
pub struct Sshd {
    container: String,
    pub host: Host,
}

const PORT: &str = "2222";
const PID_FILE: &str = "/run/aegis-test-sshd.pid";

impl Sshd {
    pub fn start(host: &Host, settings: &[&str]) -> Self {
        let mut words = vec!["/usr/sbin/sshd", "-p", PORT];
        let pid_file = format!("PidFile={PID_FILE}");
        for setting in settings.iter().copied().chain([pid_file.as_str()]) {
            words.extend(["-o", setting]);
        }
        // It goes into the background before it listens.
        let script = format!(r#""$@"; timeout 10 sh -c 'until [ -s {PID_FILE} ]; do sleep 0.05; done'"#);
        assert!(inside(&host.container, &script, &words), "sshd does not start");
        Self { container: host.container.clone(), host: Host { port: PORT.parse().unwrap(), ..host.clone() } }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let script = format!(
            r#"read -r pid < {PID_FILE}; kill "$pid"; timeout 10 sh -c 'while [ -d "/proc/$1" ]; do sleep 0.05; done' sh "$pid""#
        );
        inside(&self.container, &script, &[]);
    }
}

/// Runs a script in the container that is the host, bypassing its sshd.
pub fn inside(container: &str, script: &str, arguments: &[&str]) -> bool {
    let mut docker = Command::new("docker");
    docker.args(["exec", container, "sh", "-c", script, "sh"]).args(arguments);
    docker.status().unwrap().success()
}

/// Deploys through such an sshd. Also returns whether the link came up, and the environment of the node's container.
async fn deployed(settings: &[&str]) -> (DeploymentView, Bench, String) {
    let dir = tempfile::tempdir().unwrap();
    let plain = host(0);
    let sshd = Sshd::start(&plain, settings);
    let bench = bench(sshd.host.clone(), Some(stand_in_node(dir.path(), "good", GOOD_NODE)));
    let view = bench.deploy(&bench.request()).await;
    let root = plain.connect().await;
    let link = bench.cluster.links.lock().await.values().next().map(|link| link.state());
    if let Some(mut link) = link {
        let up = link.wait_for(|state| matches!(state, LinkState::Up { .. }));
        let up = tokio::time::timeout(LIMIT, up).await.map(|up| up.is_ok());
        assert!(up.is_ok(), "the link is {:?}", *link.borrow());
    }
    let config = run(&root, r#"cat "$1/aegis-config.yaml" 2>/dev/null || true"#, &[BASE]).await;
    bench.cluster.links.lock().await.clear();
    let cleaner = crate::bench::bench(plain, None);
    cleaner.clean().await;
    (view, bench, config)
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn one_session_a_connection_is_enough() {
    let sshd = Sshd::start(&host(0), &["MaxSessions=1"]);
    let connection = sshd.host.connect().await;
    assert!(!connection.allows_several_sessions().await.unwrap());
    // Scripts and files take turns, however many ask at once.
    let ten = (0..10).map(|_| connection.script("echo ok", &[], LIMIT));
    for output in futures::future::join_all(ten).await {
        assert_eq!(output.unwrap().stdout, "ok\n");
    }
    for _ in 0..3 {
        let sftp = connection.sftp().await.unwrap();
        sftp.write_file("/tmp/aegis-test-one", b"x", 0o600).await.unwrap();
        drop(sftp);
        run(&connection, r#"rm "$1""#, &["/tmp/aegis-test-one"]).await;
    }
    assert!(host(0).connect().await.allows_several_sessions().await.unwrap());
    drop(sshd);

    let (view, ..) = deployed(&["MaxSessions=1"]).await;
    assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn ports_of_the_loopback_carry_a_link_where_sockets_do_not_go() {
    let (view, _, config) = deployed(&["AllowStreamLocalForwarding=no", "MaxSessions=1"]).await;
    assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
    for line in ["endpoint: http://127.0.0.1:29050", "advertise_address: http://127.0.0.1:29051"] {
        assert!(config.replace('"', "").contains(line), "{config}");
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn files_go_over_standard_input_without_sftp() {
    let sshd = Sshd::start(&host(0), &["Subsystem=sftp /bin/false"]);
    assert!(sshd.host.connect().await.sftp().await.is_err());
    drop(sshd);
    let (view, ..) = deployed(&["Subsystem=sftp /bin/false"]).await;
    assert_eq!(view.state, DeploymentState::Ready, "{:?}", view.failure);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_sshd_that_forwards_nothing_is_a_finding() {
    // Where OpenSSH may forward no TCP, it forwards no sockets either.
    for settings in [
        &["AllowStreamLocalForwarding=no", "AllowTcpForwarding=no"][..],
        &["AllowTcpForwarding=no"],
        &["DisableForwarding=yes"],
    ] {
        let sshd = Sshd::start(&host(0), settings);
        let bench = bench(sshd.host.clone(), None);
        let view = bench.deployments.plan(&bench.request(), Origin::Person).await.unwrap();
        let codes: Vec<&str> = view.findings.iter().map(|finding| finding.code.as_str()).collect();
        assert_eq!(codes, ["forwarding"], "{settings:?}: {:?}", view.findings);
        assert!(view.next_step.contains("AllowTcpForwarding yes"), "{settings:?}: {}", view.next_step);
    }
}
