//! Two controllers at one host, a host that is another one when it is deployed again, and one whose
//! container runtime breaks starts off.

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    testbed::Disturbed,
    work::{deploy, deploy_ready, deployment_of, follow, id_of, run, script, statuses, with},
};

/// The one that comes second is told who was first; only a person may take the host over.
#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn two_controllers_at_one_host_at_the_same_time() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let mut controllers = Vec::new();
    for _ in 0..2 {
        let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
        controller.approve(host).await;
        let client = Client::stdio(&controller, Era::Session, "faults").await;
        controllers.push((controller, client));
    }
    let mut ids = Vec::new();
    for (_, client) in &mut controllers {
        let begun = client.call("deploy_edge_node", deployment_of(host, ONE, &["edge"])).await;
        ids.push(id_of(&begun, "deployment_id"));
    }
    let mut ends: Vec<Value> = Vec::new();
    for ((_, client), id) in controllers.iter_mut().zip(&ids) {
        ends.push(follow(client, id).await);
    }
    let won = ends.iter().position(|view| view["state"] == "ready").unwrap_or_else(|| panic!("{ends:#?}"));
    let lost = 1 - won;
    let failure = &ends[lost]["failure"];
    assert_eq!(ends[lost]["state"], "failed", "{:#}", ends[lost]);
    assert!(matches!(failure["code"].as_str(), Some("HostBusy" | "HostCheckFailed")), "{failure:#}");

    // Later it finds the other's node.
    let loser = &mut controllers[lost];
    let refused = deploy(&mut loser.1, deployment_of(host, ONE, &["edge"])).await;
    assert_eq!(
        (&refused["state"], &refused["failure"]["code"]),
        (&json!("failed"), &json!("HostCheckFailed"))
    );
    let found = refused["findings"].as_array().expect("findings");
    assert!(found.iter().any(|finding| finding["code"] == "other_cluster"), "{refused:#}");
    let asked = with(deployment_of(host, ONE, &["edge"]), json!({ "take_over": true }));
    assert!(loser.1.refused("deploy_edge_node", asked).await.contains("--take-over"));
    assert_eq!(statuses(&mut controllers[won].1).await[ONE], "active", "the first one's node is untouched");

    let (key, port) = (host.key(), host.port.to_string());
    let mut words =
        vec!["deploy", &host.ip, "--ssh-user", &host.user, "--ssh-port", &port, "--ssh-key", &key];
    words.extend(["--identity", ONE, "--services", "node", "--take-over"]);
    let taken = controllers[lost].0.cli(&words).await;
    assert_eq!(taken.status, 0, "{taken:?}");
    assert_eq!(statuses(&mut controllers[lost].1).await[ONE], "active");
    assert_eq!(host.sh("docker ps -q").lines().count(), 1, "one stack");
}

/// Its key is another one after it was deployed: everything stops, and its stack is not touched.
#[tokio::test]
#[ignore = "long; run by tests/run --all"]
async fn a_host_that_is_another_one_when_it_is_deployed_again() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "faults").await;
    deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
    let everything = "docker ps --no-trunc --format '{{.ID}}'; find -L /opt/aitheros-edge -type f -not -path '*/run/*' \
                      -printf '%p %T@ %s\n' | sort";
    let before = host.sh(everything);
    {
        // sshd takes its keys anew a moment after it was told to.
        let _changed = Disturbed::new(
            host,
            "rm -f /etc/ssh/ssh_host_* && ssh-keygen -A >/dev/null && pkill -HUP -F /run/sshd.pid; \
             until ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep -qF \"$(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)\"; do sleep 0.05; done",
            "rm -rf /etc/ssh && cp -a /var/lib/testbed/ssh /etc/ssh && pkill -HUP -F /run/sshd.pid; \
             until ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep -qF \"$(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)\"; do sleep 0.05; done",
        );
        let refused = deploy(&mut client, deployment_of(host, ONE, &["edge", "new"])).await;
        assert_eq!(refused["state"], "failed", "{refused:#}");
        assert_eq!(refused["failure"]["code"], "HostKeyChanged", "{refused:#}");
        let connect =
            refused["steps"].as_array().expect("steps").iter().find(|step| step["name"] == "connect");
        assert_eq!(connect.expect("a step")["state"], "failed", "it stops before anything is sent");
    }
    assert_eq!(host.sh(everything), before);
    deploy_ready(&mut client, deployment_of(host, ONE, &["edge", "new"])).await;
}

/// A runtime whose next start breaks off as runc's do on a loaded machine; it then takes its own place again.
const BREAK_NEXT_START: &str = r#"
mv /usr/sbin/runc /usr/sbin/runc.whole
cat > /usr/sbin/runc.broken <<'END'
#!/bin/sh
case " $* " in *" create "*)
  mv /usr/sbin/runc.whole /usr/sbin/runc
  while [ "$1" != --log ]; do shift; done
  echo '{"level":"error","msg":"runc create failed: unable to start container process: waiting for init preliminary setup: read init-p: connection reset by peer"}' >> "$2"
  exit 1
esac
exec /usr/sbin/runc.whole "$@"
END
chmod +x /usr/sbin/runc.broken && mv /usr/sbin/runc.broken /usr/sbin/runc
"#;
const WHOLE_RUNTIME: &str = "rm -f /usr/sbin/runc.broken; if [ -e /usr/sbin/runc.whole ]; then mv /usr/sbin/runc.whole /usr/sbin/runc; fi";

/// Neither a deployment nor an execution fails for it.
#[tokio::test]
async fn a_start_that_the_hosts_runtime_breaks_off_is_made_again() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "faults").await;
    let is_whole_again = || host.holds("! [ -e /usr/sbin/runc.whole ]");

    let _disturbed = Disturbed::new(host, BREAK_NEXT_START, WHOLE_RUNTIME);
    let deployed = deploy_ready(&mut client, deployment_of(host, ONE, &["edge"])).await;
    assert!(is_whole_again(), "no start was broken off");
    let steps = deployed["steps"].as_array().expect("steps");
    let start = steps.iter().find(|step| step["name"] == "start").expect("a start");
    assert!(start["evidence"].as_str().is_some_and(|text| text.contains("broke off")), "{start:#}");

    host.sh(BREAK_NEXT_START);
    let ended = run(&mut client, with(script("cat", &["edge"]), json!({ "input": "once\n" }))).await;
    assert!(is_whole_again(), "no start was broken off");
    assert_eq!(ended.view["state"], "succeeded", "{:#}", ended.view);
    assert_eq!(ended.stdout, "once\n");
}
