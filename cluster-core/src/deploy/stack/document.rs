//! What of a compose document matters to a deployment, typed: images, dependencies, ports, and the
//! files that it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde_json::Value;

use super::interpolate::{blanks, interpolate};
use crate::{
    deploy::{
        names::ServiceName,
        ports::{HostPorts, Protocol},
    },
    error::{Error, ErrorCode, Result},
    ids::shown,
};

/// An `extends` of an `extends`, and so on.
const EXTENDS_DEPTH_MAX: usize = 16;
const PORT_RANGE_MAX: u16 = 1000;

/// A port of the host that a service takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    pub service: String,
    pub ports: HostPorts,
}

/// Why a file travels: it decides its mode, and what may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    EnvFile,
    Config,
    Secret,
    /// A bind that containers read only.
    BindReadOnly,
    /// A bind that containers may write to: from its first deployment on, what lies in it is theirs.
    Bind,
}

/// A file or directory that a service names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub kind: Kind,
    /// As it is written, without variables.
    pub path: String,
    /// The key that names it, as people write it.
    pub key: String,
    pub required: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Service {
    pub image: Option<String>,
    pub is_built: bool,
    /// `pull_policy`, as it is written.
    pub pull_policy: Option<String>,
    /// Containers that are wanted, where the file gives a number.
    pub replicas: Option<u64>,
    pub profiles: BTreeSet<String>,
    /// Other services that it cannot run without.
    pub needs: BTreeSet<String>,
    /// Other services that it follows, but runs without: `depends_on` with `required: false`.
    pub wants: BTreeSet<String>,
    /// Ports of the host and port of the container.
    pub ports: Vec<(HostPorts, u16)>,
    pub sources: BTreeSet<Source>,
    extends: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Document {
    pub services: BTreeMap<String, Service>,
    /// Variables that have no value and no default.
    pub blanks: BTreeSet<String>,
}

pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("the compose file cannot be used: {why}"))
}

impl Document {
    pub fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut document: Value =
            serde_saphyr::from_str(text).map_err(|error| refuse("it is not YAML").source(error))?;
        if document.get("include").is_some() {
            return Err(refuse("`include` names files that are not sent along")
                .remedy("write what it includes into the compose file itself"));
        }
        let mut blanks = BTreeSet::new();
        replace_variables(&mut document, "", lookup, &mut blanks)?;
        let named = |kind: &str| Files::of(document.get(kind));
        let (configs, secrets) = (named("configs"), named("secrets"));
        let services = document.get("services").and_then(Value::as_object);
        let services = services.ok_or_else(|| refuse("it has no services"))?;
        let services = services.iter().map(|(name, value)| {
            let name = ServiceName::parse(name)?.to_string();
            let service = Service::parse(&name, value, &configs, &secrets)?;
            Ok((name, service))
        });
        Ok(Self { services: services.collect::<Result<_>>()?, blanks })
    }

    /// Puts another document over this one. A file that is named in either travels.
    #[must_use]
    pub fn merged(mut self, over: Self) -> Self {
        self.blanks.extend(over.blanks);
        for (name, service) in over.services {
            let below = self.services.remove(&name).unwrap_or_default();
            self.services.insert(name, below.under(service));
        }
        self
    }

    /// What a service has by `extends` becomes its own.
    pub fn resolved(self) -> Result<Self> {
        let services = self.services.iter().map(|(name, service)| {
            let mut service = service.clone();
            let mut depth = 0;
            while let Some(parent) = service.extends.take() {
                depth += 1;
                let below = self.services.get(&parent).filter(|_| depth <= EXTENDS_DEPTH_MAX);
                let below = below.ok_or_else(|| {
                    refuse(format!("service {name}: `extends` leads to no service, or in a circle"))
                })?;
                let parent = below.extends.clone();
                service = below.clone().under(service);
                service.extends = parent;
            }
            Ok((name.clone(), service))
        });
        Ok(Self { services: services.collect::<Result<_>>()?, blanks: self.blanks.clone() })
    }
}

/// Top-level configs or secrets that are files, by name.
struct Files(BTreeMap<String, String>);

impl Files {
    fn of(value: Option<&Value>) -> Self {
        let entries = value.and_then(Value::as_object).into_iter().flatten();
        let files = entries.filter_map(|(name, value)| {
            Some((name.clone(), value.get("file").and_then(Value::as_str)?.to_owned()))
        });
        Self(files.collect())
    }

    /// Those that a service uses: by name, or by `source`.
    fn used(&self, service: &Value, key: &'static str, kind: Kind) -> Vec<Source> {
        let uses = service.get(key).and_then(Value::as_array).into_iter().flatten();
        let names = uses.filter_map(|one| one.as_str().or_else(|| one.get("source")?.as_str()));
        let files = names.filter_map(|name| Some((name, self.0.get(name)?)));
        let source = |(name, path): (&str, &String)| Source {
            kind,
            path: path.clone(),
            key: format!("{key}.{name}.file"),
            required: true,
        };
        files.map(source).collect()
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

    fn parse(name: &str, value: &Value, configs: &Files, secrets: &Files) -> Result<Self> {
        let wrong = |key: &str, why: &str| refuse(format!("service {name}: {key} {why}"));
        let extends = match value.get("extends") {
            None | Some(Value::Null) => None,
            Some(extends) if extends.get("file").is_some() => {
                return Err(wrong("`extends`", "names a file that is not sent along")
                    .remedy("write what it extends into the compose file itself"));
            }
            Some(extends) => {
                let parent = extends.as_str().or_else(|| extends.get("service")?.as_str());
                Some(parent.ok_or_else(|| wrong("`extends`", "names no service"))?.to_owned())
            }
        };
        let mut sources = BTreeSet::new();
        sources.extend(env_files(value.get("env_file")).ok_or_else(|| wrong("env_file", "names no file"))?);
        sources.extend(configs.used(value, "configs", Kind::Config));
        sources.extend(secrets.used(value, "secrets", Kind::Secret));
        for volume in list(value.get("volumes")) {
            sources.extend(bind(volume).map_err(|why| wrong("volumes", &why))?);
        }
        let mut ports = Vec::new();
        for port in list(value.get("ports")) {
            let published = published(port);
            ports.extend(
                published.ok_or_else(|| {
                    wrong("ports", &format!("{} is not understood", shown(&port.to_string())))
                })?,
            );
        }
        Ok(Self {
            image: value.get("image").and_then(Value::as_str).map(str::to_owned),
            is_built: value.get("build").is_some_and(|build| !build.is_null()),
            pull_policy: value.get("pull_policy").and_then(Value::as_str).map(str::to_owned),
            replicas: count(value.get("scale"))
                .or_else(|| count(value.get("deploy").and_then(|deploy| deploy.get("replicas")))),
            profiles: strings(value.get("profiles")),
            needs: needs(value),
            wants: dependencies(value, false),
            ports,
            sources,
            extends,
        })
    }

    fn under(mut self, over: Self) -> Self {
        self.image = over.image.or(self.image);
        self.is_built |= over.is_built;
        self.pull_policy = over.pull_policy.or(self.pull_policy);
        self.replicas = over.replicas.or(self.replicas);
        self.profiles.extend(over.profiles);
        self.wants.extend(over.wants);
        self.needs.extend(over.needs);
        self.ports.extend(over.ports);
        self.sources.extend(over.sources);
        self.extends = over.extends.or(self.extends);
        self
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// The strings of a list, or the keys of a map.
fn strings(value: Option<&Value>) -> BTreeSet<String> {
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::Object(map)) => map.keys().cloned().collect(),
        _ => BTreeSet::new(),
    }
}

/// One path, or a list of paths and of `{path, required}`.
fn env_files(value: Option<&Value>) -> Option<Vec<Source>> {
    let one = |value: &Value| {
        let path = value.as_str().or_else(|| value.get("path")?.as_str())?;
        let required = value.get("required").and_then(Value::as_bool).unwrap_or(true);
        Some(Source { kind: Kind::EnvFile, path: path.to_owned(), key: "env_file".to_owned(), required })
    };
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Some(vec![one(value)?]),
    }
}

/// The source of a bind that is ours to send. What begins with `/` or `~` lies on the host, and names
/// without a slash are volumes.
fn bind(volume: &Value) -> Result<Option<Source>, String> {
    let mut kind = Kind::Bind;
    let path = match volume {
        Value::String(text) => match text.split_once(':') {
            None => return Ok(None),
            Some((source, rest)) if source.starts_with(['.', '/', '~']) => {
                let options = rest.split_once(':').map_or("", |(_, options)| options);
                if options.split(',').any(|option| option == "ro") {
                    kind = Kind::BindReadOnly;
                }
                source
            }
            Some((source, _)) if source.contains('/') => {
                return Err(format!("names the volume \"{0}\"; a directory is ./{0}", shown(source)));
            }
            Some(_) => return Ok(None),
        },
        long if long.get("type").and_then(Value::as_str) == Some("bind") => {
            if long.get("read_only").and_then(Value::as_bool) == Some(true) {
                kind = Kind::BindReadOnly;
            }
            long.get("source").and_then(Value::as_str).ok_or("has a bind without a source")?
        }
        _ => return Ok(None),
    };
    if path.starts_with('~') {
        return Ok(None);
    }
    let source = Source { kind, path: path.to_owned(), key: "volumes".to_owned(), required: true };
    Ok(Some(source))
}

/// A number, which variables make a text.
fn count(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Services in `depends_on` that are required, or that are not.
fn dependencies(service: &Value, required: bool) -> BTreeSet<String> {
    let value = service.get("depends_on");
    let mut names = strings(value);
    let is_required = |name: &str| {
        let entry = value.and_then(|value| value.get(name));
        entry.and_then(|entry| entry.get("required")).and_then(Value::as_bool).unwrap_or(true)
    };
    names.retain(|name| is_required(name) == required);
    names
}

fn needs(value: &Value) -> BTreeSet<String> {
    let mut needs = dependencies(value, true);
    let mut links = strings(value.get("links"));
    links.extend(strings(value.get("volumes_from")));
    needs.extend(
        links
            .iter()
            .filter(|text| !text.starts_with("container:"))
            .filter_map(|text| text.split(':').next().map(str::to_owned)),
    );
    for key in ["network_mode", "ipc", "pid"] {
        let other = value.get(key).and_then(Value::as_str).and_then(|text| text.strip_prefix("service:"));
        needs.extend(other.map(str::to_owned));
    }
    needs
}

/// Host and container ports; one that Docker chooses cannot be taken.
fn published(port: &Value) -> Option<Vec<(HostPorts, u16)>> {
    let text = match port {
        Value::Number(_) => return Some(Vec::new()),
        Value::String(text) => text.clone(),
        Value::Object(long) => {
            let text = |key| match long.get(key) {
                Some(Value::String(text)) => Some(text.clone()),
                Some(Value::Number(number)) => Some(number.to_string()),
                _ => None,
            };
            let target = text("target")?;
            let protocol = text("protocol").unwrap_or_else(|| "tcp".to_owned());
            match text("published").filter(|text| !text.is_empty()) {
                None => return Some(Vec::new()),
                Some(published) => {
                    let address = text("host_ip").filter(|text| !text.is_empty());
                    let address = address
                        .map(|ip| if ip.contains(':') { format!("[{ip}]:") } else { format!("{ip}:") });
                    format!("{}{published}:{target}/{protocol}", address.unwrap_or_default())
                }
            }
        }
        _ => return None,
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let Some((host, container)) = ports.rsplit_once(':') else { return Some(Vec::new()) };
    // An address may stand before the port, an IPv6 one in brackets.
    let (address, host) = match host.rsplit_once(':') {
        None => (None, host),
        Some((address, port)) => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            (Some(address.parse::<IpAddr>().ok()?), port)
        }
    };
    let Some(protocol) = Protocol::parse(protocol).filter(|_| !host.is_empty()) else {
        return Some(Vec::new());
    };
    let (hosts, containers) = (range(host)?, range(container)?);
    let ports = |first, last| HostPorts { first, last, protocol, address };
    if containers.len() == 1 {
        return Some(vec![(ports(*hosts.start(), *hosts.end()), *containers.start())]);
    }
    (hosts.len() == containers.len()).then(|| hosts.map(|port| ports(port, port)).zip(containers).collect())
}

fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (first <= last && last - first < PORT_RANGE_MAX).then_some(first..=last)
}

fn replace_variables(
    value: &mut Value,
    at: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    unset: &mut BTreeSet<String>,
) -> Result<()> {
    match value {
        Value::String(text) => {
            if text.contains('$') {
                unset.extend(blanks(text, lookup));
                *text = interpolate(text, lookup).map_err(|why| refuse(format!("{at}: {why}")))?;
            }
        }
        Value::Array(list) => {
            for one in list {
                replace_variables(one, at, lookup, unset)?;
            }
        }
        Value::Object(map) => {
            // Compose has no use for an extension: where an anchor makes it part of a service, it is replaced there.
            for (key, one) in map.iter_mut().filter(|(key, _)| !key.starts_with("x-")) {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                replace_variables(one, &at, lookup, unset)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document> {
        let lookup = |name: &str| (name == "PORT").then(|| "8080".to_owned());
        Document::parse(text, &lookup).and_then(Document::resolved)
    }

    #[test]
    fn all_forms_of_named_files() {
        let document = parse(
            "x-common: &common {env_file: one.env}\n\
             services:\n  \
               a: {<<: *common, image: x}\n  \
               b:\n    image: x\n    env_file: [two.env, {path: three.env, required: false}]\n    \
               configs: [c, {source: d, target: /d}, external]\n    secrets: [s]\n    \
               volumes:\n      - ./conf:/conf:ro\n      - data:/data\n      - /dev/dri:/dev/dri\n      - ~/x:/x\n      - /anonymous\n      \
                 - {type: bind, source: static/, target: /s}\n      - {type: volume, source: v, target: /v}\n\
             configs: {c: {file: ./c.conf}, d: {content: x}, external: {external: true}}\n\
             secrets: {s: {file: s.txt}}\n",
        )
        .unwrap();
        let paths = |name: &str| {
            document.services[name]
                .sources
                .iter()
                .map(|source| (source.kind, source.path.as_str(), source.required))
                .collect::<Vec<_>>()
        };
        assert_eq!(paths("a"), [(Kind::EnvFile, "one.env", true)]);
        assert_eq!(
            paths("b"),
            [
                (Kind::EnvFile, "three.env", false),
                (Kind::EnvFile, "two.env", true),
                (Kind::Config, "./c.conf", true),
                (Kind::Secret, "s.txt", true),
                (Kind::BindReadOnly, "./conf", true),
                (Kind::Bind, "/dev/dri", true),
                (Kind::Bind, "static/", true),
            ]
        );
    }

    #[test]
    fn ports_in_all_forms() {
        let document = parse(
            "services:\n  a:\n    ports: ['${PORT}:80', '127.0.0.1:9000:90/tcp', '53:53/udp', 80, '81', \
             '7000-7001:70-71', '[::1]:6000:60', {target: 50, published: '5000', host_ip: '::1'}, {target: 51}, \
             '4000-4003:40']\n",
        )
        .unwrap();
        let ports = document.services["a"].ports.iter().map(|(host, container)| {
            let address = host.address.map(|address| address.to_string()).unwrap_or_default();
            format!("{address} {host} {container}")
        });
        let expected = [
            " port 8080 80",
            "127.0.0.1 port 9000 90",
            " port 53 (udp) 53",
            " port 7000 70",
            " port 7001 71",
            "::1 port 6000 60",
            "::1 port 5000 50",
            " ports 4000 to 4003 40",
        ];
        assert_eq!(ports.collect::<Vec<_>>(), expected);
        for bad in ["'x:80'", "'x:1:80'", "'1-2:80-82'", "'9-1:80'", "{published: 1}", "[]"] {
            assert!(parse(&format!("services: {{a: {{ports: [{bad}]}}}}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_service_needs_and_what_it_extends() {
        let document = parse(
            "services:\n  a: {depends_on: [b], links: ['c:alias'], network_mode: 'service:d', volumes_from: ['e:ro', 'container:x']}\n  \
             b: {depends_on: {c: {condition: service_healthy}}}\n  \
             base: {image: base, env_file: base.env, profiles: [never]}\n  f: {extends: base, profiles: [p]}\n  \
             g: {extends: {service: f}, image: own}\n",
        )
        .unwrap();
        let needs = |name: &str| document.services[name].needs.iter().cloned().collect::<Vec<_>>();
        assert_eq!(needs("a"), ["b", "c", "d", "e"]);
        assert_eq!(needs("b"), ["c"]);
        assert_eq!(document.services["g"].image.as_deref(), Some("own"));
        assert_eq!(document.services["g"].sources.len(), 1);
        assert_eq!(Vec::from_iter(&document.services["g"].profiles), ["never", "p"]);
    }

    #[test]
    fn parts_that_do_not_run_are_told_from_others() {
        let document = parse(
            "x-route: '^/api$'\nservices:\n  a: {image: x, scale: 0, x-note: '$ 5', pull_policy: always}\n  \
             b: {image: x, deploy: {replicas: 0}, pull_policy: missing, depends_on: {a: {required: false}, c: {}}}\n  \
             c: {image: x, scale: '1', deploy: {replicas: 1}, pull_policy: every_12h}\n",
        )
        .unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| &document.services[name]);
        assert!(a.is_scaled_to_zero() && b.is_scaled_to_zero() && !c.is_scaled_to_zero());
        assert!(a.is_always_pulled() && !b.is_always_pulled() && c.is_always_pulled());
        assert_eq!(
            (Vec::from_iter(&b.needs), Vec::from_iter(&b.wants)),
            (vec![&"c".to_owned()], vec![&"a".to_owned()])
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for (bad, says) in [
            ("include: [x.yml]\nservices: {a: {image: b}}", "include"),
            ("x", "no services"),
            ("a: [", "YAML"),
            ("services: {a: {extends: {file: ../x.yml, service: y}}}", "service a: `extends`"),
            ("services: {a: {extends: a}}", "circle"),
            ("services: {'a b': {image: x}}", "a b"),
            ("services: {a: {env_file: {required: true}}}", "env_file"),
            ("services: {a: {volumes: ['conf/x:/x']}}", "./conf/x"),
            ("services: {a: {image: '${NONE:?say which}'}}", "services.a.image: variable NONE"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains(says), "{bad}: {error}");
        }
    }
}
