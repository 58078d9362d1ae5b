//! The operator's stack with what is ours added by an override: the node, an image in place of a build,
//! and a label that recreates a service when its files have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{
    NODE_PORT_DEFAULT, NodeService, OLLAMA_PORT, OllamaService, Published, Stack,
    document::{Service, refuse},
    node_fragment,
    operator::OperatorStack,
    selection::selected,
};
use crate::{
    deploy::{hex_digest, ports::HostPorts, release, spec::DeploymentSpec},
    error::{Error, Result},
};

/// Where a foreign stack has the usual port for itself.
const NODE_PORT_BESIDE: u16 = 8091;
const HEAD: &str = "# Added by aegis to the operator's stack.\n";

pub(super) fn build(spec: &DeploymentSpec, operator: &OperatorStack) -> Result<Stack> {
    let services = &operator.document.services;
    let mut profiles = operator.profiles.clone();
    profiles.extend(spec.profiles.iter().map(ToString::to_string));
    let mut started = selected(&operator.document, &spec.services, &profiles)?;
    let replaced = replaced(spec, services.iter().filter(|(name, _)| started.contains(name)))?;
    let mut images = Vec::new();
    let mut always_pulled = BTreeSet::new();
    let mut incomplete_images = BTreeMap::new();
    let mut ours = String::new();
    let mut ports = Vec::new();
    for (name, service) in services {
        let is_replaced = replaced == Some(name.as_str());
        ours.push_str(&addition(operator, name, service, is_replaced));
        if started.contains(name) {
            let image = if is_replaced { spec.image.as_ref() } else { service.image.as_ref() };
            if let Some(image) = image.filter(|image| is_incomplete(image)) {
                incomplete_images.insert(name.clone(), image.clone());
            }
            images.extend(image.cloned());
            always_pulled.extend(image.filter(|_| service.is_always_pulled()).cloned());
        }
        if started.contains(name) && !service.is_scaled_to_zero() {
            ports.extend(
                service.ports.iter().map(|(ports, _)| Published { service: name.clone(), ports: *ports }),
            );
        }
    }
    started.retain(|name| !services[name].is_scaled_to_zero());
    let node = spec.join.then(|| NodeService {
        service: if services.contains_key("node") { "aegis-node" } else { "node" }.to_owned(),
        // Also one that is taken by a service on the host's network.
        port: match operator.compose.contains(&NODE_PORT_DEFAULT.to_string()) {
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
    if ollama.is_none() && !spec.models.is_empty() {
        return Err(Error::invalid("models: no service that is started runs Ollama").remedy(
            "start the service of the compose file whose image is ollama/ollama, or leave models out",
        ));
    }
    Ok(Stack {
        compose: operator.compose.clone(),
        operator_override: operator.override_file.clone(),
        override_file,
        images,
        always_pulled,
        unset: operator.document.blanks.iter().filter(|name| !is_set_on_the_host(name)).cloned().collect(),
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
        profiles: profiles.into_iter().collect(),
        ports,
    })
}

/// Returns the service that runs the image of the request instead of its build. A service with `build` and
/// `image` runs its image, which is pulled or sent; one image cannot stand for several builds.
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

/// Whether `.env` on the host may have a variable that is not known here.
fn is_set_on_the_host(name: &str) -> bool {
    name.starts_with("AEGIS_") || matches!(name, "TUNNEL_TOKEN" | "CLOUDFLARE_TUNNEL_TOKEN")
}

/// Whether a part of a reference is empty, which a variable without a value leaves so.
fn is_incomplete(image: &str) -> bool {
    image.is_empty()
        || image.ends_with([':', '@', '/'])
        || image.starts_with([':', '@', '/'])
        || image.contains("//")
}

fn addition(operator: &OperatorStack, name: &str, service: &Service, is_replaced: bool) -> String {
    let mut text = String::new();
    if is_replaced {
        text.push_str("    image: ${AITHER_EDGE_IMAGE}\n");
    }
    // The images are on the host before the stack is started: pulled with the logins and the time that pulls
    // have, which Compose knows nothing of.
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
        // Compose looks at names of files only.
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

    use super::*;
    use crate::deploy::stack::testing::foreign_spec;

    fn write(dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    fn built(dir: &Path, change: impl FnOnce(&mut crate::deploy::DeploymentRequest)) -> Result<Stack> {
        let mut spec = foreign_spec(change);
        spec.compose_file = Some(dir.join("docker-compose.yml"));
        let operator = OperatorStack::read(&spec)?.unwrap();
        build(&spec, &operator)
    }

    #[test]
    fn a_foreign_stack_gets_our_node_and_no_build() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = "services:\n  aithernode:\n    build: ../..\n    ports: ['8090:8090']\n  ollama:\n    image: ollama/ollama\n";
        write(dir.path(), "docker-compose.yml", foreign);
        let error = built(dir.path(), |_| {}).unwrap_err();
        assert!(error.to_string().contains("AITHER_EDGE_IMAGE"), "{error}");
        let stack = built(dir.path(), |request| request.image = Some("ghcr.io/x/y:1".into())).unwrap();
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
        let stack = |services: &str, image: Option<&str>| {
            write(dir.path(), "docker-compose.yml", &format!("services:\n{services}"));
            built(dir.path(), |request| {
                request.image = image.map(str::to_owned);
                request.join = Some(false);
            })
        };
        let web = "  web: {image: 'web:1', build: ., pull_policy: build}\n";
        let both = format!("{web}  worker: {{image: 'worker:1', build: .}}\n");
        let made = stack(&both, None).unwrap();
        assert_eq!(made.images, ["web:1", "worker:1"]);
        assert!(made.override_file.unwrap().contains("pull_policy: missing"));
        assert_eq!(stack(web, Some("web:2")).unwrap().images, ["web:2"]);
        assert_eq!(stack(&both, Some("worker:1")).unwrap().images, ["web:1", "worker:1"]);
        for (services, image) in [
            (both.as_str(), Some("x:1")),
            ("  web: {build: .}\n  worker: {build: .}\n", Some("x:1")),
            ("  web: {build: .}\n  worker: {build: .}\n", None),
        ] {
            let error = stack(services, image).unwrap_err();
            assert!(error.message().contains("services web, worker"), "{error}");
        }
        let idle = "  web: {image: x}\n  lint: {build: ., profiles: [dev]}\n  batch: {image: x, scale: 0, ports: ['1:1']}\n";
        let made = stack(idle, None).unwrap();
        assert_eq!((made.services, made.ports), (vec!["web".to_owned()], Vec::new()));
    }

    #[test]
    fn dotenv_of_the_stack_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let compose = "services:\n  web: {image: x, env_file: .env}\n  app: {image: x, volumes: ['./.env:/app/.env:ro']}\n";
        write(dir.path(), "docker-compose.yml", compose);
        let error = built(dir.path(), |_| {}).unwrap_err();
        assert!(error.message().contains(".env: it is not there"), "{error}");
        let made = |env: &str| {
            write(dir.path(), ".env", env);
            built(dir.path(), |_| {}).unwrap().override_file.unwrap()
        };
        let before = made("A=1\n");
        assert_eq!(before.matches("aegis.files_digest").count(), 2);
        assert_ne!(before, made("A=2\n"), "a changed .env recreates them");
    }

    #[test]
    fn keys_of_the_application_arrive_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let made = |compose: &str, env: &str| {
            write(dir.path(), "docker-compose.yml", compose);
            write(dir.path(), ".env", env);
            let mut spec = foreign_spec(|request| request.join = Some(false));
            spec.compose_file = Some(dir.path().join("docker-compose.yml"));
            OperatorStack::read(&spec).map(|operator| operator.unwrap())
        };
        let web =
            "services: {web: {image: 'x:${DOCKER_TAG:?}', environment: {P: '${COMPOSE_PROJECT_NAME:?}'}}}";
        let operator = made(web, "DOCKER_TAG=1\nLD_P=secret\nCOMPOSE_FILE=./docker-compose.yml\n").unwrap();
        let keys: Vec<&str> = operator.environment().map(|(key, _)| key).collect();
        assert_eq!(keys, ["DOCKER_TAG", "LD_P"]);
        for (compose, env, says) in [
            (web, "DOCKER_TAG=1\nCOMPOSE_FILE=docker-compose.yml:prod.yml\n", "COMPOSE_FILE"),
            ("services: {web: {image: 'x:${DOCKER_HOST:?}'}}", "DOCKER_HOST=1\n", "DOCKER_HOST"),
            ("services: {web: {image: 'x:$LD_PRELOAD'}}", "LD_PRELOAD=1\n", "LD_PRELOAD"),
        ] {
            let error = made(compose, env).unwrap_err();
            assert!(error.message().contains(says), "{error}");
            assert!(error.remedy_text().is_some());
        }
    }

    #[test]
    fn pwd_is_the_directory_of_the_compose_file() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services:\n  web: {image: x, env_file: '${PWD}/a.env', volumes: ['${PWD}/a.conf:/etc/a.conf:ro']}\n",
        );
        write(dir.path(), "a.env", "A=1\n");
        write(dir.path(), "a.conf", "");
        let mut spec = foreign_spec(|_| {});
        spec.compose_file = Some(dir.path().join("docker-compose.yml"));
        let operator = OperatorStack::read(&spec).unwrap().unwrap();
        let roots: Vec<&str> = operator.bundle().roots().iter().map(|root| root.path.as_str()).collect();
        assert_eq!(roots, ["a.conf", "a.env"]);
    }

    #[test]
    fn unset_variables_and_incomplete_images_are_told() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services:\n  web: {image: 'shop/web:${TAG}', labels: {a: '$OTHER${SET:-1}$', b: $TUNNEL_TOKEN}}\n  idle: {image: '${NONE}', profiles: [p]}\n",
        );
        let stack = built(dir.path(), |_| {}).unwrap();
        assert_eq!(Vec::from_iter(stack.unset), ["NONE", "OTHER", "TAG"]);
        assert_eq!(Vec::from_iter(stack.incomplete_images), [("web".to_owned(), "shop/web:".to_owned())]);
    }

    #[test]
    fn always_pulled_image_is_not_left_to_compose() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services:\n  web: {image: 'web:1', pull_policy: always}\n  db: {image: 'db:1', pull_policy: missing}\n",
        );
        let stack = built(dir.path(), |request| request.join = Some(false)).unwrap();
        assert_eq!(Vec::from_iter(stack.always_pulled), ["web:1"]);
        assert_eq!(stack.override_file.unwrap().matches("pull_policy: missing").count(), 1);
    }

    #[test]
    fn only_the_service_whose_files_changed_gets_another_label() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services:\n  web: {image: x, volumes: ['./www:/www:ro']}\n  app: {image: x, env_file: app.env}\n  bare: {image: x}\n",
        );
        write(dir.path(), "www/index.html", "one");
        write(dir.path(), "app.env", "A=1\n");
        let labels = || {
            let text = built(dir.path(), |_| {}).unwrap().override_file.unwrap();
            let document: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
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
    fn env_and_override_beside_the_compose_file_count() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker-compose.yml",
            "services:\n  web: {image: 'nginx:${TAG:-1}', volumes: ['${DIR}:/d']}\n",
        );
        write(
            dir.path(),
            "docker-compose.override.yml",
            "services:\n  web: {ports: ['${PORT}:80']}\n  extra: {image: other}\n",
        );
        write(
            dir.path(),
            ".env",
            "TAG=2\nDIR=./data\nPORT=8080\nPASSWORD='hunter2-hunter2'\nCOMPOSE_PROJECT_NAME=x\n",
        );
        write(dir.path(), "data/x", "");
        let mut spec = foreign_spec(|request| request.join = Some(false));
        spec.compose_file = Some(dir.path().join("docker-compose.yml"));
        let operator = OperatorStack::read(&spec).unwrap().unwrap();
        let stack = build(&spec, &operator).unwrap();
        assert_eq!(stack.images, ["nginx:2", "other"]);
        assert_eq!(stack.ports, [Published { service: "web".into(), ports: HostPorts::tcp(8080) }]);
        assert!(stack.operator_override.is_some() && stack.node.is_none());
        assert_eq!(operator.left_out(), ["COMPOSE_PROJECT_NAME"]);
        let roots: Vec<_> = operator.bundle().writable().map(|root| root.path.as_str()).collect();
        assert_eq!(roots, ["data"], "a bind that containers may write to");
        assert!(operator.secrets().iter().any(|secret| secret.reveal() == "hunter2-hunter2"));
        assert!(!format!("{operator:?}").contains("hunter2"));
        let picked = built(dir.path(), |request| request.services = Some("extra".into())).unwrap();
        assert_eq!(picked.services, ["extra", "node"]);
    }
}
