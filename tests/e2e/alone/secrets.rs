//! The operator's secrets: given by a person, and never shown.

use std::{path::Path, process::Stdio};

use http::{Method, StatusCode};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::support::{
    cli::{self, Answer, BINARY},
    controller::{Controller, Setup},
    http::send,
};

const PIPED: &str = "marker-piped-5a1";
const FROM_FILE: &str = "marker-file-\u{e9}-7c2\nsecond line";
const TYPED: &str = "marker-typed-9e3";

#[tokio::test]
async fn a_secret_is_set_in_three_ways_and_shown_in_none() {
    let mut controller = Controller::start(&Setup::default()).await;
    let set = async |words: &[&str], input: &str| -> Answer {
        cli::run(&controller.data, &[&["secret", "set"], words].concat(), &[], input.as_bytes()).await
    };
    let piped = set(&["piped"], &format!("{PIPED}\n")).await;
    let file = controller.data.with_file_name("value");
    std::fs::write(&file, format!("{FROM_FILE}\n")).unwrap();
    let from_file =
        set(&["from-file", "--from-file", &file.to_string_lossy(), "-o", "json"], "").await.json();
    std::fs::remove_file(&file).unwrap();
    let shown = typed(&controller.data, "typed").await;
    assert!(shown.contains("Value of typed") && shown.contains("is set"), "{shown}");

    let listed = controller.cli(&["secret", "list", "-o", "json"]).await.json();
    let names: Vec<&str> = listed["secrets"].as_array().unwrap().iter().map(name).collect();
    assert_eq!(names, ["from-file", "piped", "typed"]);
    let table = controller.cli(&["secret", "list"]).await.succeeded();
    assert!(table.contains("never"), "{table}");
    for bad in
        [set(&["Bad Name"], "x").await, set(&["empty"], "\n").await, set(&["a"], &"x".repeat(70_000)).await]
    {
        assert_eq!(bad.status, 2, "{}", bad.failed());
    }

    // Over HTTP there is no such thing, whoever asks.
    let address = controller.address().unwrap();
    let token = format!("Bearer {}", controller.token());
    let headers = [("host", address.as_str()), ("authorization", token.as_str())];
    for (method, path) in [
        (Method::GET, "/v1/secrets"),
        (Method::PUT, "/v1/secrets/piped"),
        (Method::DELETE, "/v1/secrets/piped"),
    ] {
        let reply = send(&address, method, path, &headers, "{\"value\":\"x\"}").await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{path}: {}", reply.body);
    }

    controller.stop().await;
    controller.start_again().await;
    let deleted = controller.cli(&["secret", "delete", "piped"]).await.succeeded();
    let gone = controller.cli(&["secret", "delete", "piped"]).await;
    assert!(gone.failed().contains("piped"), "{}", gone.stderr);
    let answers = [
        piped.succeeded(),
        from_file.to_string(),
        shown,
        listed.to_string(),
        table,
        deleted,
        gone.stdout.clone() + &gone.stderr,
    ];
    for marker in [PIPED, FROM_FILE, "second line", TYPED] {
        assert!(!answers.iter().any(|answer| answer.contains(marker)), "{marker} in {answers:?}");
        for (path, bytes) in controller.everything_written() {
            assert!(!holds(&bytes, marker), "{marker} in {}", path.display());
        }
    }
}

fn name(secret: &Value) -> &str {
    secret["name"].as_str().unwrap()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// Sets a secret on a separate terminal, and returns all text on that terminal.
async fn typed(data: &Path, name: &str) -> String {
    let command = format!("'{BINARY}' secret set {name}");
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--echo", "always", "--command", &command, "/dev/null"])
        .env("AEGIS_DATA_DIR", data)
        .current_dir(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("util-linux has script");
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = Vec::new();
    // What is typed before the question is thrown away, as the terminal is switched over.
    while !holds(&shown, ": ") {
        let read = tokio::io::AsyncReadExt::read_buf(&mut stdout, &mut shown).await.unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&shown));
    }
    stdin.write_all(format!("{TYPED}\n").as_bytes()).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut stdout, &mut shown).await.unwrap();
    assert!(child.wait().await.unwrap().success(), "{}", String::from_utf8_lossy(&shown));
    String::from_utf8_lossy(&shown).into_owned()
}
