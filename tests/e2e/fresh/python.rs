//! The journey with the official Python client.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    cli::BINARY,
    controller::{Controller, Setup},
    fleet::{Fresh, ONE, TWO, fresh},
    poll::within,
    testbed::python,
    work::deployment_of,
};

const JOURNEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/journey.py");
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn the_official_python_client_makes_the_journey() {
    let Fresh { hosts, _machines } = fresh().await;
    let controller = Controller::start(&Setup::for_hosts(&hosts)).await;
    for host in &hosts {
        controller.approve(host).await;
    }
    let task = json!({
        "command": BINARY,
        "environment": {"AEGIS_DATA_DIR": controller.data},
        "deployments": [deployment_of(&hosts[0], ONE, &["edge", "one"]), deployment_of(&hosts[1], TWO, &["edge", "two"])],
    });
    let ran = Command::new(python()).arg(JOURNEY).arg(task.to_string()).kill_on_drop(true).output();
    let output = within("the journey in Python", LIMIT, ran).await.expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let seen: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(seen["states"], json!(["ready", "ready"]), "{seen:#}");
    assert_eq!(seen["peers"], json!({ONE: "active", TWO: "active"}), "{seen:#}");
    assert_eq!(seen["output"], json!(["hello on edge-one\n", 5]), "{seen:#}");
    assert_eq!(seen["while_drained"], json!([TWO, TWO]), "{seen:#}");
    assert_eq!(seen["after_resume"], json!(ONE), "{seen:#}");
    assert_eq!(seen["error"]["is_error"], json!(true), "{seen:#}");
    assert!(seen["error"]["text"].as_str().unwrap().contains("no-such-execution"), "{seen:#}");
    let looked = &seen["looked"];
    let listed = looked["resources"].as_array().unwrap();
    assert!(listed.contains(&json!("peers://")) && listed.len() > 4, "{looked:#}");
    assert_eq!((&looked["peers"][ONE], &looked["peers"][TWO]), (&json!("active"), &json!("active")));
    assert!(looked["prompt"].as_str().unwrap().contains("Node edge-one: status active"), "{looked:#}");
    assert_eq!(looked["completed"], json!([ONE]), "{looked:#}");
    assert!(seen["progress"].as_u64().unwrap() > 0, "no progress was heard: {seen:#}");
}
