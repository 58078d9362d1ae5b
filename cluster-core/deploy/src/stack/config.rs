//! A project as Compose on the host reads it: the output of `docker compose config --format json`, reduced to what a
//! deployment needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aegis_types::{error::Result, text::shown};
use serde::Deserialize;

use super::source::{Kind, Source, refuse};
use crate::model::{
    names::ServiceName,
    ports::{HostPorts, Protocol},
};

const PORT_RANGE_MAX: u16 = 1000;

/// A port of the host that a service takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    pub service: String,
    pub ports: HostPorts,
}

/// Output of Compose about a project.
#[derive(Clone, Default)]
pub struct ComposeOutput {
    /// Names of all services, whatever their profiles.
    pub services: BTreeSet<String>,
    pub profiles: BTreeSet<String>,
    /// The services that `docker compose up` would start, as JSON. It may hold secrets.
    pub json: String,
    pub stderr: String,
    pub succeeded: bool,
    /// The directory that the paths of the project lie in.
    pub directory: String,
    /// A directory above it. A path in this one, but not in `directory`, leads out of the project.
    pub top: String,
}

/// Names only: among the values are secrets.
impl std::fmt::Debug for ComposeOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComposeOutput").field("services", &self.services).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    pub image: Option<String>,
    pub is_built: bool,
    pub pull_policy: Option<String>,
    /// Number of containers, where the project gives one.
    pub replicas: Option<u64>,
    /// Ports of the host and port of the container.
    pub ports: Vec<(HostPorts, u16)>,
    pub sources: BTreeSet<Source>,
}

/// The services that are started, and those that need them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ComposeConfig {
    pub services: BTreeMap<String, Service>,
    /// Names of all services of the project.
    pub known: BTreeSet<String>,
    /// Variables that have no value and no default.
    pub unset: BTreeSet<String>,
}

impl ComposeConfig {
    pub fn parse(output: &ComposeOutput) -> Result<Self> {
        // The parser's own words may quote a value.
        let project: Project = serde_json::from_str(&output.json).map_err(|error| {
            let place = format!("line {}, column {}", error.line(), error.column());
            refuse(format!("the output of docker compose config is not understood, {place}"))
                .remedy("upgrade Aegis, or the Compose plugin of the host")
        })?;
        let paths = Paths { directory: &output.directory, top: &output.top };
        let services = project.services.iter().map(|(name, service)| {
            let name = ServiceName::parse(name)?.to_string();
            let service = service.read(&name, &project, paths)?;
            Ok((name, service))
        });
        Ok(Self {
            services: services.collect::<Result<_>>()?,
            known: output.services.clone(),
            unset: unset_variables(&output.stderr),
        })
    }
}

impl Service {
    /// Whether no container of the service is to run.
    pub fn is_scaled_to_zero(&self) -> bool {
        self.replicas == Some(0)
    }

    /// Whether its image is pulled although the host has one of this name.
    pub fn is_always_pulled(&self) -> bool {
        self.pull_policy.as_deref().is_some_and(|policy| {
            matches!(policy, "always" | "daily" | "weekly") || policy.starts_with("every_")
        })
    }
}

/// Returns the names in Compose's warnings about variables without a value.
pub(super) fn unset_variables(stderr: &str) -> BTreeSet<String> {
    let names = stderr.lines().filter_map(|line| {
        let (before, _) = line.split_once(" variable is not set")?;
        let quoted = before.trim_end_matches(['"', '\\']);
        let name = quoted.rsplit(['"', ' ']).next()?;
        Some(name.to_owned()).filter(|name| !name.is_empty())
    });
    names.collect()
}

// The shapes of Compose's JSON (compose-spec), as far as they matter here.

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    services: BTreeMap<String, ServiceJson>,
    #[serde(default)]
    configs: BTreeMap<String, FileJson>,
    #[serde(default)]
    secrets: BTreeMap<String, FileJson>,
    #[serde(default)]
    volumes: BTreeMap<String, Option<VolumeJson>>,
}

#[derive(Deserialize)]
struct FileJson {
    file: Option<String>,
}

#[derive(Deserialize)]
struct VolumeJson {
    #[serde(default)]
    driver_opts: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct ServiceJson {
    image: Option<String>,
    build: Option<serde_json::Value>,
    pull_policy: Option<String>,
    scale: Option<u64>,
    deploy: Option<DeployJson>,
    #[serde(default)]
    ports: Option<Vec<PortJson>>,
    #[serde(default)]
    volumes: Option<Vec<MountJson>>,
    #[serde(default)]
    configs: Option<Vec<UseJson>>,
    #[serde(default)]
    secrets: Option<Vec<UseJson>>,
}

#[derive(Deserialize)]
struct DeployJson {
    replicas: Option<u64>,
}

#[derive(Deserialize)]
struct PortJson {
    host_ip: Option<String>,
    target: u16,
    published: Option<Number>,
    protocol: Option<String>,
}

/// A port, or a range of ports.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u16),
    Text(String),
}

#[derive(Deserialize)]
struct MountJson {
    #[serde(rename = "type")]
    kind: String,
    source: Option<String>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize)]
struct UseJson {
    source: String,
}

/// Directories that the paths in Compose's output are relative to.
#[derive(Clone, Copy)]
struct Paths<'a> {
    directory: &'a str,
    top: &'a str,
}

impl Paths<'_> {
    /// Returns a path as it is written in a compose file: one of the project is relative.
    fn written(self, path: &str) -> String {
        // Compose writes a dollar twice, so that its output is a compose file again.
        let path = path.replace("$$", "$");
        let below = |directory: &str| path.strip_prefix(directory)?.strip_prefix('/');
        match (path == self.directory, below(self.directory), below(self.top)) {
            (true, ..) => ".".to_owned(),
            (_, Some(below), _) => format!("./{below}"),
            (_, None, Some(outside)) => format!("../{}", outside.rsplit('/').next().unwrap_or_default()),
            (_, None, None) if path == self.top => "..".to_owned(),
            (_, None, None) => path,
        }
    }
}

impl ServiceJson {
    fn read(&self, name: &str, project: &Project, paths: Paths<'_>) -> Result<Service> {
        let mut ports = Vec::new();
        for port in self.ports.iter().flatten() {
            let published = published(port).ok_or_else(|| {
                refuse(format!("service {name}: the port {} is not understood", shown(&port.text())))
            })?;
            ports.extend(published);
        }
        Ok(Service {
            image: self.image.as_ref().map(|image| image.replace("$$", "$")),
            is_built: self.build.as_ref().is_some_and(|build| !build.is_null()),
            pull_policy: self.pull_policy.clone(),
            replicas: self.scale.or_else(|| self.deploy.as_ref()?.replicas),
            ports,
            sources: self.sources(project, paths),
        })
    }

    fn sources(&self, project: &Project, paths: Paths<'_>) -> BTreeSet<Source> {
        let mut sources = BTreeSet::new();
        let mut add = |kind, path: &str, key: String| {
            sources.insert(Source { kind, path: paths.written(path), key, required: true });
        };
        for (key, kind, uses, files) in [
            ("configs", Kind::Config, &self.configs, &project.configs),
            ("secrets", Kind::Secret, &self.secrets, &project.secrets),
        ] {
            for one in uses.iter().flatten() {
                if let Some(file) = files.get(&one.source).and_then(|config| config.file.as_ref()) {
                    add(kind, file, format!("{key}.{}.file", one.source));
                }
            }
        }
        for mount in self.volumes.iter().flatten() {
            let Some(source) = &mount.source else { continue };
            let kind = if mount.read_only { Kind::BindReadOnly } else { Kind::Bind };
            match mount.kind.as_str() {
                "bind" => add(kind, source, "volumes".to_owned()),
                // A volume that is itself a bind of a directory of the project.
                "volume" => {
                    let device = project
                        .volumes
                        .get(source)
                        .and_then(|volume| volume.as_ref()?.driver_opts.as_ref()?.get("device")?.as_str());
                    if let Some(device) = device.filter(|device| paths.written(device).starts_with('.')) {
                        add(Kind::Bind, device, format!("volumes.{source}.driver_opts.device"));
                    }
                }
                _ => {}
            }
        }
        sources
    }
}

impl PortJson {
    fn published(&self) -> Option<String> {
        match self.published.as_ref()? {
            Number::Number(0) => None,
            Number::Number(number) => Some(number.to_string()),
            Number::Text(text) => Some(text.clone()).filter(|text| !text.is_empty() && text != "0"),
        }
    }

    fn text(&self) -> String {
        format!("{}:{}", self.published().unwrap_or_default(), self.target)
    }
}

/// Returns the ports of the host; one that Docker chooses cannot be taken. `None` for what is not understood.
fn published(port: &PortJson) -> Option<Vec<(HostPorts, u16)>> {
    let Some(published) = port.published() else { return Some(Vec::new()) };
    let Some(protocol) = Protocol::parse(port.protocol.as_deref().unwrap_or("tcp")) else {
        return Some(Vec::new());
    };
    let address = match port.host_ip.as_deref().filter(|address| !address.is_empty()) {
        Some(address) => Some(address.parse::<IpAddr>().ok()?),
        None => None,
    };
    let (first, last) = published.split_once('-').unwrap_or((&published, &published));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    let is_sound = first <= last && last - first < PORT_RANGE_MAX;
    is_sound.then(|| vec![(HostPorts { first, last, protocol, address }, port.target)])
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// Output of Compose with these services, which are all of the project's, in `/tmp/p/1/x`.
    pub fn output(json: &serde_json::Value) -> ComposeOutput {
        let services = json["services"].as_object().into_iter().flat_map(|services| services.keys().cloned());
        ComposeOutput {
            services: services.collect(),
            json: json.to_string(),
            succeeded: true,
            directory: "/tmp/p/1/x".into(),
            top: "/tmp/p".into(),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{testing::output, *};

    fn parse(json: &serde_json::Value) -> Result<ComposeConfig> {
        ComposeConfig::parse(&output(json))
    }

    #[test]
    fn sources_of_every_kind_are_paths_of_the_project() {
        let config = parse(&json!({
            "services": {"a": {
                "image": "x",
                "configs": [{"source": "c"}, {"source": "inline", "target": "/d"}],
                "secrets": [{"source": "s", "target": "/run/secrets/s"}],
                "volumes": [
                    {"type": "bind", "source": "/tmp/p/1/x/conf", "target": "/conf", "read_only": true},
                    {"type": "bind", "source": "/dev/dri", "target": "/dev/dri"},
                    {"type": "bind", "source": "/tmp/p/1/x", "target": "/all"},
                    {"type": "bind", "source": "/tmp/p/1/outside", "target": "/o"},
                    {"type": "bind", "source": "/tmp/p/1/x/a$$b", "target": "/b"},
                    {"type": "volume", "source": "data", "target": "/data"},
                    {"type": "volume", "source": "bound", "target": "/bound"},
                    {"type": "volume", "source": "nfs", "target": "/nfs"},
                    {"type": "volume", "target": "/anonymous"},
                    {"type": "tmpfs", "target": "/tmp"},
                ],
            }},
            "configs": {"c": {"file": "/tmp/p/1/x/c.conf"}, "inline": {"content": "x"}},
            "secrets": {"s": {"file": "/tmp/p/1/x/s.txt"}},
            "volumes": {
                "data": {"name": "p_data"},
                "bound": {"driver_opts": {"type": "none", "o": "bind", "device": "/tmp/p/1/x/config"}},
                "nfs": {"driver_opts": {"type": "nfs", "device": ":/export"}},
            },
        }))
        .unwrap();
        let mut sources: Vec<_> = config.services["a"]
            .sources
            .iter()
            .map(|source| (source.path.as_str(), source.kind, source.key.as_str()))
            .collect();
        sources.sort_unstable();
        assert_eq!(
            sources,
            [
                (".", Kind::Bind, "volumes"),
                ("../outside", Kind::Bind, "volumes"),
                ("./a$b", Kind::Bind, "volumes"),
                ("./c.conf", Kind::Config, "configs.c.file"),
                ("./conf", Kind::BindReadOnly, "volumes"),
                ("./config", Kind::Bind, "volumes.bound.driver_opts.device"),
                ("./s.txt", Kind::Secret, "secrets.s.file"),
                ("/dev/dri", Kind::Bind, "volumes"),
            ]
        );
    }

    #[test]
    fn ports_of_the_host_are_read() {
        let config = parse(&json!({"services": {"a": {"ports": [
            {"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp"},
            {"host_ip": "::1", "target": 50, "published": 5000},
            {"target": 53, "published": "53", "protocol": "udp"},
            {"target": 40, "published": "4000-4003"},
            {"target": 81, "protocol": "tcp"},
            {"target": 82, "published": "0"},
            {"target": 83, "published": "83", "protocol": "sctp"},
        ]}}}))
        .unwrap();
        let ports = config.services["a"].ports.iter().map(|(host, container)| {
            let address = host.address.map(|address| address.to_string()).unwrap_or_default();
            format!("{address} {host} {container}")
        });
        let expected = [" port 8080 80", "::1 port 5000 50", " port 53 (udp) 53", " ports 4000 to 4003 40"];
        assert_eq!(ports.collect::<Vec<_>>(), expected);
        for bad in [json!("9-1"), json!("1-2000"), json!("x")] {
            let error =
                parse(&json!({"services": {"a": {"ports": [{"target": 1, "published": bad}]}}})).unwrap_err();
            assert!(error.message().contains("service a: the port"), "{error}");
        }
    }

    #[test]
    fn parts_that_do_not_run_are_told_from_others() {
        let config = parse(&json!({"services": {
            "a": {"scale": 0, "pull_policy": "always", "build": {"context": "/tmp/p/1/x"}},
            "b": {"deploy": {"replicas": 0}, "pull_policy": "missing", "build": null},
            "c": {"deploy": {"replicas": 1}, "pull_policy": "every_12h"},
        }}))
        .unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| &config.services[name]);
        assert!(a.is_scaled_to_zero() && b.is_scaled_to_zero() && !c.is_scaled_to_zero());
        assert!(a.is_always_pulled() && !b.is_always_pulled() && c.is_always_pulled());
        assert!(a.is_built && !b.is_built);
    }

    #[test]
    fn variables_without_a_value_are_read_from_warnings() {
        let stderr = "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"The \\\"TAG\\\" variable is not set. \
            Defaulting to a blank string.\"\nWARN[0000] The \"OTHER\" variable is not set. Defaulting to a blank string.\n\
            something else\n";
        assert_eq!(Vec::from_iter(unset_variables(stderr)), ["OTHER", "TAG"]);
    }
}
