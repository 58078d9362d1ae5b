//! The Inspector, which checks the schemas strictly and reads everything available.

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    cli::BINARY,
    controller::{Controller, Setup},
    npm,
    poll::within,
};

const INSPECTOR: &str = "@modelcontextprotocol/inspector/clients/launcher/build/index.js";
const LIMIT: Duration = Duration::from_secs(60);
const ERAS: [&str; 2] = ["legacy", "modern"];
/// Requests to the Inspector, and the list in each answer.
const ASKED: [(&[&str], &str); 5] = [
    // Findings of this one go to stderr.
    (&["tools/list", "--strict"], "tools"),
    (&["resources/list"], "resources"),
    (&["resources/templates/list"], "resourceTemplates"),
    (&["resources/read", "--uri", "peers://"], "contents"),
    (&["prompts/list"], "prompts"),
];

async fn inspect(controller: &Controller, server: &[&str]) {
    for era in ERAS {
        for (asked, listed) in ASKED {
            let words = [server, &["--protocol-era", era, "--format", "json", "--method"], asked].concat();
            let mut inspector = npm::script_of_package(INSPECTOR);
            inspector.arg("--cli").args(&words).current_dir(&controller.data);
            // Where it keeps what it remembers.
            inspector.env("HOME", &controller.data);
            let output = within("the Inspector", LIMIT, inspector.output()).await.expect("it starts");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{words:?}: {stderr}");
            let said = stderr.to_lowercase();
            assert!(!said.contains("warning") && !said.contains("error"), "{words:?}: {stderr}");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            let count = answer["result"][listed].as_array().map_or(0, Vec::len);
            assert!(count > 0, "{words:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_inspector_finds_nothing_over_stdio() {
    let controller = Controller::start(&Setup::default()).await;
    // It starts servers with little of its own environment.
    let directory = format!("AEGIS_DATA_DIR={}", controller.data.display());
    inspect(&controller, &[BINARY, "mcp", "-e", &directory]).await;
}

#[tokio::test]
async fn the_inspector_finds_nothing_over_http() {
    let controller = Controller::start(&Setup::default()).await;
    let url = format!("http://{}/mcp", controller.address().expect("HTTP is served"));
    let token = format!("Authorization: Bearer {}", controller.token());
    inspect(&controller, &[&url, "--transport", "http", "--header", &token]).await;
}
