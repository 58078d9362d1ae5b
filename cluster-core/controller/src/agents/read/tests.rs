use super::*;

fn parse(text: &str) -> Result<Manifest> {
    Manifest::parse(text, &BTreeMap::new())
}

/// With lines below `spec`, each at its own depth.
fn agent(spec: &str) -> String {
    format!("apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {{name: a}}\nspec:\n{spec}\n")
}

fn asks(spec: &str) -> ExecutionRequest {
    parse(&agent(spec)).unwrap_or_else(|e| panic!("{spec}: {e}")).request(&BTreeMap::new()).unwrap()
}

const IMAGE: &str = "  runtime: {image: 'busybox:1.36'}\n";

/// Every field of the published format that we know of, in our own words.
const WHOLE: &str = r#"
apiVersion: 100monkeys.ai/v1
kind: Agent
metadata:
  name: route-planner
  version: "2.1.0"
  description: Plans routes
  labels: {role: worker, tier: 2}
  annotations: {owner: logistics}
spec:
  security_context: planner
  runtime:
    language: python
    version: "3.12"
    isolation: inherit
    model: smart
    temperature: 0.2
    image_pull_policy: IfNotPresent
    command: [python3, -c]
    args: ["print(1)"]
    env: {MODE: fast}
  env: {DEPTH: 3, KEY: "secret:planner-key"}
  task:
    instruction: Plan.
    prompt_template: "{{instruction}} {{input}}"
  context: [{type: url, url: "https://example.com"}]
  tools: [fs.write]
  schedule: {type: manual}
  advanced: {warm_pool_size: 1}
  input_schema: {type: object}
  volumes:
    - {name: w, storage_class: ephemeral, mount_path: /workspace, access_mode: read-write, size_limit: 1Gi, ttl_hours: 1}
  execution:
    mode: iterative
    max_iterations: 3
    iteration_timeout: 60s
    llm_timeout_seconds: 30
    memory: false
    validation: [{type: exit_code, expected: 0}]
    target_tags: [gpu]
  security:
    network: {mode: none}
    filesystem: {read: [/workspace], write: [/workspace]}
    resources: {cpu: 500, memory: 256Mi, disk: 1Gi, timeout: 120s}
"#;

#[test]
fn the_published_format_is_read_and_what_is_not_used_is_named() {
    let manifest = parse(WHOLE).unwrap();
    assert_eq!(manifest.author_version.as_deref(), Some("2.1.0"));
    assert_eq!(manifest.labels["tier"], "2");
    assert_eq!(
        manifest.not_used,
        [
            "metadata.annotations",
            "spec.advanced",
            "spec.context",
            "spec.execution.llm_timeout_seconds",
            "spec.execution.memory",
            "spec.execution.validation",
            "spec.input_schema",
            "spec.runtime.image_pull_policy",
            "spec.runtime.model",
            "spec.runtime.temperature",
            "spec.schedule",
            "spec.security.filesystem",
            "spec.security.resources.disk",
            "spec.security_context",
            "spec.task",
            "spec.tools",
            "spec.volumes[0].access_mode",
            "spec.volumes[0].size_limit",
            "spec.volumes[0].ttl_hours",
        ]
    );
    let asked = manifest.request(&BTreeMap::new()).unwrap();
    assert_eq!(asked.image.as_deref(), Some("python:3.12-slim"));
    assert_eq!((asked.command.len(), asked.args.len()), (2, 1));
    assert_eq!((asked.env["MODE"].as_str(), asked.env["DEPTH"].as_str()), ("fast", "3"));
    assert_eq!((asked.max_iterations, asked.iteration_timeout_seconds), (Some(3), Some(60)));
    assert_eq!((asked.timeout_seconds, asked.resources.memory_mb), (Some(120), Some(256)));
    assert_eq!(asked.resources.cpu, Some(0.5));
    assert!(asked.empty_workspace);
    let submission = Submission::check(asked).unwrap();
    assert!(submission.manifest.has_workspace() && submission.manifest.secret_env.contains_key("KEY"));
}

#[test]
fn json_is_taken_too_and_empty_keys_are_left_out() {
    let json = serde_json::to_string(&parse(WHOLE).unwrap().document).unwrap();
    assert_eq!(parse(&json).unwrap(), parse(WHOLE).unwrap());
    let empty = agent(&format!("{IMAGE}  execution:\n  tools:"));
    assert!(parse(&empty).unwrap().not_used.is_empty());
}

#[test]
fn modes_say_how_often() {
    let with = |execution: &str| asks(&format!("{IMAGE}  execution: {{{execution}}}")).max_iterations;
    assert_eq!(with(""), None);
    assert_eq!(with("mode: one-shot, max_iterations: 5"), None);
    assert_eq!(with("mode: iterative"), Some(10));
    assert_eq!(with("mode: iterative, max_retries: 2"), Some(2));
}

#[test]
fn networks_are_none_or_whole() {
    let with = |network: &str| parse(&agent(&format!("{IMAGE}  security: {{network: {{{network}}}}}")));
    for (network, expected) in [
        ("mode: none", Some(NetworkMode::None)),
        ("mode: deny, denylist: [a.example]", Some(NetworkMode::None)),
        ("mode: allow, allowlist: []", Some(NetworkMode::Allow)),
        ("mode: ''", None),
    ] {
        assert_eq!(with(network).unwrap().request(&BTreeMap::new()).unwrap().network, expected, "{network}");
    }
    for refused in ["mode: allowlist", "mode: allow, allowlist: [a.example]", "allowlist: [a.example]"] {
        let error = with(refused).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotOffered, "{refused}");
        assert!(error.to_string().contains("mode: allow without"), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_path() {
    for (spec, words) in [
        ("  runtime: {imgae: x}", "unknown key spec.runtime.imgae: did you mean image?"),
        (
            "  runtime: {image: x}\n  volumes: [{name: w, mount_path: /workspace, sice: 1}]",
            "spec.volumes[0].sice",
        ),
        ("  runtime: {}", "spec.runtime: neither"),
        ("  runtime: {image: x, language: go, version: '1'}", "both given"),
        ("  runtime: {language: go}", "spec.runtime.version: it is missing"),
        ("  runtime: {language: python, version: 3.10}", "3.10 is the number 3.1"),
        ("  runtime: {language: cobol, version: '85'}", "spec.runtime: no image is known"),
        ("  runtime: {image: 'Not An Image'}", "image"),
        ("  runtime: {image: x, isolation: firecracker}", "spec.runtime.isolation"),
        ("  runtime: {image: x, command: [a]}\n  command: [b]", "spec.runtime.command are both given"),
        ("  runtime: {image: x}\n  env: {A: [secret-value]}", "spec.env.A: it is not text"),
        ("  runtime: {image: x}\n  env: {AEGIS_INPUT: x}", "AEGIS_INPUT"),
        ("  runtime: {image: x}\n  execution: {mode: twice}", "spec.execution.mode"),
        ("  runtime: {image: x}\n  execution: {mode: iterative, max_iterations: 101}", "1 to 100"),
        ("  runtime: {image: x}\n  security: {resources: {cpu: lots}}", "spec.security.resources.cpu"),
        ("  runtime: {image: x}\n  security: {resources: {memory: 1Gib}}", "spec.security.resources.memory"),
        ("  runtime: {image: x}\n  security: {resources: {timeout: 1d}}", "spec.security.resources.timeout"),
        ("  runtime: {image: x}\n  security: {relax: {capabilities: [CAP_CHOWN]}}", "capabilities"),
        ("  runtime: {image: x}\n  volumes: [{name: w, mount_path: /data}]", "spec.volumes[0].mount_path"),
        (
            "  runtime: {image: x}\n  volumes: [{name: w, mount_path: /workspace, storage_class: persistent}]",
            "spec.volumes[0].storage_class",
        ),
    ] {
        let error = parse(&agent(spec)).expect_err(spec).to_string();
        assert!(error.contains(words) && !error.contains("secret-value"), "{spec}: {error}");
    }
    for (text, words) in [
        ("", "not a mapping"),
        ("- a", "not a mapping"),
        ("a: [", "YAML"),
        ("apiVersion: v2", "apiVersion"),
        ("apiVersion: 100monkeys.ai/v1\nkind: Workflow", "kind"),
        ("apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {name: A_b}\nspec: {}", "metadata.name"),
        ("apiVersion: 100monkeys.ai/v1\nkind: Agent\nmetadata: {}\nspec: {}", "metadata"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let large = agent(&format!("{IMAGE}  task: {{instruction: '{}'}}", "x".repeat(MANIFEST_BYTES_MAX)));
    assert!(parse(&large).unwrap_err().message().contains("at most"));
    let deep = agent(&format!("{IMAGE}  task: {}1{}", "[".repeat(40), "]".repeat(40)));
    assert!(parse(&deep).unwrap_err().message().contains("deep"));
    // Far deeper than any stack: the parser must give up by itself.
    let bottomless = agent(&format!("{IMAGE}  task: {}", "[".repeat(100_000)));
    assert!(parse(&bottomless).is_err());
}
