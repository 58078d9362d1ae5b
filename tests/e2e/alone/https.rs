//! HTTP off loopback: under TLS, with the same rules.

use std::{fs::OpenOptions, io::Write as _, path::PathBuf, time::Duration};

use http::StatusCode;
use rcgen::{CertifiedKey, KeyPair};

use crate::support::{
    controller::{Controller, Setup},
    http::{send_tls, try_send},
    poll::until,
};

const NAME: &str = "aegis.example";

/// Limit for a replaced certificate: a minute on file systems without notifications, and less here.
const REPLACED_LIMIT: Duration = Duration::from_secs(20);

/// Starts a daemon that serves HTTPS on all addresses; returns its port on loopback.
async fn under_tls() -> (Controller, String, CertifiedKey<KeyPair>) {
    let mut controller = Controller::prepare(&Setup::default());
    let made = made();
    let [cert, key] = files(&controller);
    std::fs::write(&cert, made.cert.pem()).expect("the certificate");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("its key");
    let mut config = OpenOptions::new().append(true).open(controller.config()).expect("the configuration");
    write!(
        config,
        "  mcp:\n    bind_address: 0.0.0.0\n    allowed_hosts: [{NAME}]\n    tls: {{cert: {}, key: {}}}\n",
        cert.display(),
        key.display()
    )
    .expect("the configuration");
    drop(config);
    controller.start_again().await;
    let url = controller.address().expect("HTTP is served");
    let port = url.strip_prefix("https://0.0.0.0:").unwrap_or_else(|| panic!("{url}"));
    let address = format!("127.0.0.1:{port}");
    (controller, address, made)
}

fn made() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate")
}

fn files(controller: &Controller) -> [PathBuf; 2] {
    ["http.crt", "http.key"].map(|name| controller.data.with_file_name(name))
}

/// Returns whether new connections get this certificate.
async fn shows(address: &str, made: &CertifiedKey<KeyPair>) -> bool {
    let certificate = (NAME, made.cert.der().clone());
    send_tls(address, certificate, "/health/live", &[("host", NAME)]).await.is_ok()
}

#[tokio::test]
async fn off_loopback_http_is_under_tls_and_asks_for_the_token() {
    let (controller, address, made) = under_tls().await;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let reply = send_tls(&address, (NAME, made.cert.der().clone()), path, headers).await;
        reply.expect("an answer over TLS").status
    };
    let token = format!("Bearer {}", controller.token());
    let bearer = ("authorization", token.as_str());
    assert_eq!(ask("/v1/cluster/nodes", &[("host", NAME), bearer]).await, StatusCode::OK);
    assert_eq!(ask("/v1/cluster/nodes", &[("host", NAME)]).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("/v1/cluster/nodes", &[("host", "evil.example"), bearer]).await, StatusCode::FORBIDDEN);
    assert_eq!(ask("/health/live", &[("host", NAME)]).await, StatusCode::OK);
    let plain = try_send(&address, "/health/live", &[("host", NAME)]).await;
    assert!(plain.is_err(), "plaintext was answered: {plain:?}");
    let config = controller.cli(&["mcp", "--print-config", "-o", "json"]).await.json();
    let url = controller.address().expect("HTTP is served");
    assert_eq!(config["http_url"], format!("{url}/mcp"));
}

#[tokio::test]
async fn replaced_certificate_is_served_and_broken_one_is_logged() {
    let (controller, address, first) = under_tls().await;
    let [cert, key] = files(&controller);
    assert!(shows(&address, &first).await);
    // Truncated, as by a full disk.
    std::fs::write(&cert, &first.cert.pem()[..100]).expect("the certificate");
    until("the broken one is told", REPLACED_LIMIT, async || {
        controller.log().contains("the certificate of HTTP stays as it is").then_some(())
    })
    .await;
    assert!(controller.log().contains("spec.mcp.tls"), "{}", controller.log());
    assert!(shows(&address, &first).await, "the old one stays in use");

    let second = made();
    std::fs::write(&key, second.signing_key.serialize_pem()).expect("its key");
    std::fs::write(&cert, second.cert.pem()).expect("the certificate");
    until("the new one is shown", REPLACED_LIMIT, async || shows(&address, &second).await.then_some(()))
        .await;
    assert!(!shows(&address, &first).await, "the old one is shown no more");
    assert!(!controller.log().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn plain_http_off_loopback_needs_the_setting_and_is_logged() {
    let mut controller = Controller::prepare(&Setup { mcp: "{bind_address: 0.0.0.0}", ..Setup::default() });
    let config = controller.config();
    let words = ["serve", "--config", config.to_str().expect("UTF-8")];
    let refused = controller.cli(&words).await;
    assert_ne!(refused.status, 0, "{refused:?}");
    assert!(refused.stderr.contains("spec.mcp.bind_address"), "{refused:?}");
    assert!(refused.stderr.contains("allow_insecure_bind"), "{refused:?}");

    let text = std::fs::read_to_string(&config).expect("the configuration");
    let allowed = text.replace("network: {port: 0}", "network: {port: 0, allow_insecure_bind: true}");
    assert_ne!(allowed, text);
    std::fs::write(&config, allowed).expect("the configuration");
    controller.start_again().await;
    let served = controller.address().expect("HTTP is served");
    let port = served.strip_prefix("0.0.0.0:").unwrap_or_else(|| panic!("{served}"));
    let address = format!("127.0.0.1:{port}");
    let reply = try_send(&address, "/v1/cluster/nodes", &[("host", &address)]).await.expect("an answer");
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "the token is asked for all the same");
    assert!(controller.log().contains("without TLS beyond this machine"), "{}", controller.log());
}
