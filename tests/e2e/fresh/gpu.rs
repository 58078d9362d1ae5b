//! GPUs from the host's checks to a container's device request, with stand-ins for NVIDIA's programs on the
//! host: Docker, its runtimes and its hooks are real, the devices are not.

use serde_json::{Value, json};

use crate::support::{
    IMAGE,
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, TWO, fresh},
    mcp::{Client, Era},
    poll::until,
    testbed::{Disturbed, Host, RESTART_DOCKER},
    work::{RUN_LIMIT, deploy_ready, deployment_of, id_of, read_to_end, with},
};

const STAND_INS: [(&str, &str); 3] = [
    ("nvidia-smi", include_str!("../stand_ins/nvidia-smi")),
    ("nvidia-container-runtime", include_str!("../stand_ins/nvidia-container-runtime")),
    ("nvidia-container-runtime-hook", include_str!("../stand_ins/nvidia-container-runtime-hook")),
];
/// GPUs of the machine that the stand-in answers for.
const GPUS: [&str; 2] =
    ["GPU-11111111-0a10-4000-8000-000000000001", "GPU-11111111-0a10-4000-8000-000000000002"];
const UNDO: &str = "rm -f /usr/local/bin/nvidia-* /etc/docker/daemon.json /var/log/nvidia-hook.log";

fn with_gpus(host: &Host) -> Disturbed<'_> {
    let programs = STAND_INS.map(|(name, text)| {
        format!("cat >/usr/local/bin/{name} <<'END OF PROGRAM'\n{text}END OF PROGRAM\nchmod 755 /usr/local/bin/{name}\n")
    });
    let runtimes = json!({ "runtimes": { "nvidia": { "path": "/usr/local/bin/nvidia-container-runtime" } } });
    // Docker looks for its GPU driver as it starts.
    let script = format!(
        "{}mkdir -p /etc/docker; printf '%s' '{runtimes}' >/etc/docker/daemon.json\n{RESTART_DOCKER}",
        programs.concat()
    );
    Disturbed::new(host, &script, UNDO)
}

#[tokio::test]
async fn gpus_of_a_host_are_found_counted_and_handed_out() {
    let Fresh { hosts, _machines } = fresh().await;
    let _gpus = with_gpus(&hosts[0]);
    assert!(!hosts[0].holds("nvidia-smi"), "the stand-in answers one question alone");
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    let mut client = Client::stdio(&controller, Era::Session, "gpu").await;
    for host in &hosts {
        controller.approve(host).await;
    }
    let arguments = deployment_of(&hosts[0], ONE, &["edge"]);
    let planned = client.call("deploy_edge_node", with(arguments.clone(), json!({ "dry_run": true }))).await;
    assert_eq!(planned["plan"]["gpus"].as_array().map(Vec::len), Some(2), "{planned:#}");
    deploy_ready(&mut client, arguments).await;
    deploy_ready(&mut client, deployment_of(&hosts[1], TWO, &["edge"])).await;
    let config = hosts[0].sh("cat /opt/aitheros-edge/current/aegis-config.yaml");
    assert!(config.contains("gpu_count: 2") && config.contains("vram_gb: 44"), "{config}");
    assert!(GPUS.iter().all(|uuid| config.contains(uuid)), "{config}");
    let free = async |client: &mut Client, node: &str| -> Value {
        let answer = client.call("list_peers", json!({ "response_format": "detailed" })).await;
        let peers = answer["peers"].as_array().expect("peers").clone();
        peers.into_iter().find(|peer| peer["node_id"] == node).expect("the node")
    };
    let peer = free(&mut client, ONE).await;
    assert_eq!(
        (&peer["capacity"]["gpus"], &peer["capacity"]["vram_gb"]),
        (&json!(2), &json!(44)),
        "{peer:#}"
    );
    let uuids = peer["gpu_devices"].as_array().expect("devices").iter().map(|gpu| gpu["uuid"].as_str());
    assert_eq!(Vec::from_iter(uuids), GPUS.map(Some), "{peer:#}");
    assert_eq!(free(&mut client, TWO).await["capacity"]["gpus"], 0);

    // Placed by count and by memory, and the container is told of its devices.
    let words = [
        "run",
        "--image",
        IMAGE,
        "--gpu=2",
        "--vram-gb",
        "44",
        "--",
        "sh",
        "-c",
        "echo $NVIDIA_VISIBLE_DEVICES",
    ];
    assert_eq!(controller.cli(&words).await.succeeded(), format!("{}\n", GPUS.join(",")));
    let hooks = hosts[0].sh("cat /var/log/nvidia-hook.log");
    let named: Vec<_> = hooks.lines().collect();
    // Docker names the devices, and so does the container's own variable.
    let expected = format!("NVIDIA_VISIBLE_DEVICES={}", GPUS.join(","));
    assert!(!named.is_empty() && named.iter().all(|line| *line == expected), "{hooks}");
    let words = ["run", "--image", IMAGE, "--gpu", "--output", "json", "--", "true"];
    assert_eq!(controller.cli(&words).await.json()["node_id"], ONE);
    // Two at once have one each, and the worker still knows which after it was killed.
    let one_gpu = json!({
        "image": IMAGE, "resources": { "gpus": 1 }, "wait_seconds": 0,
        "command": ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; sleep 600"],
    });
    let mut ids = Vec::new();
    for kill_first in [false, true] {
        if kill_first {
            hosts[0].sh("kill -KILL $(pgrep -x aegis)");
        }
        let id = id_of(&client.call("submit_execution", one_gpu.clone()).await, "execution_id");
        until("it has a device", RUN_LIMIT, async || {
            let view = client.call("get_execution", json!({ "execution_id": id })).await;
            view["output"]["stdout"].as_str().filter(|text| !text.is_empty()).map(drop)
        })
        .await;
        ids.push(id);
    }
    let mut devices = Vec::new();
    for id in &ids {
        client.call("cancel_execution", json!({ "execution_id": id })).await;
        devices.push(read_to_end(&mut client, id).await.stdout);
    }
    devices.sort();
    assert_eq!(devices, GPUS.map(|uuid| format!("{uuid}\n")));
    // Who asks for none gets none, there too.
    let words =
        ["run", "--image", IMAGE, "--node", ONE, "--", "sh", "-c", "echo none: $NVIDIA_VISIBLE_DEVICES"];
    assert_eq!(controller.cli(&words).await.succeeded(), "none: void\n");
    for (more, words) in [
        (["--gpu=3", "--vram-gb=1"], "needs 3 gpus"),
        (["--gpu=1", "--vram-gb=23"], "needs 1 GPUs with 23552 MiB vram each"),
    ] {
        let answer = controller.cli(&[&["run", "--image", IMAGE][..], &more, &["--", "true"]].concat()).await;
        assert!(answer.status == 30 && answer.failed().contains(words), "{answer:?}");
    }
}
