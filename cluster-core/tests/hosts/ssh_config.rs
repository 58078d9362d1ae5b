//! Settings of `~/.ssh/config` with real hosts: aliases, jump hosts, keys and certificates.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use cluster_core::{
    deploy::{DeploySettings, DeploymentRequest, HostAccess, Journal, settings::KeyPassphrase},
    ssh::{
        Connection, ForwardEndpoint, HostKeyPolicy, LinkHandle, LinkSettings, LinkState, Passphrase,
        SshTarget, client_config::ConfigFile,
    },
    types::{
        error::{ErrorCode, Result},
        ids::NodeId,
        principal::Origin,
    },
};
use tokio::sync::mpsc;

use crate::support::{Host, LIMIT, MemoryJournal, host, run, until};

/// A controller's user with its own home directory.
struct Desk {
    dir: tempfile::TempDir,
    journal: Arc<MemoryJournal>,
    settings: DeploySettings,
}

impl Desk {
    fn with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        std::fs::write(&file, config).unwrap();
        let settings = DeploySettings {
            ssh_config: ConfigFile::Named(file),
            home: Some(dir.path().to_owned()),
            approved_hosts: vec!["*".into()],
            minimum_disk_gb: 1,
            owner: "test".into(),
            ..Default::default()
        };
        Self { dir, journal: Arc::default(), settings }
    }

    fn hosts(&self) -> HostAccess {
        HostAccess::new(Arc::new(self.settings.clone()), self.journal.clone())
    }

    /// Returns a target as a deployment names its host: by the alias alone.
    fn target(&self, alias: &str) -> SshTarget {
        let request = DeploymentRequest { host: alias.into(), ..Default::default() };
        request.validate(Origin::Assistant, &self.settings).unwrap().spec.target
    }

    async fn connect(&self, alias: &str) -> Result<Connection> {
        self.hosts().connect(&self.target(alias), Origin::Assistant).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Settings that all aliases of the set share.
fn keys(host: &Host) -> String {
    let (key, known) = (host.key_path.display(), host.known_hosts_path.display());
    format!("Host *\n IdentityFile {key}\n IdentitiesOnly yes\n UserKnownHostsFile {known}\n User root\n")
}

/// Returns the address of the client as the host sees it.
async fn peer(connection: &Connection) -> String {
    // The script's shell has its environment from sshd.
    run(connection, r#"printf '%s' "${SSH_CONNECTION%% *}""#, &[]).await
}

/// Starts a second sshd on another port; `stop_second_sshd` ends it.
async fn second_sshd(connection: &Connection, options: &[&str]) {
    // sshd forks before it listens, and writes the file afterwards.
    let script = r#"port=$1 pid=/run/aegis-test-$1.pid; shift; rm -f "$pid"; /usr/sbin/sshd -p "$port" "$@" -o "PidFile=$pid"
        timeout 10 sh -c 'until [ -s "$1" ]; do sleep 0.05; done' sh "$pid""#;
    let mut arguments = vec!["2222"];
    arguments.extend(options.iter().flat_map(|option| ["-o", *option]));
    run(connection, script, &arguments).await;
}

async fn stop_second_sshd(connection: &Connection) {
    run(connection, "kill $(cat /run/aegis-test-2222.pid)", &[]).await;
}

fn keygen(arguments: &[&str], files: &[&Path]) {
    let made = Command::new("ssh-keygen").arg("-q").args(arguments).args(files).status();
    assert!(made.unwrap().success());
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_alias_brings_its_address_port_user_and_key() {
    let host = host(0);
    let root = host.connect().await;
    second_sshd(&root, &[]).await;
    let (ip, other) = (&host.ip, keys(&host));
    let desk = Desk::with(&format!("Host atlas\n HostName {ip}\n Port 2222\n User ops\n{other}"));
    let target = desk.target("atlas");
    assert_eq!(target.to_string(), "ops@atlas:2222");
    let begun = Instant::now();
    let connection = desk.connect("atlas").await;
    println!("an alias is connected to in {:?}", begun.elapsed());
    stop_second_sshd(&root).await;
    let connection = connection.unwrap();
    assert_eq!(run(&connection, "id -un", &[]).await.trim(), "ops");
    assert_eq!(connection.route()[0].to_string(), format!("atlas ({ip} port 2222)"));

    // Without the file, the same name is an ordinary name.
    let plain = DeploySettings { ssh_config: ConfigFile::None, ..desk.settings.clone() };
    let error =
        HostAccess::new(Arc::new(plain), desk.journal.clone()).connect(&target, Origin::Assistant).await;
    assert_eq!(error.unwrap_err().code(), ErrorCode::HostUnreachable);
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn hosts_are_reached_over_one_and_two_others() {
    let (first, second) = (host(0), host(1));
    let root = first.connect().await;
    second_sshd(&root, &[]).await;
    let config = format!(
        "Host near\n HostName {}\nHost far\n HostName {}\n ProxyJump near\nHost farther\n HostName {}\n Port 2222\n \
         ProxyJump far\n{}",
        first.ip,
        second.ip,
        first.ip,
        keys(&first)
    );
    let desk = Desk::with(&config);
    let mut peers = Vec::new();
    for alias in ["near", "far", "farther"] {
        let begun = Instant::now();
        let connection = desk.connect(alias).await.unwrap();
        println!("{alias}: {:?} over {:?}", begun.elapsed(), connection.route());
        peers.push(peer(&connection).await);
        connection.close().await;
    }
    // Simultaneous deployments share one login on the way, and links share another.
    let near = host(0).connect().await;
    const LOGINS: &str =
        r#"cat /proc/net/tcp /proc/net/tcp6 | grep -c '^ *[0-9]*: [0-9A-F]*:0016 [^ ]* 01 '"#;
    let logins = async || run(&near, LOGINS, &[]).await.trim().parse::<usize>().unwrap();
    let before = logins().await;
    let hosts = desk.hosts();
    let far = desk.target("far");
    let work = futures::future::try_join_all((0..4).map(|_| hosts.connect(&far, Origin::Assistant)));
    let dialer = hosts.dialer(far.clone(), Origin::Assistant);
    let links = futures::future::try_join_all((0..4).map(|_| dialer()));
    let (work, links) = tokio::try_join!(work, links).unwrap();
    assert_eq!(logins().await, before + 2);
    work[0].close().await;
    run(&work[1], "true", &[]).await;
    drop((work, links));
    until("the logins on the way end", async || logins().await == before).await;
    // A person approves a host behind another host by the same route.
    let farther = desk.target("farther");
    let approved = desk.hosts().approve(&farther.host, farther.port, None).await;
    stop_second_sshd(&root).await;
    assert_eq!(peers[1..], [first.ip.clone(), second.ip.clone()]);
    assert_eq!(approved.unwrap().host.as_str(), "farther");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn every_host_on_the_way_must_be_who_it_is() {
    let (first, second) = (host(0), host(1));
    let aliases = format!(
        "Host near\n HostName {}\n UserKnownHostsFile none\n StrictHostKeyChecking no\nHost far\n HostName {}\n \
         ProxyJump near\n",
        first.ip, second.ip
    );
    let mut desk = Desk::with(&format!("{aliases}{}", keys(&first)));
    let unknown = desk.connect("far").await.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::HostKeyUnknown);
    assert!(unknown.to_string().contains("aegis host approve near"), "{unknown}");
    assert!(unknown.message().contains("StrictHostKeyChecking no"), "{unknown}");

    // Under accept-new the host is pinned as a jump host, not as a target.
    desk.settings.host_key_policy = HostKeyPolicy::AcceptNew;
    desk.connect("far").await.unwrap();
    let near = desk.target("near");
    let pinned = desk.journal.host(&near.host, near.port).await.unwrap().unwrap();
    assert!(!pinned.is_target());
    desk.settings.approved_hosts = vec!["far".into()];
    assert_eq!(desk.connect("near").await.unwrap_err().code(), ErrorCode::HostNotApproved);
    assert!(desk.connect("far").await.is_ok());

    // A key other than the pinned one fails the connection, also on the way.
    let other = desk.journal.host(&near.host, near.port).await.unwrap().unwrap();
    let changed = cluster_core::ssh::HostKey {
        public_key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFH2GCM9zzJjNPC9I+zobNdBrlPuDjYCjDAQMTF3mip7".into(),
        fingerprint: "SHA256:other".into(),
    };
    desk.journal.put_host(&cluster_core::deploy::ApprovedHost { key: changed, ..other }).await.unwrap();
    assert_eq!(desk.connect("far").await.unwrap_err().code(), ErrorCode::HostKeyChanged);

    // An address without a listener behind a jump host is reported as unreachable for the jump host.
    let nowhere = format!(
        "Host far\n HostName {}\n Port 1\n ProxyJump near\nHost near\n HostName {}\n",
        second.ip, first.ip
    );
    let nowhere = Desk::with(&format!("{nowhere}{}", keys(&first)));
    let error = nowhere.connect("far").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::HostUnreachable);
    assert!(error.message().contains("near cannot reach far"), "{error}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_link_over_another_host_heals() {
    let (first, second) = (host(0), host(1));
    let config = format!(
        "Host near\n HostName {}\nHost far\n HostName {}\n ProxyJump near\n{}",
        first.ip,
        second.ip,
        keys(&first)
    );
    let desk = Desk::with(&config);
    let base = "/tmp/aegis-test-jump";
    let root = second.connect().await;
    run(&root, r#"rm -rf "$1"; mkdir -m 700 "$1""#, &[base]).await;
    let settings = LinkSettings {
        node: NodeId::parse("edge-test").unwrap(),
        controller_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        node_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        session_note: format!("{base}/link.session"),
        owner: "test".into(),
    };
    let (sender, mut streams) = mpsc::channel(1);
    let dialer = desk.hosts().dialer(desk.target("far"), Origin::Assistant);
    let link = LinkHandle::start(settings, dialer, None, sender);
    let mut state = link.state();
    let up = state.wait_for(|state| matches!(state, LinkState::Up { .. }));
    tokio::time::timeout(LIMIT, up).await.unwrap().unwrap();
    let outer = |verb: &str| Command::new("docker").args([verb, &first.container]).output().unwrap();
    assert!(outer("pause").status.success());
    let frozen = Instant::now();
    let down = state.wait_for(|state| matches!(state, LinkState::Down { .. }));
    let down = tokio::time::timeout(Duration::from_secs(20), down).await.map(|down| down.is_ok());
    println!("noticed after {:?}", frozen.elapsed());
    assert!(outer("unpause").status.success() && down.is_ok());
    let up = state.wait_for(|state| matches!(state, LinkState::Up { .. }));
    tokio::time::timeout(Duration::from_secs(60), up).await.unwrap().unwrap();
    println!("healed after {:?}", frozen.elapsed());
    let _out = link.connect_node().await.unwrap();
    assert!(streams.recv().await.is_some());
    link.stop().await;
    run(&root, r#"rm -rf "$1""#, &[base]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn encrypted_keys_open_with_the_configured_passphrase() {
    let host = host(0);
    let (ip, known) = (&host.ip, host.known_hosts_path.display());
    let config =
        |key: &str| format!("Host edge\n HostName {ip}\n IdentityFile {key}\n UserKnownHostsFile {known}\n");
    let mut desk = Desk::with("");
    let key = desk.path("locked");
    std::fs::copy(&host.key_path, &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    keygen(&["-p", "-P", "", "-N", "correct horse", "-f"], &[&key]);
    std::fs::write(desk.path("config"), config(&key.to_string_lossy())).unwrap();
    let locked = desk.connect("edge").await.unwrap_err();
    assert_eq!(locked.code(), ErrorCode::HostAuthentication);
    assert!(locked.message().contains("it is encrypted"), "{locked}");
    desk.settings.key_passphrase = Some(KeyPassphrase::Given(Passphrase::new("hunter2")));
    let wrong = desk.connect("edge").await.unwrap_err();
    assert!(wrong.message().contains("not with the passphrase"), "{wrong}");
    assert!(!wrong.chain().contains("hunter2"));
    desk.settings.key_passphrase = Some(KeyPassphrase::Given(Passphrase::new("correct horse")));
    assert!(desk.connect("edge").await.is_ok());
    // The same key, named as an argument.
    let target = SshTarget { key_path: Some(key), ..desk.target("edge") };
    assert!(desk.hosts().connect(&target, Origin::Person).await.is_ok());
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn certificates_let_us_in() {
    let host = host(0);
    let desk = Desk::with("");
    let ca = desk.path("ca");
    keygen(&["-t", "ed25519", "-N", "", "-f"], &[&ca]);
    let root = host.connect().await;
    let public = std::fs::read_to_string(ca.with_extension("pub")).unwrap();
    run(&root, r#"printf '%s\n' "$1" > /run/aegis-test-ca.pub"#, &[public.trim()]).await;
    let only = ["TrustedUserCAKeys=/run/aegis-test-ca.pub", "AuthorizedKeysFile=none"];
    second_sshd(&root, &only).await;
    let mut outcomes = Vec::new();
    for (kind, principal) in
        [("ed25519", "root"), ("rsa", "root"), ("ecdsa", "root"), ("ed25519", "somebody")]
    {
        let key = desk.path(&format!("{kind}-{principal}"));
        keygen(&["-t", kind, "-N", "", "-f"], &[&key]);
        let config = format!(
            "Host edge\n HostName {}\n Port 2222\n IdentityFile {}\n UserKnownHostsFile {}\n",
            host.ip,
            key.display(),
            host.known_hosts_path.display()
        );
        std::fs::write(desk.path("config"), config).unwrap();
        let without = desk.connect("edge").await.is_ok();
        let signed = ["-s", ca.to_str().unwrap(), "-I", "edge test", "-n", principal, "-V", "+1h"];
        keygen(&signed, &[&key.with_extension("pub")]);
        let with = desk.connect("edge").await;
        outcomes.push((kind, principal, without, with.map(|_| ())));
    }
    stop_second_sshd(&root).await;
    for (kind, principal, without, with) in outcomes {
        assert!(!without, "{kind} without its certificate");
        assert_eq!(with.is_ok(), principal == "root", "{kind} {principal}: {with:?}");
        if let Err(error) = with {
            assert!(error.message().contains("certificate \"edge test\""), "{error}");
        }
    }
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn an_authority_vouches_for_a_host() {
    let host = host(0);
    let desk = Desk::with("");
    let ca = desk.path("ca");
    keygen(&["-t", "ed25519", "-N", "", "-f"], &[&ca]);
    let root = host.connect().await;
    let read = r#"cat /etc/ssh/ssh_host_ed25519_key.pub"#;
    let key = desk.path("host.pub");
    std::fs::write(&key, run(&root, read, &[]).await).unwrap();
    let public = std::fs::read_to_string(ca.with_extension("pub")).unwrap();
    let known = desk.path("known");
    let config = format!(
        "Host edge\n HostName {}\n Port 2222\n IdentityFile {}\n UserKnownHostsFile {}\n",
        host.ip,
        host.key_path.display(),
        known.display()
    );
    std::fs::write(desk.path("config"), config).unwrap();
    let mut outcomes = Vec::new();
    for (principal, line) in [
        (host.ip.as_str(), format!("@cert-authority 10.* {public}")),
        (host.ip.as_str(), format!("@cert-authority elsewhere {public}")),
        ("elsewhere", format!("@cert-authority * {public}")),
        (host.ip.as_str(), format!("@cert-authority * {public}@revoked * {public}")),
    ] {
        keygen(&["-s", ca.to_str().unwrap(), "-h", "-I", "edge", "-n", principal, "-V", "+1h"], &[&key]);
        let signed = std::fs::read_to_string(desk.path("host-cert.pub")).unwrap();
        run(&root, r#"printf '%s' "$1" > /run/aegis-test-cert.pub"#, &[&signed]).await;
        second_sshd(&root, &["HostCertificate=/run/aegis-test-cert.pub"]).await;
        std::fs::write(&known, line).unwrap();
        outcomes.push(desk.connect("edge").await.map(|_| ()));
        stop_second_sshd(&root).await;
        // The port is free again once the listener is gone.
        run(&root, "while [ -e /run/aegis-test-2222.pid ]; do sleep 0.05; done", &[]).await;
    }
    assert!(outcomes[0].is_ok(), "{:?}", outcomes[0]);
    for outcome in &outcomes[1..] {
        assert_eq!(outcome.as_ref().unwrap_err().code(), ErrorCode::HostKeyUnknown, "{outcome:?}");
    }
}
