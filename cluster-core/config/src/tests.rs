use aegis_fs::resolve_secret;
use aegis_types::{node::Role, placement::PlacementStrategy};

use super::{cluster_port::Listen, *};

/// Every configuration example of the published documents, as it stands; `...` is completed.
const EXAMPLES: [(&str, &str); 6] = [
    ("orchestrator", include_str!("examples/orchestrator.yaml")),
    ("edge", include_str!("examples/edge.yaml")),
    ("controller", include_str!("examples/controller.yaml")),
    ("worker", include_str!("examples/worker.yaml")),
    ("hybrid", include_str!("examples/hybrid.yaml")),
    ("worker lifecycle", include_str!("examples/worker-lifecycle.yaml")),
];

fn settings(text: &str) -> Result<Settings> {
    let overrides = Overrides { data_dir: Some("/data".into()), ..Default::default() };
    Settings::of(&parse(text)?, &overrides)
}

#[test]
fn the_published_examples_load() {
    for (name, text) in EXAMPLES {
        settings(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let worker = settings(EXAMPLES[3].1).unwrap();
    assert_eq!(worker.role, Role::Worker);
    assert_eq!(worker.node_keypair_path.unwrap().to_str(), Some("/etc/aegis/node-keypair.pem"));
    assert_eq!(worker.heartbeat_interval.as_secs(), 30);
    let edge = settings(EXAMPLES[1].1).unwrap();
    assert_eq!(edge.container_network, "aegis-net", "by its other spelling");
    let orchestrator = settings(EXAMPLES[0].1).unwrap();
    assert_eq!(orchestrator.unused, ["storage", "llm_providers"]);
}

#[test]
fn no_file_is_a_hybrid_node_on_loopback() {
    let defaults = settings("").unwrap();
    assert_eq!(defaults.role, Role::Hybrid);
    assert!(defaults.bind_address.is_loopback());
    let listen = Listen::Tcp { address: ([127, 0, 0, 1], 50056).into(), any_port: true };
    assert_eq!(defaults.cluster_port.listen, listen);
    assert_eq!((defaults.rest_port, defaults.stale_threshold.as_secs()), (None, 90));
}

#[test]
fn unknown_keys_are_all_named_with_path_and_nearest_key() {
    let error =
        parse("spec:\n  node:\n    tag: [gpu]\n  clutser:\n    role: worker\n  qqq: 1\n").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("spec.node.tag: did you mean tags?"), "{text}");
    assert!(text.contains("spec.clutser: did you mean cluster?"), "{text}");
    assert!(text.contains("unknown key spec.qqq"), "{text}");
}

#[test]
fn wrong_values_are_refused_with_their_path() {
    for (text, expected) in [
        ("spec: {node: {id: 'A_b'}}", "spec.node.id"),
        ("spec: {node: {tags: [no, 1e3]}}", "spec.node.tags"),
        ("spec: {network: {port: 70000}}", "spec.network.port"),
        ("spec: {cluster: {role: boss}}", "spec.cluster.role"),
        ("spec: {cluster: {role: worker}}", "controller.endpoint"),
        ("spec: {node: {id: a}, cluster: {node_id: b}}", "must be equal"),
        ("spec: {network: {bind_address: 0.0.0.0}}", "only loopback"),
        ("spec: {cluster: {placement: cheapest}}", "spec.cluster.placement"),
        ("spec: {runtime: {images: {'python:3.12': 'Not An Image'}}}", "spec.runtime.images.\"python:3.12\""),
        ("spec: {runtime: {images: {'Python 3': 'python:3'}}}", "language and version"),
        ("spec: {database: {url: 'postgres://u:p@h/d'}}", "postgres"),
        ("spec: {cluster: {heartbeat_interval_secs: 0}}", "1 to 300"),
        ("spec: {cluster: {heartbeat_interval_secs: 301}}", "1 to 300"),
        ("spec: {cluster: {stale_threshold_secs: 3601}}", "1 to 3600"),
        ("spec: {cluster: {sweep_interval_secs: 301}}", "1 to 300"),
        ("spec: {cluster: {token_refresh_margin_secs: 1801}}", "half of a token's life"),
        ("spec: {node: {resources: {cpu_cores: 5000}}}", "cpu_cores: 5000 is above 4096"),
        ("spec: {node: {resources: {gpu_count: 129}}}", "gpu_count"),
        ("spec: {cluster: {keypair_path: /a, node_keypair_path: /b}}", "two spellings"),
        ("apiVersion: v2", "apiVersion"),
        ("spec: [", "YAML"),
        ("- a", "mapping"),
    ] {
        let error = settings(text).map(|_| ()).expect_err(text);
        assert!(error.to_string().contains(expected), "{text}: {error}");
        assert!(!error.to_string().contains("u:p"), "no credentials: {error}");
    }
}

#[test]
fn images_of_languages_and_the_placement_are_stated() {
    let stated = settings(
        "spec: {cluster: {placement: least_loaded}, runtime: {images: {'python:3.12': r.example/p}}}",
    )
    .unwrap();
    assert_eq!(stated.placement, PlacementStrategy::LeastLoaded);
    assert_eq!(stated.images["python:3.12"], "r.example/p");
    let defaults = settings("").unwrap();
    assert_eq!(defaults.placement, PlacementStrategy::RoundRobin);
    assert!(defaults.images.is_empty());
}

#[test]
fn secrets_are_read_by_reference_and_never_named_by_value() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    assert_eq!(*resolve_secret(&format!("file:{}", path.display())).unwrap(), "s3cret");
    assert_eq!(*resolve_secret("plain").unwrap(), "plain");
    assert!(resolve_secret("env:AEGIS_SURELY_NOT_SET").is_err());
}

#[test]
fn openbao_is_read_by_reference_and_only_over_tls_off_loopback() {
    let backend = |lines: &str| settings(&format!("spec: {{secrets: {{backend: {{{lines}}}}}}}"));
    let good = "address: 'https://bao:8200', auth_method: approle, namespace: team, \
                approle: {role_id: 'env:ROLE', secret_id: 'file:/run/secret'}, tls: {ca_cert: /ca.pem}";
    let transit = backend(good).unwrap().transit.unwrap();
    assert_eq!((transit.mount.as_str(), transit.key_name.as_str()), ("transit", "aegis-node-tokens"));
    assert!(settings("").unwrap().transit.is_none());
    assert!(backend("address: 'http://127.0.0.1:8200', token: 'env:T', mount: a/b").is_ok());
    for (bad, words) in [
        ("token: 'env:T'", "backend.address"),
        ("address: 'http://bao:8200', token: 'env:T'", "only https"),
        ("address: 'https://u:hunter2@bao', token: 'env:T'", "credentials"),
        ("address: 'https://bao', auth_method: approle, approle: {role_id: r}", "secret_id"),
        ("address: 'https://bao', auth_method: token", "backend.token"),
        ("address: 'https://bao', auth_method: ldap", "auth_method"),
        ("address: 'https://bao', token: t, mount: '../sys'", "backend.mount"),
        ("address: 'https://bao', token: t, key_name: 'a/b'", "backend.key_name"),
        ("address: 'https://bao', tokne: t", "did you mean token"),
        ("address: 'https://bao', token: t, tls: {enabled: false}", "tls.enabled"),
    ] {
        let error = backend(bad).map(|_| ()).expect_err(bad).to_string();
        assert!(error.contains(words) && !error.contains("hunter2"), "{bad}: {error}");
    }
}
