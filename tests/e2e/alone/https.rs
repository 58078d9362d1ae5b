//! HTTP off loopback: under TLS, with the same rules.

use std::{fs::OpenOptions, io::Write as _};

use http::StatusCode;

use crate::support::{
    controller::{Controller, Setup},
    http::{send_tls, try_send},
};

const NAME: &str = "aegis.example";

#[tokio::test]
async fn off_loopback_http_is_under_tls_and_asks_for_the_token() {
    let mut controller = Controller::prepare(&Setup::default());
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
    let (cert, key) =
        (controller.data.with_file_name("http.crt"), controller.data.with_file_name("http.key"));
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
    assert_eq!(config["http_url"], format!("{url}/mcp"));
}
