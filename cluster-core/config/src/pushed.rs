//! Validation of pushed layers. A layer is checked when it is stored, and accepted or rejected as a whole. The node
//! checks the layer again, since its controller may know other keys.

use aegis_types::error::{Error, ErrorCode, Result};
use serde_json::{Map, Value};

use super::{
    document::depth,
    layers::MergedConfig,
    read,
    schema::{NodeType, Policy},
    settings::{Local, Overrides, Settings},
};
use crate::policy;

/// Size limit of a layer. Layers have a few kilobytes, and are sent in one message.
pub const LAYER_BYTES_MAX: usize = 256 * 1024;
const DEPTH_MAX: usize = 32;

/// Keys that may be pushed, each with all keys below it.
const PUSHABLE: [&str; 21] = [
    "metadata.labels",
    "spec.node.region",
    "spec.node.tags",
    "spec.node.resources",
    "spec.runtime",
    "spec.storage",
    "spec.observability",
    "spec.cluster.heartbeat_interval_secs",
    "spec.cluster.token_refresh_margin_secs",
    "spec.llm_providers",
    "spec.llm_selection",
    "spec.mcp_servers",
    "spec.smcp",
    "spec.seal",
    "spec.security_contexts",
    "spec.builtin_dispatchers",
    "spec.iam",
    "spec.grpc_auth",
    "spec.temporal",
    "spec.cortex",
    "spec.smcp_gateway",
];

/// Reasons why other keys may only be set in the node's own file.
const OWN: [(&str, &str); 8] = [
    ("metadata", "it names the node"),
    ("spec.node", "it says who the node is"),
    ("spec.cluster", "it says how the node finds and trusts its controller"),
    ("spec.network", "it says what the node opens to its network"),
    ("spec.database", "it says where the node keeps its state"),
    ("spec.secrets", "it says where the node gets its secrets"),
    ("spec.deploy", "it says what may be deployed from there"),
    ("spec.mcp", "it says what an assistant may do there"),
];

/// Words in a key's name that mark its value as a secret.
const SECRET_WORDS: [&str; 10] = [
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "token",
    "apikey",
    "credential",
    "credentials",
];
/// Prefixes of `key` that mark a secret.
const SECRET_KEYS: [&str; 4] = ["api", "private", "access", "secret"];
/// Last words of keys whose value describes a secret without being one: `token_url`.
const ABOUT: [&str; 9] = ["url", "uri", "endpoint", "path", "file", "name", "type", "method", "header"];

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ConfigInvalid, message)
}

/// Returns a layer with one spelling of each key, or an error that lists every problem.
pub fn check_layer(layer: &Value) -> Result<Value> {
    if depth(layer) > DEPTH_MAX {
        return Err(invalid(format!("the layer is nested more than {DEPTH_MAX} deep")));
    }
    let bytes = layer.to_string().len();
    if bytes > LAYER_BYTES_MAX {
        return Err(invalid(format!("the layer has {bytes} bytes; at most {LAYER_BYTES_MAX} are kept")));
    }
    let mut layer = layer.clone();
    read::normalise(&mut layer)?;
    let config = read::typed(layer.clone())?;
    if let Some(map) = layer.as_object_mut() {
        // These keys name the kind of document and were checked; a layer does not need them.
        map.remove("apiVersion");
        map.remove("kind");
    }
    let mut refused = Vec::new();
    check_keys(&layer, &mut Vec::new(), &mut refused);
    check_secrets(&layer, false, &mut Vec::new(), &mut refused);
    if !refused.is_empty() {
        return Err(
            invalid(refused.join("; ")).remedy("correct or remove what is named; nothing was changed")
        );
    }
    // Checks ranges with the reader of files. Every bound concerns a single key.
    Settings::of(&config, &neutral())?;
    Ok(layer)
}

/// Returns overrides that do not depend on the environment of the checking process.
fn neutral() -> Overrides {
    Overrides { data_dir: Some("/".into()), ..Overrides::default() }
}

/// Returns a node's settings: pushed layers below its own file and environment.
pub fn settings(local: &Local, pushed: &MergedConfig) -> Result<Settings> {
    let json = check_layer(&pushed.json)?;
    let merged = super::layers::merge([&json, &local.document]);
    let mut config = read::typed(merged.clone())?;
    if serves_api(config.spec.node.node_type) && !pushed.is_none() {
        check_removed(&merged, &[&json, &local.document])?;
    }
    let own = match &local.document {
        Value::Null => Policy::default(),
        document => read::typed(document.clone())?.spec.runtime.policy,
    };
    let widened = policy::widened(&own, &read::typed(json.clone())?.spec.runtime.policy);
    if let Some(key) = widened.first() {
        return Err(invalid(format!(
            "spec.runtime.policy.{key}: a pushed layer cannot allow more than the node's own file does"
        ))
        .remedy("set it in the node's own configuration file"));
    }
    // Keeps the file itself as the base for later layers.
    config.document = local.document.clone();
    Settings::of(&config, &local.overrides)
}

fn serves_api(node_type: NodeType) -> bool {
    matches!(node_type, NodeType::Orchestrator | NodeType::Hybrid)
}

/// Sections that a node with an API needs in addition: each by any of its keys.
const NEEDED: [(&str, &[&str]); 3] =
    [("runtime", &["runtime"]), ("storage", &["storage"]), ("llm", &["llm_providers", "llm_selection"])];

fn has(config: &Value, keys: &[&str]) -> bool {
    keys.iter().any(|key| match &config["spec"][*key] {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => true,
    })
}

/// Returns the sections that a node of this type should have and lacks. Their defaults suit a small cluster, so a
/// missing section is reported and not an error.
pub fn missing_sections(merged: &Value, node_type: NodeType) -> Vec<&'static str> {
    if !serves_api(node_type) {
        return Vec::new();
    }
    NEEDED.iter().filter(|(_, keys)| !has(merged, keys)).map(|(name, _)| *name).collect()
}

/// Rejects a layer that clears a section of a lower layer, since an API would lose its settings.
fn check_removed(merged: &Value, layers: &[&Value]) -> Result<()> {
    for (name, keys) in NEEDED {
        if !has(merged, keys) && layers.iter().any(|layer| has(layer, keys)) {
            return Err(invalid(format!(
                "the layers leave a node that serves an API without its {name} section"
            ))
            .remedy("give the section a value, or remove the layer that empties it"));
        }
    }
    Ok(())
}

fn check_keys(value: &Value, path: &mut Vec<String>, refused: &mut Vec<String>) {
    let text = path.join(".");
    if PUSHABLE.contains(&text.as_str()) {
        return;
    }
    let below = format!("{text}.");
    let leads_on = path.is_empty() || PUSHABLE.iter().any(|key| key.starts_with(&below));
    match value {
        Value::Object(map) if leads_on => {
            for (key, inner) in map {
                path.push(key.clone());
                check_keys(inner, path, refused);
                path.pop();
            }
        }
        _ => {
            let own = OWN.iter().find(|(key, _)| text == *key || text.starts_with(&format!("{key}.")));
            let why = own.map_or("it is the node's own", |(_, why)| *why);
            refused.push(format!("{} cannot be pushed: {why}", aegis_types::text::shown(&text)));
        }
    }
}

/// Rejects secrets in layers, since layers are stored and sent in clear text.
fn check_secrets(value: &Value, secret: bool, path: &mut Vec<String>, refused: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                path.push(key.clone());
                check_secrets(inner, secret || names_secret(key), path, refused);
                path.pop();
            }
        }
        Value::Array(values) => {
            values.iter().for_each(|inner| check_secrets(inner, secret, path, refused));
        }
        Value::String(text) => {
            let literal = secret && !text.is_empty() && !is_reference(text);
            if literal || holds_credentials(text) {
                let path = aegis_types::text::shown(&path.join("."));
                refused.push(format!("{path} holds a secret: write env:NAME, file:PATH or secret:NAME"));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Returns whether a key of this name holds a secret. Compares whole words, in any spelling.
pub fn names_secret(key: &str) -> bool {
    let mut spaced = String::with_capacity(key.len() + 4);
    let mut after_small = false;
    for c in key.chars() {
        if c.is_ascii_uppercase() && after_small {
            spaced.push('_');
        }
        after_small = c.is_ascii_lowercase() || c.is_ascii_digit();
        spaced.push(if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    }
    let words: Vec<&str> = spaced.split('_').filter(|word| !word.is_empty()).collect();
    if words.last().is_some_and(|last| ABOUT.contains(last)) {
        return false;
    }
    words.iter().any(|word| SECRET_WORDS.contains(word))
        || words.windows(2).any(|two| two[1] == "key" && SECRET_KEYS.contains(&two[0]))
}

fn is_reference(text: &str) -> bool {
    ["env:", "file:", "secret:"].iter().any(|prefix| text.starts_with(prefix))
}

/// Returns whether the text is `scheme://user:password@host`, or a private key.
fn holds_credentials(text: &str) -> bool {
    let in_url = url::Url::parse(text).is_ok_and(|url| url.password().is_some());
    in_url || (text.contains("-----BEGIN") && text.contains("PRIVATE KEY"))
}

/// Returns the value for display, without secrets. References to secrets are kept.
pub fn redact(value: &Value) -> Value {
    redact_below(value, false)
}

fn redact_below(value: &Value, secret: bool) -> Value {
    match value {
        Value::Object(map) => {
            let shown = map
                .iter()
                .map(|(key, inner)| (key.clone(), redact_below(inner, secret || names_secret(key))));
            Value::Object(shown.collect::<Map<_, _>>())
        }
        Value::Array(values) => values.iter().map(|inner| redact_below(inner, secret)).collect(),
        Value::String(text) if (secret && !is_reference(text)) || holds_credentials(text) => {
            Value::from("(redacted)")
        }
        plain => plain.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::parse;

    fn why(layer: Value) -> String {
        check_layer(&layer).expect_err(&layer.to_string()).to_string()
    }

    #[test]
    fn what_may_be_pushed_is_kept_with_one_spelling() {
        let layer = json!({
            "apiVersion": "100monkeys.ai/v1", "kind": "NodeConfig",
            "metadata": {"labels": {"tier": "gold"}},
            "spec": {
                "node": {"tags": ["gpu"], "region": "eu", "resources": {"cpu_cores": 4}},
                "runtime": {"docker_network_mode": "n", "policy": {"max_memory_mb": 512}},
                "cluster": {"heartbeat_interval_seconds": 5},
                "llm_providers": [{"name": "a", "api_key": "env:KEY", "max_tokens": 7}],
                "storage": null,
            }
        });
        let kept = check_layer(&layer).unwrap();
        assert_eq!(kept["spec"]["runtime"]["container_network_mode"], "n");
        assert_eq!(kept["spec"]["cluster"], json!({"heartbeat_interval_secs": 5}));
        assert!(kept.get("kind").is_none() && kept["spec"].get("storage").is_none());
    }

    #[test]
    fn what_is_the_nodes_own_is_refused_by_path_with_the_reason() {
        for (layer, words) in [
            (json!({"metadata": {"name": "x"}}), ["metadata.name", "names the node"]),
            (json!({"spec": {"node": {"id": "x"}}}), ["spec.node.id", "who the node is"]),
            (json!({"spec": {"node": {"type": "edge"}}}), ["spec.node.type", "who the node is"]),
            (json!({"spec": {"cluster": {"role": "worker"}}}), ["spec.cluster.role", "controller"]),
            (
                json!({"spec": {"cluster": {"controller": {"endpoint": "http://a:1"}}}}),
                ["spec.cluster.controller", "controller"],
            ),
            (json!({"spec": {"network": {"port": 1}}}), ["spec.network", "opens"]),
            (json!({"spec": {"database": {"url": "sqlite:x"}}}), ["spec.database", "state"]),
            (json!({"spec": {"secrets": {"backend": {}}}}), ["spec.secrets", "secrets"]),
            (json!({"spec": {"deploy": {"allow_loopback": true}}}), ["spec.deploy", "deployed"]),
            (json!({"spec": {"mcp": {"auth": "none"}}}), ["spec.mcp", "assistant"]),
            (json!({"spec": {"node": {"tag": ["a"]}}}), ["spec.node.tag", "tags"]),
            (json!({"spec": {"node": {"tags": "gpu"}}}), ["spec.node.tags", "invalid type"]),
            (json!({"spec": {"node": {"tags": ["GPU"]}}}), ["spec.node.tags", "GPU"]),
            (
                json!({"spec": {"cluster": {"heartbeat_interval_secs": 0}}}),
                ["heartbeat_interval_secs", "1 to"],
            ),
            (json!({"apiVersion": "v9"}), ["apiVersion", "100monkeys"]),
            (json!([1]), ["mapping", "not"]),
            (json!("x"), ["mapping", "not"]),
        ] {
            let text = why(layer.clone());
            for word in words {
                assert!(text.contains(word), "{layer}: \"{word}\" is not in {text}");
            }
        }
        let two = why(json!({"spec": {"mcp": {"http": true}, "database": {}, "network": {"port": 1}}}));
        assert!(two.contains("spec.mcp") && two.contains("spec.network"), "all at once: {two}");
    }

    #[test]
    fn secrets_are_references_in_every_layer() {
        for layer in [
            json!({"spec": {"llm_providers": [{"api_key": "sk-123"}]}}),
            json!({"spec": {"iam": {"Client-Secret": "abc"}}}),
            json!({"spec": {"storage": {"credentials": {"user": "u", "deep": ["abc"]}}}}),
            json!({"spec": {"temporal": {"address": "https://u:abc@host/"}}}),
            json!({"spec": {"seal": {"pem": "-----BEGIN PRIVATE KEY-----\nabc"}}}),
            json!({"metadata": {"labels": {"token": "abc"}}}),
        ] {
            let text = why(layer.clone());
            assert!(text.contains("holds a secret"), "{layer}: {text}");
            assert!(!text.contains("sk-123") && !text.contains("abc"), "{text}");
            let shown = redact(&layer).to_string();
            assert!(!shown.contains("sk-123") && !shown.contains("abc"), "{shown}");
        }
        for reference in ["env:A", "file:/a", "secret:a", ""] {
            check_layer(&json!({"spec": {"iam": {"client_secret": reference}}})).unwrap();
        }
    }

    #[test]
    fn a_secret_is_known_by_whole_words_of_its_name() {
        for secret in [
            "password",
            "db_password",
            "apiKey",
            "API-KEY",
            "client_secret",
            "secretId",
            "authToken",
            "access_key",
        ] {
            assert!(names_secret(secret), "{secret}");
        }
        for plain in [
            "tokenizer",
            "max_tokens",
            "token_url",
            "secret_name",
            "tokenEndpoint",
            "key",
            "keyboard",
            "ssh_key_path",
        ] {
            assert!(!names_secret(plain), "{plain}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let large = json!({"metadata": {"labels": {"a": "x".repeat(10 << 20)}}});
        assert!(why(large).contains("bytes"));
        let mut deep = json!(1);
        for _ in 0..1000 {
            deep = json!({ "a": deep });
        }
        assert!(why(json!({"spec": {"storage": deep}})).contains("deep"));
    }

    #[test]
    fn the_file_wins_over_what_is_pushed() {
        let file = parse("spec: {node: {tags: [own]}, runtime: {policy: {max_cpu: 2}}}").unwrap();
        let local = Local { document: file.document, overrides: neutral() };
        let layer = json!({"spec": {
            "node": {"tags": ["pushed"], "region": "eu"},
            "runtime": {"policy": {"max_cpu": 1, "max_memory_mb": 64}},
        }});
        let merged = settings(&local, &MergedConfig::of([&layer])).unwrap();
        assert_eq!(merged.tags[0].as_str(), "own");
        assert_eq!(merged.region.as_deref(), Some("eu"));
        assert_eq!((merged.policy.max_cpu, merged.policy.max_memory_mb), (Some(2.0), Some(64)));
    }

    #[test]
    fn pushed_policy_narrows_and_never_widens() {
        let push = |file: &str, policy: Value| {
            let file = parse(file).unwrap();
            let local = Local { document: file.document, overrides: neutral() };
            settings(&local, &MergedConfig::of([&json!({"spec": {"runtime": {"policy": policy}}})]))
        };
        for (key, wider, own) in [
            ("allowed_capabilities", json!(["SYS_ADMIN"]), "[SYS_ADMIN]"),
            ("allowed_networks", json!(["10.0.0.0/8"]), "[10.0.0.0/8]"),
            ("allow_root_filesystem_writes", json!(true), "true"),
            ("max_timeout_seconds", json!(3601), "7200"),
            ("max_processes", json!(513), "1024"),
            ("max_output_mb", json!(11), "100"),
            ("max_workspace_mb", json!(10_241), "20480"),
            ("max_image_disk_percent", json!(51), "80"),
        ] {
            for file in ["", "spec: {node: {region: eu}}"] {
                let text = push(file, json!({ key: wider })).unwrap_err().to_string();
                assert!(text.contains(key) && text.contains("own file"), "{text}");
            }
            push(&format!("spec: {{runtime: {{policy: {{{key}: {own}}}}}}}"), json!({ key: wider })).unwrap();
        }
        let narrow = json!({
            "allowed_capabilities": [], "allow_root_filesystem_writes": false, "max_timeout_seconds": 60,
            "max_processes": 8, "max_output_mb": 1, "allowed_images": ["agents/*"], "max_cpu": 1,
        });
        let narrowed = push("", narrow).unwrap().policy;
        assert_eq!((narrowed.max_processes, narrowed.max_timeout_seconds), (Some(8), Some(60)));
    }

    #[test]
    fn a_node_that_serves_an_api_keeps_its_sections() {
        let empty = MergedConfig::of([&json!({"spec": {"llm_providers": []}})]);
        for (kind, taken) in [("hybrid", true), ("orchestrator", true), ("edge", false)] {
            let file = parse(&format!("spec: {{node: {{type: {kind}}}}}")).unwrap();
            let local = Local { document: file.document, overrides: neutral() };
            // A section that never existed is only reported.
            settings(&local, &empty).unwrap();
            let layer = json!({"spec": {"llm_providers": [{"name": "a"}], "llm_selection": {}}});
            settings(&local, &MergedConfig::of([&layer])).unwrap();
            let file = parse(&format!("spec: {{node: {{type: {kind}}}, llm_providers: []}}")).unwrap();
            let local = Local { document: file.document, overrides: neutral() };
            assert_eq!(settings(&local, &MergedConfig::of([&layer])).is_err(), taken, "{kind}");
        }
        assert_eq!(missing_sections(&json!({}), NodeType::Hybrid), ["runtime", "storage", "llm"]);
        assert!(missing_sections(&json!({}), NodeType::Edge).is_empty());
    }
}
