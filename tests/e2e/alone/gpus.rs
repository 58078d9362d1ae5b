//! GPUs that a node finds itself, with a stand-in for `nvidia-smi` in its `PATH`.

use std::{fs, os::unix::fs::PermissionsExt as _};

use serde_json::{Value, json};

use crate::support::{
    IMAGE,
    controller::{Controller, Setup},
    mcp::{Client, Era},
};

const STAND_IN: &str = include_str!("../stand_ins/nvidia-smi");

/// Starts a node on a machine with an A100 in two MIG devices and a T4. The engine of this machine has no nvidia
/// runtime: what executions may have is the operator's word.
async fn started(resources: &'static str) -> (Controller, tempfile::TempDir) {
    let programs = tempfile::tempdir().expect("a directory");
    let program = programs.path().join("nvidia-smi");
    fs::write(&program, STAND_IN).expect("the program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").expect("PATH"));
    let environment = vec![("PATH", path), ("STAND_IN_MACHINE", "mig".to_owned())];
    (Controller::start(&Setup { resources, environment, ..Setup::default() }).await, programs)
}

async fn peer(controller: &Controller) -> Value {
    let mut client = Client::stdio(controller, Era::Session, "gpus").await;
    client.call("list_peers", json!({ "response_format": "detailed" })).await["peers"][0].clone()
}

#[tokio::test]
async fn node_reports_each_gpu_and_mig_device() {
    let (controller, _programs) = started("{gpu: true}").await;
    let peer = peer(&controller).await;
    let gpus = peer["gpu_devices"].as_array().expect("devices").iter();
    let gpus = gpus.map(|gpu| format!("{} {} {}", gpu["name"], gpu["memory_mb"], gpu["in_use"]));
    assert_eq!(
        Vec::from_iter(gpus),
        [
            r#""NVIDIA A100-SXM4-40GB MIG 3g.20gb" 17166 false"#,
            r#""NVIDIA A100-SXM4-40GB MIG 1g.5gb" 4291 false"#,
            r#""Tesla T4" 15360 false"#,
        ]
    );
    assert_eq!((&peer["free"]["gpus"], &peer["free"]["vram_gb"]), (&json!(3), &json!(35)), "{peer:#}");
    let table = controller.cli(&["node", "peers"]).await.succeeded();
    assert!(table.contains("3/3: 1 NVIDIA A100-SXM4-40GB MIG 3g.20gb 17166 MB"), "{table}");
    // The sum is enough, and no single device is.
    let request = json!({
        "image": IMAGE, "command": ["true"], "queue": false, "resources": { "gpus": 1, "vram_gb": 20 },
    });
    let refused = controller.post("/v1/executions", &request).await.expect("an answer");
    let why = refused["message"].as_str().expect("a refusal");
    assert!(why.contains("needs 1 GPUs with 20480 MiB vram each, has 0 in all"), "{refused:#}");
}

#[tokio::test]
async fn configuration_bounds_found_gpus() {
    let (controller, _programs) = started("{gpu_count: 2}").await;
    let bounded = peer(&controller).await;
    assert_eq!(bounded["gpu_devices"].as_array().map(Vec::len), Some(2), "{bounded:#}");
    let (controller, _programs) = started("{gpu_count: 0}").await;
    let off = peer(&controller).await;
    assert_eq!((&off["capacity"]["gpus"], &off["gpu_devices"]), (&json!(0), &json!([])), "{off:#}");
    // Without a word of the operator's the engine must have the runtime.
    let (controller, _programs) = started("{}").await;
    assert_eq!(peer(&controller).await["capacity"]["gpus"], 0);
}
