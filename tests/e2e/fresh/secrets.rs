//! A deployment that needs every kind of secret, each marked, and a search for the marks in all that is
//! left behind or could be seen on the way.

use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use base64::Engine as _;
use serde_json::json;

use crate::support::{
    cli,
    controller::{Controller, Setup},
    files,
    fleet::{Fresh, ONE, fresh},
    mcp::{Client, Era},
    testbed::Host,
    work::{deployment_of, follow, id_of, with},
};

const TOKEN: &str = "markerTunnelToken5Zq81";
const PASSWORD: &str = "markerRegistryPassword7Rw32";
const PASSPHRASE: &str = "markerKeyPassphrase9Kd64";
const REGISTRY_USER: &str = "deployer";

/// The command lines of all processes of this machine, looked at again and again. The hosts are containers
/// here, so that theirs are among them.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<Vec<u8>>>,
}

impl Sampler {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !told.load(Ordering::Relaxed) {
                let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
                // One that has ended meanwhile has no command line.
                seen.extend(
                    processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok()),
                );
            }
            seen
        });
        Self { stop, thread }
    }

    fn seen(self) -> BTreeSet<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it ends")
    }
}

/// A key that only its passphrase opens, admitted on the host.
fn encrypted_key(dir: &Path, host: &Host) -> String {
    let path = dir.join("id_ed25519").display().to_string();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", PASSPHRASE, "-C", "e2e", "-f", &path])
        .status()
        .expect("ssh-keygen");
    assert!(made.success());
    let public = std::fs::read_to_string(format!("{path}.pub")).expect("the public half");
    host.sh(&format!("echo '{}' >> /root/.ssh/authorized_keys", public.trim()));
    path
}

/// cloudflared's own image cannot be had here: this one has its name and says that it is connected.
const CLOUDFLARED: &str = r#"set -e
cat >/tmp/ready <<'READY'
#!/bin/sh
while read -r line && [ "${#line}" -gt 1 ]; do :; done
printf 'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"status":200,"readyConnections":4}'
READY
chmod 755 /tmp/ready
docker create --name stand-in busybox:testbed
docker cp /tmp/ready stand-in:/ready
docker commit --change 'ENTRYPOINT ["sh","-c","trap exit TERM; nc -ll -p 20241 -e /ready & wait"]' stand-in cloudflare/cloudflared:latest
docker rm stand-in; rm /tmp/ready"#;

#[tokio::test]
async fn secrets_reach_what_needs_them_and_nothing_else() {
    let Fresh { hosts, _machines } = fresh().await;
    let host = &hosts[0];
    let image = host.registry(REGISTRY_USER, PASSWORD);
    host.sh(CLOUDFLARED);
    let keys = tempfile::tempdir().expect("a directory");
    let key = encrypted_key(keys.path(), host);
    let mut setup = Setup::for_hosts(&hosts);
    setup.deploy = setup.deploy.replace("key_dirs: [", &format!("key_dirs: [{}, ", keys.path().display()));
    let registry = image.split('/').next().expect("a registry");
    setup.deploy.push_str(&format!(
        "\n    key_passphrase: secret:key\n    registries: {{'{registry}': {{username: {REGISTRY_USER}, password: secret:registry}}}}"
    ));
    let controller = Controller::start(&setup).await;

    let sampler = Sampler::start();
    let mut said = Vec::new();
    for (name, value) in [("tunnel", TOKEN), ("registry", PASSWORD), ("key", PASSPHRASE)] {
        let set = cli::run(&controller.data, &["secret", "set", name], &[], value.as_bytes()).await;
        said.push(set.succeeded());
    }
    controller.approve(host).await;
    let mut client = Client::stdio(&controller, Era::Session, "secrets").await;
    let arguments = with(
        deployment_of(host, ONE, &["edge"]),
        json!({ "ssh_key_path": key, "tunnel_token": "secret:tunnel", "image": image }),
    );
    let planned = client.call("deploy_edge_node", with(arguments.clone(), json!({ "dry_run": true }))).await;
    assert_eq!(planned["plan"]["tunnel_token_from"], json!({ "secret": "tunnel" }), "{planned:#}");
    let started = client.call("deploy_edge_node", arguments).await;
    let id = id_of(&started, "deployment_id");
    let ready = follow(&mut client, &id).await;
    assert_eq!(ready["state"], "ready", "{ready:#}");

    // Everything that can be asked for.
    said.extend([planned, started, ready].map(|view| view.to_string()));
    for (tool, arguments) in [
        ("list_deployments", json!({})),
        ("list_peers", json!({})),
        ("get_node_logs", json!({ "node_id": ONE })),
        ("get_deployment_status", json!({ "deployment_id": id })),
    ] {
        said.push(client.call(tool, arguments).await.to_string());
    }
    let unknown = with(deployment_of(host, ONE, &[]), json!({ "tunnel_token": "secret:other" }));
    let unknown = client.refused("deploy_edge_node", unknown).await;
    assert!(unknown.contains("other") && !unknown.contains("registry"), "{unknown}");
    said.push(unknown);
    said.extend(client.listener().messages().into_iter().map(|(_, message)| message));
    for path in
        ["/deployments", &format!("/deployments/{id}"), "/v1/config", "/v1/cluster/status", "/v1/hosts"]
    {
        said.push(controller.api(path).await.expect("an answer").to_string());
    }
    let listed = controller.api("/v1/secrets").await.expect("the list");
    let used: Vec<&str> = listed["secrets"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|secret| secret["used_for"].as_str().expect("what it was used for"))
        .collect();
    assert_eq!(
        used,
        ["passphrase of SSH keys", &format!("registry {registry}"), &format!("tunnel token of {ONE}")]
    );
    said.push(listed.to_string());
    said.push(controller.text(&format!("/deployments/{id}/events"), |_| false).await);
    said.push(controller.text("/metrics", |_| false).await);
    let command_lines = sampler.seen();

    let pair = format!("{REGISTRY_USER}:{PASSWORD}");
    let login = base64::engine::general_purpose::STANDARD.encode(pair);
    let marks = [TOKEN, PASSWORD, PASSPHRASE, login.as_str()];
    // The sampler saw what a secret was close to.
    for near in ["--config\0/dev/shm/aegis-login.", "secret\0set\0tunnel"] {
        assert!(command_lines.iter().any(|line| files::holds(line, near)), "{near:?} was not seen");
    }
    for mark in marks {
        let line = command_lines.iter().find(|line| files::holds(line, mark));
        assert_eq!(line.map(|line| String::from_utf8_lossy(line)), None, "{mark} in a command line");
        let answer = said.iter().find(|answer| answer.contains(mark));
        assert_eq!(answer, None, "{mark} in an answer");
        for (path, content) in controller.everything_written() {
            assert!(!files::holds(&content, mark), "{mark} in {}", path.display());
        }
        let script = format!(
            "grep -rlF -- {mark} /opt /root /home /tmp /run /dev/shm /etc /var/log /var/tmp 2>/dev/null | grep -v '^/run/docker/' || true"
        );
        let found = host.sh(&script);
        let expected = match mark == TOKEN {
            true => format!("/opt/aitheros-edge/releases/{id}/.env\n"),
            false => String::new(),
        };
        assert_eq!(found, expected, "{mark} on the host");
        let script = format!(
            "for c in $(docker ps -aq); do docker inspect \"$c\" | grep -qF -- {mark} && docker inspect -f '{{{{.Name}}}}' \"$c\"; done; true"
        );
        let expected = if mark == TOKEN { "/aitheros-edge-cloudflared-1\n" } else { "" };
        assert_eq!(host.sh(&script), expected, "{mark} in a container");
    }
    assert_eq!(host.sh(&format!("stat -c %a /opt/aitheros-edge/releases/{id}/.env")), "600\n");
}
