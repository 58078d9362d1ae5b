//! Addresses that a container with a network reaches, on the engine of this machine.

use std::{collections::BTreeSet, net::TcpListener, process::Command, time::Duration};

use crate::support::{
    IMAGE,
    controller::{Controller, Setup},
    poll::until,
};

const NETWORK: &str = "aegis-e2e-network";
const GUARD_LIMIT: Duration = Duration::from_secs(20);

/// Network and images of a test, removed when dropped.
struct Engine {
    images: BTreeSet<String>,
}

impl Engine {
    fn new() -> Self {
        Self { images: node_images() }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        docker(&["network", "rm", NETWORK]);
        for image in node_images().difference(&self.images) {
            docker(&["rmi", image]);
        }
    }
}

fn docker(words: &[&str]) -> String {
    let output = Command::new("docker").args(words).output().expect("the docker command");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn node_images() -> BTreeSet<String> {
    let list =
        docker(&["images", "--filter", "label=aegis.image=node", "--format", "{{.Repository}}:{{.Tag}}"]);
    list.lines().map(str::to_owned).collect()
}

/// Tries the gateway of the network, where the listener of the test is, the metadata address and a private one, and
/// prints for each whether it was reached, why not, and the seconds that it took.
fn script(port: u16) -> String {
    format!(
        r#"gateway=$(ip route | sed -n 's/^default via \([^ ]*\) .*/\1/p')
for to in "gateway $gateway {port}" "metadata 169.254.169.254 80" "private 10.255.0.1 80"; do
    set -- $to
    begun=$(cut -d. -f1 /proc/uptime)
    answer=$(nc -w 9 "$2" "$3" </dev/null 2>&1) && answer=reached
    echo "$1: ${{answer##*: }} in $(($(cut -d. -f1 /proc/uptime) - begun)) s"
done
ip rule del pref 400 2>&1 | sed 's/.*: //'"#
    )
}

async fn reached(runtime: &'static str) -> String {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a listener on every address");
    let port = listener.local_addr().expect("its address").port();
    // Each connection is closed at once; the thread ends with the process.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let controller = Controller::start(&Setup { runtime, ..Setup::default() }).await;
    let words = ["run", "--image", IMAGE, "--network", "allow", "--", "sh", "-c", &script(port)];
    let output = controller.cli(&words).await.succeeded();
    let on_network = format!("network={NETWORK}");
    until("the guard is gone with its execution", GUARD_LIMIT, async || {
        docker(&["ps", "-aq", "--filter", &on_network]).is_empty().then_some(())
    })
    .await;
    output
}

#[tokio::test]
async fn surroundings_of_the_node_are_closed_unless_opened() {
    let _engine = Engine::new();
    let closed = reached("{container_network_mode: aegis-e2e-network}").await;
    let lines: Vec<_> = closed.lines().collect();
    assert_eq!(lines.len(), 4, "{closed}");
    for (line, what) in lines.iter().zip(["gateway", "metadata", "private"]) {
        // An error at once, and no silence until a timeout.
        let refused = ["0", "1"].map(|seconds| format!("{what}: Permission denied in {seconds} s"));
        assert!(refused.contains(&(*line).to_owned()), "{closed}");
    }
    assert_eq!(lines[3], "Operation not permitted", "the container cannot open it");
    let opened = reached(
        "{container_network_mode: aegis-e2e-network, policy: {allowed_networks: [10.0.0.0/9, 172.16.0.0/12, 192.168.0.0/16]}}",
    )
    .await;
    let lines: Vec<_> = opened.lines().collect();
    assert!(lines[0].starts_with("gateway: reached"), "{opened}");
    assert!(lines[1].starts_with("metadata: Permission denied"), "{opened}");
    assert!(lines[2].starts_with("private: Permission denied"), "{opened}");
}
