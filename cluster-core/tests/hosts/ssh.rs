//! Connections, scripts, files, channels and links.

use std::time::Duration;

use cluster_core::{
    ssh::{
        ConnectOptions, Connection, Credentials, Endpoint, ForwardEndpoint, HostAddress, HostKeyPolicy,
        LinkHandle, LinkSettings, LinkState, SshTarget, host_keys::Accepted, known_hosts::KnownHosts, probe,
    },
    types::{error::ErrorCode, ids::NodeId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::support::{LIMIT, host, run};

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn host_keys_decide_before_anything_is_sent() {
    let host = host(0);
    let connection = host.connect().await;
    assert_eq!(connection.host_key_accepted(), Accepted::Known);
    let probed = probe::host_key(&Endpoint::direct(&host.target().host, host.port), None, &host.known())
        .await
        .unwrap();
    assert_eq!(&probed, connection.host_key());
    assert!(probed.fingerprint.starts_with("SHA256:"));

    let unknown =
        Connection::open(&host.target(), &host.options(KnownHosts::default(), HostKeyPolicy::Strict)).await;
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.code(), ErrorCode::HostKeyUnknown);
    assert!(unknown.to_string().contains(&probed.fingerprint), "{unknown}");

    let new = host.options(KnownHosts::default(), HostKeyPolicy::AcceptNew);
    let new = Connection::open(&host.target(), &new).await.unwrap();
    assert_eq!(new.host_key_accepted(), Accepted::New);

    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFH2GCM9zzJjNPC9I+zobNdBrlPuDjYCjDAQMTF3mip7";
    let other = KnownHosts::parse(&format!("{},[{}]:{} {other}", host.ip, host.ip, host.port));
    let changed =
        Connection::open(&host.target(), &host.options(other, HostKeyPolicy::AcceptNew)).await.unwrap_err();
    assert_eq!(changed.code(), ErrorCode::HostKeyChanged);
    assert!(changed.to_string().contains(&probed.fingerprint), "{changed}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_wrong_key_and_a_closed_port_are_told_apart() {
    let host = host(0);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    use russh::keys::{Algorithm, PrivateKey, key::safe_rng, ssh_key::LineEnding};
    let fresh = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
    fresh.write_openssh_file(&key, LineEnding::LF).unwrap();
    let wrong = SshTarget { key_path: Some(key), ..host.target() };
    let error = Connection::open(&wrong, &host.known()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::HostAuthentication);
    assert!(error.message().contains("publickey"), "{error}");

    let none = SshTarget { key_path: None, ..host.target() };
    let error = Connection::open(&none, &host.known()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::HostAuthentication);

    let confined = Credentials { confined_to: Some(vec![dir.path().to_owned()]), ..Default::default() };
    let options = ConnectOptions { credentials: confined, ..host.known() };
    let error = Connection::open(&host.target(), &options).await.unwrap_err();
    assert!(error.message().contains("outside"), "{error}");

    let closed = SshTarget { port: 1, ..host.target() };
    let error = Connection::open(&closed, &host.known()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::HostUnreachable);
    assert!(error.message().contains("refuses"), "{error}");
    let nowhere = HostAddress::parse("no-such-host.invalid", false).unwrap();
    let error =
        Connection::open(&SshTarget { host: nowhere, ..host.target() }, &host.known()).await.unwrap_err();
    assert!(error.message().contains("does not resolve"), "{error}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn scripts_give_their_own_output_whatever_the_shell_prints() {
    let host = host(0);
    let connection = host.connect().await;
    run(&connection, "cp -p ~/.bashrc /tmp/aegis-test-bashrc 2>/dev/null; printf 'echo NOISE; echo {\\\"a\\\":1}\\n' > ~/.bashrc.new; cat ~/.bashrc >> ~/.bashrc.new 2>/dev/null; mv ~/.bashrc.new ~/.bashrc", &[]).await;
    let noisy = connection
        .script(r#"printf '%s|' "$@"; echo err >&2; exit 3"#, &["a b", "it's", "$(id)"], LIMIT)
        .await;
    run(&connection, "if [ -e /tmp/aegis-test-bashrc ]; then mv /tmp/aegis-test-bashrc ~/.bashrc; else rm -f ~/.bashrc; fi", &[]).await;
    let noisy = noisy.unwrap();
    assert_eq!((noisy.status, noisy.stdout.as_str(), noisy.stderr.as_str()), (3, "a b|it's|$(id)|", "err\n"));

    let slow = connection.script("sleep 60", &[], Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(slow.code(), ErrorCode::Timeout);
    // More than one message window, read by nobody but the task: the connection must live on.
    let flood =
        connection.script("head -c 30000000 /dev/zero | tr '\\0' x; echo", &[], LIMIT).await.unwrap_err();
    assert_eq!(flood.code(), ErrorCode::DeploymentFailed, "{flood}");
    let twenty = (0..20).map(|_| connection.script("echo ok", &[], LIMIT));
    for output in futures::future::join_all(twenty).await {
        assert_eq!(output.unwrap().stdout, "ok\n");
    }
    let bulk: &'static [u8] = Box::leak(vec![7u8; 5_000_000].into_boxed_slice());
    let counted = connection.script_with_input("wc -c", &[], bulk, LIMIT).await.unwrap();
    assert_eq!(counted.stdout.trim(), "5000000");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_held_script_lives_with_its_guard() {
    let connection = host(0).connect().await;
    let script = r#"exec 9>>/tmp/aegis-test.lock; flock -n 9 || { printf '\nHELD\nbusy'; exit 1; }; printf '\nHELD\n'; cat >/dev/null"#;
    let (_, held) = connection.hold(script, &[], "HELD", LIMIT).await.unwrap();
    let free = r#"n=0; until flock -n /tmp/aegis-test.lock true; do n=$((n + 1)); [ $n -lt "$1" ] || exit 1; sleep 0.1; done"#;
    assert!(!connection.script(free, &["1"], LIMIT).await.unwrap().success());
    assert!(!held.has_ended());
    drop(held);
    assert!(connection.script(free, &["50"], LIMIT).await.unwrap().success());
    run(&connection, "rm -f /tmp/aegis-test.lock", &[]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn files_are_replaced_whole_with_their_mode() {
    let connection = host(0).connect().await;
    let sftp = connection.sftp().await.unwrap();
    let path = "/tmp/aegis-test-file";
    let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    sftp.write_file(path, b"old", 0o644).await.unwrap();
    sftp.write_file(path, &content, 0o600).await.unwrap();
    assert_eq!(run(&connection, r#"stat -c '%a %s' "$1""#, &[path]).await.trim(), "600 800000");
    assert_eq!(sftp.read_file(path, 1_000_000).await.unwrap().unwrap(), content);
    assert!(sftp.read_file(path, 1000).await.is_err());
    assert_eq!(sftp.read_file("/tmp/aegis-test-none", 10).await.unwrap(), None);
    assert!(sftp.write_file("/nowhere/file", b"x", 0o600).await.is_err());
    assert_eq!(run(&connection, r#"ls "$1"* | wc -l; rm -f "$1""#, &[path]).await.trim(), "1");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn sockets_are_carried_in_both_directions() {
    let connection = host(0).connect().await;
    let (sender, mut streams) = mpsc::channel(1);
    let path = "/tmp/aegis-test.sock";
    run(&connection, r#"rm -f "$1""#, &[path]).await;
    let end = ForwardEndpoint::Socket(path.to_owned());
    connection.listen(&end, sender).await.unwrap();
    let mut out = connection.open_channel(&end).await.unwrap();
    let mut back = streams.recv().await.unwrap();
    out.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    back.read_exact(&mut four).await.unwrap();
    back.write_all(b"pong").await.unwrap();
    out.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");
    connection.unlisten(&end).await.unwrap();
    let mut banner = [0; 4];
    connection.open_tcp("127.0.0.1", 22).await.unwrap().read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-");
    assert!(connection.open_tcp("127.0.0.1", 1).await.is_err());
    run(&connection, r#"rm -f "$1""#, &[path]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_link_comes_back_and_takes_its_socket_over() {
    let host = host(1);
    let base = "/tmp/aegis-test-link";
    let connection = host.connect().await;
    run(&connection, r#"rm -rf "$1"; mkdir -m 700 "$1""#, &[base]).await;
    let settings = LinkSettings {
        node: NodeId::parse("edge-test").unwrap(),
        controller_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        node_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        session_note: format!("{base}/link.session"),
        owner: "test".into(),
    };
    // A session that still holds the forward, as after a cut that sshd did not notice.
    let (stale_sender, mut stale_streams) = mpsc::channel(1);
    let stale = LinkHandle::start(settings.clone(), host.dialer(), Some(host.connect().await), stale_sender);
    let up = |state: &LinkState| matches!(state, LinkState::Up { .. });
    stale.state().wait_for(up).await.unwrap();

    let (sender, mut streams) = mpsc::channel(1);
    let link = LinkHandle::start(settings, host.dialer(), Some(connection), sender);
    link.state().wait_for(up).await.unwrap();
    // The stale one was ended on the host, and is not to come back.
    stale.state().wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
    stale.stop().await;
    assert!(stale_streams.try_recv().is_err());

    for round in 0..2 {
        let mut state = link.state();
        state.wait_for(up).await.unwrap();
        let mut out = link.connect_node().await.unwrap();
        let (node, mut inbound) = streams.recv().await.unwrap();
        assert_eq!(node.as_str(), "edge-test");
        out.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        inbound.read_exact(&mut five).await.unwrap();
        if round == 0 {
            // The session's process dies: noticed at once, and healed.
            let killer = host.connect().await;
            let pid = r#"read -r pid _ < "$1/link.session" && kill -9 "$pid""#;
            run(&killer, pid, &[base]).await;
            state.wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
            assert!(link.connect_node().await.is_err());
        }
    }
    link.stop().await;
    run(&host.connect().await, r#"rm -rf "$1""#, &[base]).await;
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn rsa_keys_and_agents_let_us_in() {
    let host = host(0);
    let dir = tempfile::tempdir().unwrap();
    let (key, socket) = (dir.path().join("id_rsa"), dir.path().join("agent"));
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
        .arg(&key)
        .status();
    assert!(made.unwrap().success());
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let connection = host.connect().await;
    run(&connection, r#"cp -p ~/.ssh/authorized_keys /tmp/aegis-test-keys; cat /tmp/aegis-test-keys > ~/.ssh/authorized_keys.new; printf '%s\n' "$1" >> ~/.ssh/authorized_keys.new; cat ~/.ssh/authorized_keys.new > ~/.ssh/authorized_keys || mount | grep authorized; rm ~/.ssh/authorized_keys.new"#, &[public.trim()]).await;

    let by_file = SshTarget { key_path: Some(key.clone()), ..host.target() };
    let by_file = Connection::open(&by_file, &host.known()).await;
    let mut agent = tokio::process::Command::new("ssh-agent")
        .arg("-D")
        .arg("-a")
        .arg(&socket)
        .kill_on_drop(true)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let added =
        std::process::Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).status();
    assert!(added.unwrap().success());
    let credentials = Credentials { agent_socket: Some(socket), ..Default::default() };
    let options = ConnectOptions { credentials, ..host.known() };
    let by_agent = Connection::open(&SshTarget { key_path: None, ..host.target() }, &options).await;
    run(&connection, "cat /tmp/aegis-test-keys > ~/.ssh/authorized_keys; rm /tmp/aegis-test-keys", &[]).await;
    agent.kill().await.unwrap();
    assert!(by_file.is_ok(), "{by_file:?}");
    assert!(by_agent.is_ok(), "{by_agent:?}");
}

#[tokio::test]
#[ignore = "owns testbed hosts; run by tests/run"]
async fn a_frozen_host_is_noticed_and_its_link_heals() {
    let host = host(1);
    let base = "/tmp/aegis-test-frozen";
    let connection = host.connect().await;
    run(&connection, r#"rm -rf "$1"; mkdir -m 700 "$1""#, &[base]).await;
    let settings = LinkSettings {
        node: NodeId::parse("edge-test").unwrap(),
        controller_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        node_end: ForwardEndpoint::Socket(format!("{base}/controller.sock")),
        session_note: format!("{base}/link.session"),
        owner: "test".into(),
    };
    let (sender, mut streams) = mpsc::channel(1);
    let link = LinkHandle::start(settings, host.dialer(), Some(connection), sender);
    let mut state = link.state();
    state.wait_for(|state| matches!(state, LinkState::Up { .. })).await.unwrap();
    let outer =
        |verb: &str| std::process::Command::new("docker").args([verb, &host.container]).output().unwrap();
    assert!(outer("pause").status.success());
    let frozen = std::time::Instant::now();
    let down = state.wait_for(|state| matches!(state, LinkState::Down { .. }));
    let down = tokio::time::timeout(Duration::from_secs(20), down).await.map(|down| down.is_ok());
    println!("noticed after {:?}", frozen.elapsed());
    let thawed = outer("unpause").status.success();
    assert!(down.is_ok() && thawed);
    let up = state.wait_for(|state| matches!(state, LinkState::Up { .. }));
    tokio::time::timeout(Duration::from_secs(60), up).await.unwrap().unwrap();
    println!("healed after {:?}", frozen.elapsed());
    // The session that was cut still held the socket; it was ended and its socket taken over.
    let _out = link.connect_node().await.unwrap();
    assert!(streams.recv().await.is_some());
    link.stop().await;
    run(&host.connect().await, r#"rm -rf "$1""#, &[base]).await;
}
