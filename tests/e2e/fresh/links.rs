//! How a deployed node and its controller reach each other: by ports where sshd forwards no sockets, by a
//! key of the link's own, directly, and from one to the other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup, free_port},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    poll::until,
    testbed::{Disturbed, Host, own_engine},
    work::{deploy_ready, deployment_of, run, script, with},
};

const NOTICED: Duration = Duration::from_secs(20);
/// A host that boots, its engine that starts the node, and the link's longest pause between tries.
const BACK: Duration = Duration::from_secs(90);

async fn peer(client: &mut Client) -> Value {
    let peers = client.call("list_peers", json!({"tags": ["edge"], "response_format": "detailed"})).await;
    assert_eq!(peers["total"], 1, "{peers}");
    peers["peers"][0].clone()
}

async fn runs_there(client: &mut Client) {
    let ended = run(client, script("echo on $AEGIS_NODE_ID", &["edge"])).await;
    assert_eq!(ended.stdout, format!("on {ONE}\n"), "{:#}", ended.view);
}

async fn comes_back(client: &mut Client) {
    until("the node is there again", BACK, async || {
        let peer = peer(client).await;
        (peer["link_up"] == true && peer["status"] == "active").then_some(())
    })
    .await;
}

/// Which key the join step saw.
fn key_of(view: &Value) -> String {
    let steps = view["steps"].as_array().expect("steps");
    let join = steps.iter().find(|step| step["name"] == "join").expect("a join step");
    let evidence = join["evidence"].as_str().expect("evidence");
    evidence.rsplit_once("key ").expect("a key").1.to_owned()
}

/// A second sshd of the host with its host keys is another address of the same machine.
/// It goes into the background before it listens.
const OTHER_ADDRESS: &str = "/usr/sbin/sshd -p 2222 -o PidFile=/run/other-sshd.pid
    timeout 10 sh -c 'until [ -s /run/other-sshd.pid ]; do sleep 0.05; done'";
const FIRST_ADDRESS_GONE: &str =
    "touch /run/hold-sshd; kill $(cat /run/sshd.pid); pkill -x sshd-session; true";
const FIRST_ADDRESS_BACK: &str = "rm -f /run/hold-sshd; kill $(cat /run/other-sshd.pid)";

#[tokio::test]
async fn node_follows_its_host_to_another_address() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let moved = Host { port: 2222, ..host.clone() };
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "links").await;
    let before = key_of(&deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await);

    let _first = Disturbed::new(host, OTHER_ADDRESS, FIRST_ADDRESS_BACK);
    controller.approve(&moved).await;
    // While it answers at its first address, the other one may be a copy of the machine.
    let refused = client.attempt("deploy_edge_node", deployment_of(&moved, ONE, &["edge"])).await;
    let refused = refused.expect_err("a conflict");
    assert!(refused.contains("belongs to") && refused.contains("host approve"), "{refused}");

    host.sh(FIRST_ADDRESS_GONE);
    until("the link is down", NOTICED, async || (peer(&mut client).await["link_up"] == false).then_some(()))
        .await;
    let after = key_of(&deploy_ready(&mut client, deployment_of(&moved, ONE, &["edge"])).await);
    assert_eq!(before, after, "the same node");
    runs_there(&mut client).await;
}

#[tokio::test]
async fn a_node_moves_between_its_links_and_stays_the_same_node() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let (network, _) = host.ip.rsplit_once('.').expect("an IPv4 address");
    let cluster = format!("role: hybrid\n    advertise_address: 'https://{network}.1:{}'", free_port());
    let mut controller = Controller::start(&Setup { cluster, ..Setup::for_hosts(&hosts) }).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "links").await;
    let mut keys = Vec::new();
    for (link, listens) in [("ssh", false), ("direct", true), ("direct", true), ("ssh", false)] {
        let begun = Instant::now();
        let arguments = with(deployment_of(host, ONE, &["edge"]), json!({"link": link}));
        keys.push(key_of(&deploy_ready(&mut client, arguments).await));
        let peer = peer(&mut client).await;
        assert_eq!((&peer["link"], &peer["link_up"]), (&json!(link), &json!(true)), "{peer}");
        runs_there(&mut client).await;
        client.transcript.note(&format!("{link} after {:.1} s", begun.elapsed().as_secs_f64()));
        assert_eq!(host.holds("ss -ltn 'sport = :50056' | grep -q LISTEN"), listens, "{link}");
        let config = host.sh("cat /opt/aitheros-edge/aegis-config.yaml");
        assert!(!config.contains("token"), "no secret is needed: {config}");
    }
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");

    // On the direct link it is the node that finds its controller again.
    let arguments = with(deployment_of(host, ONE, &["edge"]), json!({"link": "direct"}));
    deploy_ready(&mut client, arguments).await;
    controller.kill();
    controller.start_again().await;
    let mut client = Client::stdio(&controller, Era::Session, "links-again").await;
    comes_back(&mut client).await;
    assert_eq!(peer(&mut client).await["link"], "direct");
    runs_there(&mut client).await;
    client.transcript.keep();
}

#[tokio::test]
async fn rebooted_host_returns_without_login() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let login = tempfile::tempdir().expect("a directory");
    let key = login.path().join("key");
    std::fs::copy(&host.key_path, &key).expect("a copy");
    let login_host = Host { key_path: key.clone(), ..host.clone() };
    let setup = Setup::for_hosts(&[login_host.clone(), hosts[1].clone()]);
    let setup = Setup { deploy: format!("{}\n    link_key: own", setup.deploy), ..setup };
    let mut controller = Controller::start(&setup).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "reboot").await;
    deploy_ready(&mut client, deployment_of(&login_host, ONE, &["edge"])).await;
    std::fs::remove_file(&key).expect("it was there");

    let begun = Instant::now();
    // As a power cut: nobody says goodbye.
    own_engine(&["kill", &host.name]);
    until("the link is down, and the node is not called dead", NOTICED, async || {
        let peer = peer(&mut client).await;
        (peer["link_up"] == false && peer["status"] == "active").then_some(())
    })
    .await;
    let down = begun.elapsed();
    own_engine(&["start", &host.name]);
    comes_back(&mut client).await;
    client.transcript.note(&format!("down after {down:.1?}, back after {:.1?}", begun.elapsed()));
    runs_there(&mut client).await;

    // The controller's own machine dies: what it left on the host is taken over.
    controller.kill();
    controller.start_again().await;
    let mut client = Client::stdio(&controller, Era::Session, "reboot-again").await;
    comes_back(&mut client).await;
    runs_there(&mut client).await;
    assert!(!controller.log().contains("the link's own key is refused"), "{}", controller.log());
    let lines = host.sh("grep -c 'aegis link of' ~/.ssh/authorized_keys");
    assert_eq!(lines.trim(), "1");
    client.transcript.keep();
}

#[tokio::test]
async fn a_node_behind_an_sshd_without_sockets_is_linked_by_ports() {
    let Fresh { hosts, _machines } = fresh().await;
    let sshd = "/usr/sbin/sshd -p 2222 -o AllowStreamLocalForwarding=no -o MaxSessions=1 -o PidFile=/run/aegis-test-sshd.pid
        timeout 10 sh -c 'until [ -s /run/aegis-test-sshd.pid ]; do sleep 0.05; done'";
    let _sshd = Disturbed::new(&hosts[0], sshd, "kill $(cat /run/aegis-test-sshd.pid)");
    let host = Host { port: 2222, ..hosts[0].clone() };
    let mut controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(&host).await;
    let mut client = Client::stdio(&controller, Era::Session, "ports").await;
    deploy_ready(&mut client, deployment_of(&host, ONE, &["edge"])).await;
    assert_eq!(peer(&mut client).await["link"], "ssh");
    runs_there(&mut client).await;
    let again = deploy_ready(&mut client, deployment_of(&host, ONE, &["edge"])).await;
    let upload = again["steps"].as_array().expect("steps").iter().find(|step| step["name"] == "upload");
    assert!(
        upload.expect("upload")["evidence"].as_str().is_some_and(|text| text.contains("nothing changed"))
    );
    runs_there(&mut client).await;
    controller.kill();
    controller.start_again().await;
    let mut client = Client::stdio(&controller, Era::Session, "ports-again").await;
    comes_back(&mut client).await;
    runs_there(&mut client).await;
    client.transcript.keep();
}
