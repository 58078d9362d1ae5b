//! Operator's stack with additions in an override. They are the node, an image instead of a build, and a label that
//! recreates a service when its files have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use aegis_types::error::{Error, Result};

use super::{
    NodeService, OllamaService, Published, Stack, config::Service, node_fragment, operator::CustomStack,
    source::refuse,
};
use crate::{
    hex_digest,
    model::{
        ports::HostPorts,
        project::{NODE_PORT_DEFAULT, OLLAMA_PORT},
        release,
        spec::DeploymentSpec,
    },
};

/// Port of the node if a foreign stack uses the default port.
const NODE_PORT_BESIDE: u16 = 8091;
const HEAD: &str = "# Added by aegis to the operator's stack.\n";

pub(super) fn build(spec: &DeploymentSpec, operator: &CustomStack) -> Result<Stack> {
    let services = &operator.config.services;
    let mut started: Vec<String> = services.keys().cloned().collect();
    let replaced = replaced(spec, services.iter())?;
    let mut images = Vec::new();
    let mut always_pulled = BTreeSet::new();
    let mut incomplete_images = BTreeMap::new();
    let mut ours = String::new();
    let mut ports = Vec::new();
    for (name, service) in services {
        let is_replaced = replaced == Some(name.as_str());
        ours.push_str(&addition(operator, name, service, is_replaced));
        let image = if is_replaced { spec.image.as_ref() } else { service.image.as_ref() };
        if let Some(image) = image.filter(|image| is_incomplete(image)) {
            incomplete_images.insert(name.clone(), image.clone());
        }
        images.extend(image.cloned());
        always_pulled.extend(image.filter(|_| service.is_always_pulled()).cloned());
        if !service.is_scaled_to_zero() {
            ports.extend(
                service.ports.iter().map(|(ports, _)| Published { service: name.clone(), ports: *ports }),
            );
        }
    }
    started.retain(|name| !services[name].is_scaled_to_zero());
    let node = spec.join.then(|| NodeService {
        service: if operator.config.known.contains("node") { "aegis-node" } else { "node" }.to_owned(),
        // Also detects a port that a service on the host's network uses.
        port: match operator.project.compose.contains(&NODE_PORT_DEFAULT.to_string()) {
            true => NODE_PORT_BESIDE,
            false => NODE_PORT_DEFAULT,
        },
    });
    let mut override_file = None;
    if let Some(node) = &node {
        ours.push_str(&node_fragment(&node.service, node.port));
        ours.push_str("\nvolumes:\n  node_data: {}\n");
        started.push(node.service.clone());
        ports.push(Published { service: node.service.clone(), ports: HostPorts::tcp(node.port) });
    }
    if !ours.is_empty() {
        override_file = Some(format!("{HEAD}services:\n{ours}"));
    }
    images.sort();
    images.dedup();
    let ollama = services.iter().find(|(name, service)| started.contains(*name) && is_ollama(name, service));
    if ollama.is_none() && !spec.models.is_empty() && !operator.is_unread() {
        return Err(Error::invalid("models: no service that is started runs Ollama").remedy(
            "start the service of the compose file whose image is ollama/ollama, or leave models out",
        ));
    }
    Ok(Stack {
        compose: operator.project.compose.clone(),
        operator_override: operator.project.override_file.clone(),
        override_file,
        images,
        always_pulled,
        unset: operator.config.unset.iter().filter(|name| !is_set_on_the_host(name)).cloned().collect(),
        incomplete_images,
        node,
        ollama: ollama.map(|(name, service)| OllamaService {
            service: name.clone(),
            port: service
                .ports
                .iter()
                .find(|(ports, inside)| *inside == OLLAMA_PORT && ports.first == ports.last)
                .map(|(ports, _)| ports.first),
        }),
        cloudflared: false,
        services: started,
        profiles: operator.project.profiles.iter().cloned().collect(),
        ports,
    })
}

/// Returns the service that runs the image of the request instead of its build. A service with both `build` and `image`
/// runs its image, which is pulled or sent. One image cannot replace several builds.
fn replaced<'a>(
    spec: &DeploymentSpec,
    started: impl Iterator<Item = (&'a String, &'a Service)>,
) -> Result<Option<&'a str>> {
    let built: Vec<(&str, Option<&String>)> = started
        .filter(|(_, service)| service.is_built)
        .map(|(name, service)| (name.as_str(), service.image.as_ref()))
        .collect();
    let nameless: Vec<&str> =
        built.iter().filter(|(_, image)| image.is_none()).map(|(name, _)| *name).collect();
    let names = |names: &[&str]| names.join(", ");
    match (nameless.as_slice(), &spec.image) {
        ([], None) => Ok(None),
        ([one], Some(_)) => Ok(Some(one)),
        ([one], None) => Err(refuse(format!(
            "service {one} is built from sources that the host does not have"
        ))
        .remedy("name a built image: `image` of the service, or AITHER_EDGE_IMAGE for the controller")),
        ([], Some(image)) => {
            match built.as_slice() {
                [] => Ok(None),
                [(one, _)] => Ok(Some(one)),
                _ if built.iter().any(|(_, own)| *own == Some(image)) => Ok(None),
                several => {
                    let several: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                    Err(refuse(format!("services {} are built, and one image cannot replace them", names(&several)))
                    .remedy("leave out `image` and AITHER_EDGE_IMAGE: each service runs the `image` that it names"))
                }
            }
        }
        (several, _) => Err(refuse(format!(
            "services {} are built from sources that the host does not have",
            names(several)
        ))
        .remedy("give each of them an `image` in the compose file, build it here, and deploy again")),
    }
}

/// Returns whether `.env` on the host may define a variable that is unknown here.
fn is_set_on_the_host(name: &str) -> bool {
    name.starts_with("AEGIS_") || matches!(name, "TUNNEL_TOKEN" | "CLOUDFLARE_TUNNEL_TOKEN")
}

/// Returns whether a part of a reference is empty because a variable has no value.
fn is_incomplete(image: &str) -> bool {
    image.is_empty()
        || image.ends_with([':', '@', '/'])
        || image.starts_with([':', '@', '/'])
        || image.contains("//")
}

fn addition(operator: &CustomStack, name: &str, service: &Service, is_replaced: bool) -> String {
    let mut text = String::new();
    if is_replaced {
        text.push_str("    image: ${AITHER_EDGE_IMAGE}\n");
    }
    // The images are on the host before the stack starts. They were pulled with the configured logins and time limits,
    // which Compose does not know.
    if service.is_built || service.is_always_pulled() {
        text.push_str("    pull_policy: missing\n");
    }
    let paths = operator.named_by.get(name).into_iter().flatten();
    let digest_of = |path: &str| match path == release::ENV_FILE {
        true => Some(operator.environment_digest()),
        false => operator.bundle().digest_of(path),
    };
    let digests: Vec<String> =
        paths.filter_map(|path| Some(format!("{path} {}", digest_of(path)?))).collect();
    if !digests.is_empty() {
        // Compose itself compares only the names of files.
        let digest = hex_digest(digests.join("\n").as_bytes());
        let _ = write!(text, "    labels:\n      aegis.files_digest: \"{digest}\"\n");
    }
    if text.is_empty() { text } else { format!("  {name}:\n{text}") }
}

fn is_ollama(name: &str, service: &Service) -> bool {
    let repository = service.image.as_deref().unwrap_or_default();
    let repository = repository.split(['@']).next().unwrap_or_default();
    let repository = match repository.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => repository,
    };
    name == "ollama" || repository == "ollama/ollama" || repository.ends_with("/ollama/ollama")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        DeploymentRequest,
        stack::{ComposeOutput, CustomProject, config::testing::output, testing::foreign_spec},
    };

    fn write(dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    /// Reads a project in a directory, with these services as Compose reads them.
    fn read(
        dir: &Path,
        services: Value,
        change: impl FnOnce(&mut DeploymentRequest),
    ) -> Result<(DeploymentSpec, CustomStack)> {
        read_output(dir, &output(&json!({"services": services})), change)
    }

    fn read_output(
        dir: &Path,
        output: &ComposeOutput,
        change: impl FnOnce(&mut DeploymentRequest),
    ) -> Result<(DeploymentSpec, CustomStack)> {
        let mut spec = foreign_spec(change);
        spec.compose_file = Some(dir.join("docker-compose.yml"));
        if !dir.join("docker-compose.yml").exists() {
            write(dir, "docker-compose.yml", "services: {}\n");
        }
        let project = CustomProject::read(&spec)?.unwrap();
        let operator = CustomStack::new(
            project,
            output,
            &spec,
            Some(&aegis_types::secret::Secret::new("tunnel-token-1")),
        )?;
        Ok((spec, operator))
    }

    fn built(dir: &Path, services: Value, change: impl FnOnce(&mut DeploymentRequest)) -> Result<Stack> {
        let (spec, operator) = read(dir, services, change)?;
        build(&spec, &operator)
    }

    fn alone(request: &mut DeploymentRequest) {
        request.join = Some(false);
    }

    fn bind(path: &str, read_only: bool) -> Value {
        json!({"type": "bind", "source": format!("/tmp/p/1/x/{path}"), "target": "/x", "read_only": read_only})
    }

    #[test]
    fn foreign_stack_gets_our_node_and_no_build() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = "services:\n  aithernode:\n    build: ../..\n    ports: ['8090:8090']\n  ollama:\n    image: ollama/ollama\n";
        write(dir.path(), "docker-compose.yml", foreign);
        let services = json!({
            "aithernode": {"build": {"context": "/"}, "ports": [{"target": 8090, "published": "8090"}]},
            "ollama": {"image": "ollama/ollama"},
        });
        let error = built(dir.path(), services.clone(), |_| {}).unwrap_err();
        assert!(error.to_string().contains("AITHER_EDGE_IMAGE"), "{error}");
        let stack =
            built(dir.path(), services, |request| request.image = Some("ghcr.io/x/y:1".into())).unwrap();
        assert_eq!(stack.compose, foreign);
        let added = stack.override_file.unwrap();
        assert!(
            added.contains("image: ${AITHER_EDGE_IMAGE}") && added.contains("127.0.0.1:8091/health"),
            "{added}"
        );
        assert_eq!(stack.node, Some(NodeService { service: "node".into(), port: 8091 }));
        assert_eq!(stack.images, ["ghcr.io/x/y:1", "ollama/ollama"]);
        assert_eq!(stack.ollama, Some(OllamaService { service: "ollama".into(), port: None }));
        assert_eq!(stack.services, ["aithernode", "ollama", "node"]);
    }

    #[test]
    fn build_with_image_runs_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let stack = |services: &Value, image: Option<&str>| {
            built(dir.path(), services.clone(), |request| {
                request.image = image.map(str::to_owned);
                request.join = Some(false);
            })
        };
        let build = json!({"context": "/tmp/p/1/x"});
        let web = json!({"web": {"image": "web:1", "build": build, "pull_policy": "build"}});
        let mut both = web.clone();
        both["worker"] = json!({"image": "worker:1", "build": build});
        let made = stack(&both, None).unwrap();
        assert_eq!(made.images, ["web:1", "worker:1"]);
        assert!(made.override_file.unwrap().contains("pull_policy: missing"));
        assert_eq!(stack(&web, Some("web:2")).unwrap().images, ["web:2"]);
        assert_eq!(stack(&both, Some("worker:1")).unwrap().images, ["web:1", "worker:1"]);
        let nameless = json!({"web": {"build": build}, "worker": {"build": build}});
        for (services, image) in [(&both, Some("x:1")), (&nameless, Some("x:1")), (&nameless, None)] {
            let error = stack(services, image).unwrap_err();
            assert!(error.message().contains("services web, worker"), "{error}");
        }
        let idle = json!({
            "web": {"image": "x"},
            "batch": {"image": "x", "scale": 0, "ports": [{"target": 1, "published": "1"}]},
        });
        let made = stack(&idle, None).unwrap();
        assert_eq!((made.services, made.ports), (vec!["web".to_owned()], Vec::new()));
    }

    #[test]
    fn dotenv_of_the_stack_can_be_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let services = json!({"web": {"image": "x", "volumes": [bind(".env", true)]}});
        let error = built(dir.path(), services.clone(), alone).unwrap_err();
        assert!(error.message().contains(".env: it is not there"), "{error}");
        write(dir.path(), ".env", "A=1\n");
        let digest = || {
            let services = services.clone();
            let (spec, operator) = read(dir.path(), services, alone).unwrap();
            assert!(operator.bundle().is_empty(), "the host has it already");
            build(&spec, &operator).unwrap().override_file.unwrap()
        };
        let before = digest();
        write(dir.path(), ".env", "A=2\n");
        assert_ne!(digest(), before, "the service is recreated");
    }

    #[test]
    fn keys_of_the_application_arrive_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let made = |env: &str, stderr: &str| {
            write(dir.path(), ".env", env);
            let mut output = output(&json!({"services": {"web": {"image": "x"}}}));
            stderr.clone_into(&mut output.stderr);
            output.succeeded = stderr.is_empty();
            read_output(dir.path(), &output, alone).map(|(_, operator)| operator)
        };
        let operator = made("DOCKER_TAG=1\nLD_P=secret\nCOMPOSE_FILE=./docker-compose.yml\n", "").unwrap();
        let keys: Vec<&str> = operator.environment().map(|(key, _)| key).collect();
        assert_eq!(keys, ["DOCKER_TAG", "LD_P"]);
        for (env, stderr, says) in [
            ("COMPOSE_FILE=docker-compose.yml:prod.yml\n", "", "COMPOSE_FILE"),
            ("DOCKER_HOST=1\n", "required variable DOCKER_HOST is missing a value", "DOCKER_HOST steers"),
            ("LD_PRELOAD=1\n", "The \"LD_PRELOAD\" variable is not set. Def", "LD_PRELOAD steers"),
            ("A=x-unlikely\n", "services.web.ports: no tunnel-token-1", "ports: no (secret)"),
            (
                "A=hunter2-hunter2\n",
                "/tmp/p/1/x/docker-compose.yml: no hunter2-hunter2",
                "docker-compose.yml: no (secret)",
            ),
        ] {
            let error = made(env, stderr).unwrap_err();
            assert!(error.message().contains(says) && !error.message().contains("/tmp/p"), "{error}");
            assert!(error.remedy_text().is_some());
        }
    }

    #[test]
    fn message_about_an_env_file_quotes_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "docker-compose.yml", "services: {web: {image: x, env_file: conf/app.env}}\n");
        write(dir.path(), "conf/app.env", "A=1\nmy hunter2 password\n");
        let mut output = output(&json!({"services": {}}));
        output.succeeded = false;
        output.stderr =
            "failed to read /tmp/p/1/x/conf/app.env: line 2: unexpected character \" \" in variable name \
            \"my hunter2 password\"\n"
                .into();
        let error = read_output(dir.path(), &output, alone).unwrap_err();
        let told = format!("{error} {}", error.chain());
        assert!(told.contains("conf/app.env: Compose cannot read it, line 2"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn output_that_is_not_understood_quotes_no_value() {
        let dir = tempfile::tempdir().unwrap();
        let output = output(&json!({"services": {"web": {"scale": "hunter2-hunter2"}}}));
        let error = read_output(dir.path(), &output, alone).unwrap_err();
        assert!(!format!("{error} {} {output:?}", error.chain()).contains("hunter2"), "{error}");
    }

    #[test]
    fn unknown_services_and_profiles_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(&json!({"services": {}}));
        output.services = ["db", "web"].map(str::to_owned).into();
        output.profiles = ["debug".to_owned()].into();
        output.succeeded = false;
        output.stderr = "no such service: nginx\n".into();
        let error =
            read_output(dir.path(), &output, |request| request.services = Some("nginx".into())).unwrap_err();
        assert!(error.message().contains("no service \"nginx\""), "{error}");
        assert_eq!(error.remedy_text(), Some("those there are: db, web"));
        let error =
            read_output(dir.path(), &output, |request| request.profiles = vec!["nope".into()]).unwrap_err();
        assert_eq!(error.remedy_text(), Some("those there are: debug"));
    }

    #[test]
    fn incomplete_images_and_unset_variables_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = output(&json!({"services": {"web": {"image": "shop/web:"}}}));
        output.stderr = ["TAG", "OTHER", "TUNNEL_TOKEN"]
            .map(|name| format!("level=warning msg=\"The \\\"{name}\\\" variable is not set. Defaulting\"\n"))
            .concat();
        let (spec, operator) = read_output(dir.path(), &output, alone).unwrap();
        let stack = build(&spec, &operator).unwrap();
        assert_eq!(Vec::from_iter(stack.unset), ["OTHER", "TAG"]);
        assert_eq!(Vec::from_iter(stack.incomplete_images), [("web".to_owned(), "shop/web:".to_owned())]);
    }

    #[test]
    fn always_pulled_image_is_not_left_to_compose() {
        let dir = tempfile::tempdir().unwrap();
        let services = json!({
            "web": {"image": "web:1", "pull_policy": "always"},
            "db": {"image": "db:1", "pull_policy": "missing"},
        });
        let stack = built(dir.path(), services, alone).unwrap();
        assert_eq!(Vec::from_iter(stack.always_pulled), ["web:1"]);
        assert_eq!(stack.override_file.unwrap().matches("pull_policy: missing").count(), 1);
    }

    #[test]
    fn only_the_service_whose_files_changed_gets_another_label() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "www/index.html", "one");
        write(dir.path(), "app.conf", "A=1\n");
        let labels = || {
            let services = json!({
                "web": {"image": "x", "volumes": [bind("www", true)]},
                "app": {"image": "x", "volumes": [bind("app.conf", true)]},
                "bare": {"image": "x"},
            });
            let text = built(dir.path(), services, |_| {}).unwrap().override_file.unwrap();
            let document: Value = serde_saphyr::from_str(&text).unwrap();
            ["web", "app", "bare"]
                .map(|name| document["services"][name]["labels"]["aegis.files_digest"].clone())
        };
        let before = labels();
        write(dir.path(), "www/index.html", "two");
        let after = labels();
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1], after[1]);
        assert!(before[1].is_string() && before[2].is_null());
    }

    #[test]
    fn env_and_override_in_the_same_directory_count() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "docker-compose.override.yml", "services:\n  web: {env_file: web.env}\n");
        write(
            dir.path(),
            ".env",
            "TAG=2\nPASSWORD='hunter2-hunter2'\nCOMPOSE_PROJECT_NAME=x\nCOMPOSE_PROFILES=a, b\n",
        );
        write(dir.path(), "web.env", "KEY=value\n");
        write(dir.path(), "data/x", "");
        let services = json!({"web": {"image": "nginx:2", "volumes": [bind("data", false)]}});
        let (spec, operator) = read(dir.path(), services, alone).unwrap();
        let stack = build(&spec, &operator).unwrap();
        assert!(stack.operator_override.is_some() && stack.node.is_none());
        assert_eq!(stack.profiles, ["a", "b"]);
        assert_eq!(operator.left_out(), ["COMPOSE_PROJECT_NAME"]);
        let roots: Vec<_> = operator.bundle().writable().map(|root| root.path.as_str()).collect();
        assert_eq!(roots, ["data"], "a bind that containers may write to");
        assert_eq!(operator.bundle().private(), ["web.env"]);
        assert!(operator.secrets().iter().any(|secret| secret.reveal() == "hunter2-hunter2"));
        assert!(!format!("{operator:?}").contains("hunter2"));
    }

    #[test]
    fn archive_for_compose_has_what_compose_opens() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services: {web: {env_file: conf/web.env, volumes: ['./data:/d']}}\n",
        );
        write(dir.path(), ".env", "TAG=2\nDOCKER_HOST=x\n");
        write(dir.path(), "conf/web.env", "KEY=value\n");
        write(dir.path(), "data/x", "");
        let mut spec = foreign_spec(|_| {});
        spec.compose_file = Some(dir.path().join("docker-compose.yml"));
        let project = CustomProject::read(&spec).unwrap().unwrap();
        let archive = project.archive(&spec, Some(&aegis_types::secret::Secret::new("a-token"))).unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let files: BTreeMap<String, String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = entry.path().unwrap().to_string_lossy().into_owned();
                (name, std::io::read_to_string(&mut entry).unwrap())
            })
            .collect();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "complete",
                "project/.aegis-variables",
                "project/.env",
                "project/conf/web.env",
                "project/docker-compose.yml"
            ]
        );
        let variables = &files["project/.aegis-variables"];
        assert!(
            variables.contains("TAG=\"2\"") && variables.contains("TUNNEL_TOKEN=\"a-token\""),
            "{variables}"
        );
        assert!(!variables.contains("DOCKER_HOST"));
    }
}
