//! Unsuitable hosts, which are rejected with a remedy before anything is changed.

use serde_json::{Value, json};

use crate::support::{
    controller::{Controller, Setup},
    files,
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    testbed::{Disturbed, Host},
    work::{deploy, deploy_ready, deployment_of, statuses, with},
};

/// A marker that is found wherever it leaks.
const TUNNEL_TOKEN: &str = "eyJ-e2e-tunnel-token-0123456789";

struct Bench {
    controller: Controller,
    client: Client,
    fresh: Fresh,
}

async fn bench(deploy: &str) -> Bench {
    let fresh = fresh().await;
    let mut setup = Setup::for_hosts(&fresh.hosts);
    setup.deploy.push_str(deploy);
    let controller = Controller::start(&setup).await;
    let client = Client::stdio(&controller, Era::Session, "refused").await;
    Bench { controller, client, fresh }
}

impl Bench {
    fn host(&self) -> &Host {
        &self.fresh.hosts[0]
    }

    /// Expects a rejection or a failed deployment, with an error that contains all of `words`, a remedy, and no trace
    /// on the host.
    async fn refuses(&mut self, changes: Value, words: &[&str]) {
        let host = self.host().clone();
        let before = host.traces();
        let arguments =
            with(deployment_of(&host, ONE, &["edge"]), with(json!({"wait_seconds": 30}), changes));
        let text = self.client.end_of_bad(arguments).await;
        for word in words {
            assert!(text.contains(word), "\"{word}\" is not in: {text}");
        }
        assert_eq!(host.traces(), before, "the host was changed: {text}");
        assert!(!statuses(&mut self.client).await.contains_key(ONE), "a node was left: {text}");
    }
}

impl Client {
    async fn end_of_bad(&mut self, arguments: Value) -> String {
        match self.attempt("deploy_edge_node", arguments).await {
            Err(text) => text,
            Ok(started) => {
                let id = started["deployment_id"].as_str().expect("an id").to_owned();
                let view = crate::support::work::follow(self, &id).await;
                assert_eq!(view["state"], "failed", "{view:#}");
                let failure = &view["failure"];
                assert!(failure["remedy"].is_string(), "no remedy: {view:#}");
                format!("{} What to do: {}", failure["message"], failure["remedy"])
            }
        }
    }
}

#[tokio::test]
async fn a_host_that_no_person_admitted_or_that_is_another_now() {
    let mut bench = bench("").await;
    let ip = bench.host().ip.clone();
    bench.refuses(json!({}), &[&ip, "aegis host approve"]).await;
    let wrong =
        ["host", "approve", &ip, "--fingerprint", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"];
    let answer = bench.controller.cli(&wrong).await;
    assert_ne!(answer.status, 0, "another fingerprint was taken for the host's");
    bench.refuses(json!({}), &[&ip, "aegis host approve"]).await;

    bench.controller.approve(&bench.fresh.hosts[0]).await;
    {
        let host = bench.host().clone();
        let _changed = Disturbed::new(
            &host,
            "rm -f /etc/ssh/ssh_host_* && ssh-keygen -A >/dev/null && pkill -HUP -F /run/sshd.pid",
            "rm -rf /etc/ssh && cp -a /var/lib/testbed/ssh /etc/ssh && pkill -HUP -F /run/sshd.pid",
        );
        let new = host.fingerprint();
        bench.refuses(json!({}), &[&ip, "key", &new]).await;
    }
    // Another port is another host.
    bench.refuses(json!({"ssh_port": 1}), &["aegis host approve"]).await;
}

#[tokio::test]
async fn a_host_whose_key_nobody_knows() {
    let fresh = fresh().await;
    let mut setup = Setup::for_hosts(&fresh.hosts);
    // The configuration admits the host; its key is another matter.
    let known = fresh.hosts[0].known_hosts_path.display().to_string();
    setup.deploy = setup.deploy.replace(&known, "/dev/null") + "\n    approved_hosts: ['10.*']";
    let controller = Controller::start(&setup).await;
    let client = Client::stdio(&controller, Era::Session, "refused").await;
    let mut bench = Bench { controller, client, fresh };
    let fingerprint = bench.host().fingerprint();
    bench.refuses(json!({}), &[&fingerprint, "aegis host approve"]).await;
    // Asking twice does not make it known.
    bench.refuses(json!({}), &[&fingerprint, "aegis host approve"]).await;
}

#[tokio::test]
async fn a_host_that_lacks_what_a_deployment_needs() {
    let mut bench = bench("").await;
    let host = bench.host().clone();
    bench.controller.approve(&host).await;

    let other_key = bench.controller.data.with_file_name("other_key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&other_key)
        .status()
        .expect("ssh-keygen");
    assert!(made.success());
    bench.refuses(json!({"ssh_key_path": other_key}), &["other_key", "key_dirs"]).await;
    bench.refuses(json!({"ssh_key_path": "/etc/shadow"}), &["/etc/shadow", "key_dirs"]).await;
    bench.refuses(json!({"ssh_user": "nobody"}), &["nobody", "key"]).await;
    bench.refuses(json!({"ssh_user": "plain"}), &["docker"]).await;
    {
        let _stopped = Disturbed::new(
            &host,
            "touch /run/hold-dockerd; pkill -x dockerd; while pgrep -x dockerd; do sleep 0.05; done",
            "rm -f /run/hold-dockerd; until docker version >/dev/null 2>&1; do sleep 0.1; done",
        );
        let arguments = with(deployment_of(&host, ONE, &[]), json!({"wait_seconds": 30}));
        let text = bench.client.end_of_bad(arguments).await;
        assert!(text.contains("Docker"), "{text}");
    }
    assert_eq!(host.traces(), "");
    {
        let plugin = "d=$(dirname $(find /usr -name docker-compose -path '*cli-plugins*'))";
        let _taken = Disturbed::new(
            &host,
            &format!("{plugin}; mv $d/docker-compose /root/compose.away; echo $d >/root/compose.place"),
            "mv /root/compose.away $(cat /root/compose.place)/docker-compose; rm /root/compose.place",
        );
        bench.refuses(json!({}), &["Compose"]).await;
    }
    {
        let _old = Disturbed::new(
            &host,
            "mv /usr/bin/docker /usr/bin/docker.away; printf '#!/bin/sh\n/usr/bin/docker.away \"$@\" | sed s/26.1.5/19.03.15/g\n' \
             >/usr/bin/docker; chmod 755 /usr/bin/docker",
            "mv /usr/bin/docker.away /usr/bin/docker",
        );
        bench.refuses(json!({}), &["19.03", "20.10"]).await;
    }
    {
        let _gone = Disturbed::new(
            &host,
            "cp /usr/bin/docker /root/docker.away; rm /usr/bin/docker",
            "mv /root/docker.away /usr/bin/docker; chmod 755 /usr/bin/docker",
        );
        let arguments = with(deployment_of(&host, ONE, &[]), json!({"wait_seconds": 30}));
        let text = bench.client.end_of_bad(arguments).await;
        assert!(text.contains("Docker"), "{text}");
    }
    assert_eq!(host.traces(), "");
}

#[tokio::test]
async fn a_host_that_does_not_answer_or_has_too_little_disk() {
    let fresh = fresh().await;
    let mut setup = Setup::for_hosts(&fresh.hosts);
    setup.deploy = setup.deploy.replace("min_free_disk_gb: 1", "min_free_disk_gb: 1000000");
    // Admitted by the configuration: the key is in known_hosts.
    setup.deploy.push_str("\n    approved_hosts: ['10.*', '*.invalid']");
    let controller = Controller::start(&setup).await;
    let client = Client::stdio(&controller, Era::Session, "refused").await;
    let mut bench = Bench { controller, client, fresh };
    let ip = bench.host().ip.clone();
    bench.refuses(json!({"host": "no-such-host.invalid"}), &["no-such-host.invalid", "resolve"]).await;
    bench.refuses(json!({"ssh_port": 1}), &[&ip, "port 1", "refuses"]).await;
    bench.refuses(json!({}), &["free", "1000000 GB"]).await;
    // All findings at once.
    bench.refuses(json!({"ssh_user": "plain"}), &["1000000 GB", "docker"]).await;
    let arguments = with(deployment_of(bench.host(), ONE, &[]), json!({"dry_run": true}));
    let plan = bench.client.call("deploy_edge_node", arguments).await;
    assert!(plan.to_string().contains("1000000 GB"), "a dry run tells the findings too: {plan:#}");
    assert_eq!(bench.host().traces(), "");
}

#[tokio::test]
async fn identity_belongs_to_one_host_and_token_does_not_leak() {
    let mut bench = bench("").await;
    let [first, second] = bench.fresh.hosts.clone();
    bench.controller.approve(&first).await;
    bench.controller.approve(&second).await;
    deploy_ready(&mut bench.client, deployment_of(&first, ONE, &["edge"])).await;
    let arguments = with(deployment_of(&second, ONE, &["edge"]), json!({"wait_seconds": 30}));
    let text = bench.client.end_of_bad(arguments).await;
    assert!(text.contains(ONE) && text.contains(&first.ip), "{text}");
    assert_eq!(second.traces(), "");
    assert_eq!(statuses(&mut bench.client).await[ONE], "active");

    // The stack of this one cannot start: no image of cloudflared can be had here.
    let arguments = with(deployment_of(&second, "edge-tunnel", &[]), json!({"tunnel_token": TUNNEL_TOKEN}));
    let view = deploy(&mut bench.client, arguments).await;
    assert!(matches!(view["state"].as_str(), Some("failed" | "rolled_back")), "{view:#}");
    assert!(!view.to_string().contains(TUNNEL_TOKEN), "{view:#}");
    for bad in [json!("env:HOME"), json!("file:/etc/passwd"), json!(format!("{TUNNEL_TOKEN}\u{0}"))] {
        let arguments = with(deployment_of(&second, "edge-tunnel", &[]), json!({"tunnel_token": bad}));
        let text = bench.client.refused("deploy_edge_node", arguments).await;
        assert!(text.contains("tunnel_token") && !text.contains(TUNNEL_TOKEN), "{text}");
    }
    let list = bench.client.call("list_deployments", json!({})).await;
    assert!(!list.to_string().contains(TUNNEL_TOKEN), "{list}");
    for (path, content) in bench.controller.everything_written() {
        assert!(!files::holds(&content, TUNNEL_TOKEN), "the token is in {}", path.display());
    }
    let left = second.sh("grep -rls eyJ-e2e-tunnel /opt /root /tmp /run /var/log 2>/dev/null || true");
    assert_eq!(left, "", "the token of a deployment that failed was left on the host");
}
