//! Findings that stand in the way of a deployment. A pure function of the facts reports all of them at once, each with
//! a remedy.

use aegis_types::{
    error::{Error, ErrorCode},
    gpu,
};

use crate::{
    Finding, Severity,
    model::{drift::drift, facts::HostFacts, project::PROJECT, spec::DeploymentSpec},
    stack::{Published, Stack},
};

const DOCKER_MINIMUM: (u32, u32) = (20, 10);
const COMPOSE_MINIMUM: u32 = 2;
const MEMORY_MINIMUM_MB: u64 = 256;
const MEMORY_FOR_OLLAMA_MB: u64 = 4096;
/// Free space for releases, which are small, and for files sent with a stack: 64 MB at most.
const BASE_FREE_MINIMUM_MB: u64 = 200;
const CLOCK_SKEW_MAX_SECONDS: i64 = 30;

/// Facts about the stack to run that the findings depend on.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub stack: &'a Stack,
    /// The controller can build a node image for the host's architecture.
    pub has_node_binary: bool,
    /// Name of this cluster in release notes.
    pub cluster: &'a str,
    /// The stack has files that are sent with it.
    pub has_files: bool,
    /// Recorded base directory of the node; `None` for a node that was not deployed.
    pub recorded_base: Option<&'a str>,
}

pub fn findings(facts: &HostFacts, spec: &DeploymentSpec, wanted: Wanted<'_>) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    let user = &spec.target.user;
    if facts.os != "Linux" {
        found.error("os", format!("the host runs {}, not Linux", facts.os), "deploy to a Linux machine");
    } else if wanted.stack.node.is_some() && !wanted.has_node_binary {
        found.error(
            "architecture",
            format!("the host is {}, and this controller has no node executable for it", facts.arch),
            format!("name a static aegis executable in spec.deploy.node_binaries.{}", facts.arch),
        );
    }
    docker(facts, user.as_str(), &mut found);
    docker_kind(facts, &spec.base_dir, &mut found);
    if facts.disk_free_mb < spec.minimum_disk_gb * 1024 {
        found.error(
            "disk",
            format!(
                "only {} GB are free for Docker at {}, {} GB are needed",
                gigabytes(facts.disk_free_mb),
                facts.disk_path,
                spec.minimum_disk_gb
            ),
            "free some space (docker system prune shows what can go), or lower spec.deploy.min_free_disk_gb",
        );
    }
    let ollama = wanted.stack.ollama.is_some();
    if facts.memory_total_mb < MEMORY_MINIMUM_MB {
        found.error(
            "memory",
            format!("the host has {} MB of memory", facts.memory_total_mb),
            "use a larger machine",
        );
    } else if ollama && facts.memory_total_mb < MEMORY_FOR_OLLAMA_MB {
        found.warning(
            "memory",
            format!("{} MB of memory are little for Ollama", facts.memory_total_mb),
            "deploy with services=node, or use a larger machine",
        );
    }
    variables(wanted.stack, &mut found);
    for published in &wanted.stack.ports {
        port(facts, published, &mut found);
    }
    base(facts, spec, user.as_str(), &mut found);
    let other = facts.release.as_ref().and_then(|release| release.cluster.as_deref());
    if let Some(other) = other.filter(|other| *other != wanted.cluster && !spec.take_over) {
        found.error(
            "other_cluster",
            format!("the host runs a release of another cluster, {other}"),
            "remove the node there, or take the host over: aegis deploy HOST --take-over",
        );
    }
    foreign_stack(facts, spec, wanted, &mut found);
    if wanted.has_files && !facts.has_tar {
        found.error(
            "tar",
            "the host has no tar command, which unpacks the stack's files",
            "install tar on the host",
        );
    }
    for drift in drift(facts) {
        found.warning("drift", drift.to_string(), drift.fix());
    }
    if !facts.has_flock {
        found.error("flock", "the host has no flock command", "install util-linux on the host");
    }
    if let Some(why) = &facts.forwarding_error {
        found.error(
            "forwarding",
            format!("sshd does not forward what the link needs: {why}"),
            "set AllowTcpForwarding yes and AllowStreamLocalForwarding yes, and no DisableForwarding, in \
             sshd_config on the host (the first alone will do)",
        );
    }
    if facts.clock_skew_seconds.abs() > CLOCK_SKEW_MAX_SECONDS {
        found.warning(
            "clock",
            format!("the host's clock is {} s off", facts.clock_skew_seconds),
            "set up time synchronisation on the host (chrony, systemd-timesyncd)",
        );
    }
    if !facts.gpus.is_empty() && !facts.nvidia_runtime {
        found.warning(
            "gpu",
            format!("{}, but Docker has no nvidia runtime: they stay unused", gpus(facts)),
            match facts.nvidia_toolkit {
                true => "on the host: nvidia-ctk runtime configure --runtime=docker, then restart Docker",
                false => "install the NVIDIA container toolkit on the host",
            },
        );
    }
    if let Some(release) = facts.release.as_ref().filter(|release| release.node_id != spec.node) {
        found.error(
            "identity",
            format!("the host already is the node {}, not {}", release.node_id, spec.node),
            format!(
                "if this machine is a copy of that node's, run on the copy: docker compose -p {PROJECT} down, \
                 docker volume rm {PROJECT}_node_data, rm -r {1}; if it is that node's own machine, deploy with \
                 identity={0}, or remove the node first: aegis node remove {0}",
                release.node_id, spec.base_dir
            ),
        );
    }
    found.0
}

/// Formats megabytes as gigabytes with one decimal, so that 9.9 and 10 differ.
fn gigabytes(megabytes: u64) -> String {
    format!("{}.{}", megabytes / 1024, megabytes % 1024 * 10 / 1024)
}

/// Reports containers of the project that belong to no known release, and a base directory other than the recorded one.
/// A first deployment would replace such containers, and its failure would remove them.
fn foreign_stack(facts: &HostFacts, spec: &DeploymentSpec, wanted: Wanted<'_>, found: &mut Findings) {
    let base = &spec.base_dir;
    if let Some(recorded) = wanted.recorded_base.filter(|recorded| recorded != base) {
        found.error(
            "base_moved",
            format!("the stack of {} was deployed to {recorded}, not to {base}", spec.node),
            format!(
                "set spec.deploy.base_dir back to {recorded}; to move the stack, remove the node first (its \
                 volumes stay): aegis node remove {}",
                spec.node
            ),
        );
    }
    if facts.release.is_some() || facts.look.containers.is_empty() || spec.take_over {
        return;
    }
    let services: Vec<&str> = facts.look.containers.iter().map(|one| one.service.as_str()).collect();
    let from = facts.look.containers.iter().find_map(|one| one.directory.as_deref());
    let from = from.filter(|from| !from.is_empty()).map(|from| format!(", started from {from}"));
    found.error(
        "foreign_stack",
        format!(
            "the host has containers of project {PROJECT} ({}{}), and {base} holds no release that accounts \
             for them",
            services.join(", "),
            from.unwrap_or_default()
        ),
        "find out whose they are: docker compose ls -a; to replace them, ask the person to run: aegis deploy \
         HOST --take-over",
    );
}

fn gpus(facts: &HostFacts) -> String {
    format!("{} GPU(s) with {} GB", facts.gpus.len(), gpu::memory_gb(facts.gpus.iter()))
}

fn base(facts: &HostFacts, spec: &DeploymentSpec, user: &str, found: &mut Findings) {
    let base = &spec.base_dir;
    if facts.base_read_only {
        found.error(
            "read_only",
            format!("{base} lies on a file system that is read-only"),
            "mount it for writing, or name another directory in spec.deploy.base_dir",
        );
    } else if !facts.base_writable {
        found.error(
            "base_directory",
            format!("{user} may not write {base}"),
            format!("run on the host: sudo install -d -m 700 -o {user} {base}"),
        );
    }
    if facts.base_volatile {
        found.error(
            "volatile",
            format!("{base} lies in memory (tmpfs): after a reboot the containers start without their files"),
            "name a directory on a disk in spec.deploy.base_dir",
        );
    }
    if facts.sudo_logs_input {
        found.error(
            "sudo_log",
            format!("sudo logs what it reads for {user} (log_input), and the files of a release hold secrets"),
            format!(
                "run on the host: echo 'Defaults:{user} !log_input' | sudo tee /etc/sudoers.d/{user}-aegis; or deploy \
                 as another user"
            ),
        );
    }
    if facts.base_free_mb < BASE_FREE_MINIMUM_MB {
        found.error(
            "base_disk",
            format!(
                "only {} MB are free at {base}, {BASE_FREE_MINIMUM_MB} MB are needed",
                facts.base_free_mb
            ),
            "free some space there, or name another directory in spec.deploy.base_dir",
        );
    }
}

/// Reports Docker variants whose containers do not see the host's files or network as the stack needs them.
fn docker_kind(facts: &HostFacts, base_dir: &str, found: &mut Findings) {
    if facts.docker_rootless {
        found.error(
            "docker_rootless",
            "Docker runs rootless: its containers have neither the host's network nor its users",
            "run the Docker engine as root on the host (https://docs.docker.com/engine/install/)",
        );
    }
    if facts.docker_snap && !base_dir.starts_with("/home/") {
        found.error(
            "docker_snap",
            format!("Docker comes from a snap, which cannot mount {base_dir}"),
            "install Docker from the distribution or from docker.com instead, or set spec.deploy.base_dir to a \
             directory under /home",
        );
    }
    if facts.docker_selinux {
        found.warning(
            "selinux",
            "Docker keeps containers from files by SELinux labels: binds of the stack may be refused",
            format!("run on the host: sudo chcon -R -t container_file_t {base_dir}, and allow containers its socket"),
        );
    }
}

fn docker(facts: &HostFacts, user: &str, found: &mut Findings) {
    if !facts.docker_cli {
        let fix = "install Docker 20.10 or newer with Compose v2 on the host (https://docs.docker.com/engine/install/)";
        found.error("docker_missing", "the host has no docker command", fix);
        return;
    }
    match &facts.docker_version {
        None if facts.docker_error.to_lowercase().contains("permission denied") => found.error(
            "docker_permission",
            match &facts.sudo_error {
                None => format!("{user} may not use Docker"),
                Some(why) => format!("{user} may not use Docker, nor sudo -n sh: {why}"),
            },
            format!(
                "run on the host: sudo usermod -aG docker {user}, or let it use sudo without a password: echo \
                 '{user} ALL=(root) NOPASSWD: ALL' | sudo tee /etc/sudoers.d/{user}; or deploy as another user"
            ),
        ),
        None => found.error(
            "docker_not_running",
            format!("the Docker engine does not answer: {}", facts.docker_error),
            "start it on the host: systemctl start docker",
        ),
        Some(version) if version_of(version) < DOCKER_MINIMUM => found.error(
            "docker_too_old",
            format!("Docker {version} is older than 20.10"),
            "upgrade Docker on the host",
        ),
        Some(_) if facts.docker_socket.is_none() => found.error(
            "docker_socket",
            "the Docker engine has no socket at /var/run/docker.sock",
            "run Docker with its default socket on the host",
        ),
        Some(_) => {}
    }
    match &facts.compose_version {
        None => found.error(
            "compose_missing",
            "the host has no Compose v2 (docker compose)",
            "install docker-compose-plugin (or docker-compose v2) on the host",
        ),
        Some(version) if version_of(version).0 < COMPOSE_MINIMUM => {
            found.error(
                "compose_too_old",
                format!("Compose {version} is older than v2"),
                "upgrade it on the host",
            );
        }
        Some(_) => {}
    }
}

/// Judges a port of the stack. A running service already holds its own port. If the engine does not answer, listeners
/// cannot be identified, and the running node would be taken for a foreign process.
fn port(facts: &HostFacts, published: &Published, found: &mut Findings) {
    let Published { service, ports } = published;
    if facts.docker_version.is_none() {
        return;
    }
    let ours = facts.release.is_some() && facts.look.runs(service);
    let replaced = facts.release.is_none() && !facts.look.containers.is_empty();
    if ports.are_taken(facts.bound.iter().copied()) && !ours && !replaced {
        found.error(
            "port",
            format!("{ports}, which service {service} takes, is taken on the host"),
            format!("stop what listens there; on the host: ss -lntup 'sport = :{}'", ports.first),
        );
    }
}

/// Reports variables of the compose file without a value, and images that are incomplete for that reason.
fn variables(stack: &Stack, found: &mut Findings) {
    let names: Vec<&str> = stack.unset.iter().map(String::as_str).collect();
    for (service, image) in &stack.incomplete_images {
        found.error(
            "image",
            format!("the image of service {service}, \"{image}\", is not complete"),
            match names.as_slice() {
                [] => "write its name and tag into the compose file".to_owned(),
                names => format!(
                    "set what it is made of in .env beside the compose file; without a value are {}",
                    names.join(", ")
                ),
            },
        );
    }
    if !names.is_empty() {
        found.warning(
            "variables",
            format!(
                "variables of the compose file have no value, and nothing stands in their place: {}",
                names.join(", ")
            ),
            "set them in .env beside the compose file, or give each a default: ${NAME:-default}",
        );
    }
}

fn version_of(text: &str) -> (u32, u32) {
    let mut numbers =
        text.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Combines the errors among the findings into one error; `None` if there are no errors.
pub fn refusal(host: &str, found: &[Finding]) -> Option<Error> {
    let errors: Vec<&Finding> = found.iter().filter(|finding| finding.severity == Severity::Error).collect();
    if errors.is_empty() {
        return None;
    }
    let join = |part: fn(&Finding) -> &str| {
        errors.iter().map(|finding| part(finding)).collect::<Vec<_>>().join("; ")
    };
    let message = format!("{host} is not ready: {}", join(|finding| &finding.message));
    Some(Error::new(ErrorCode::HostCheckFailed, message).remedy(join(|finding| &finding.fix)))
}

struct Findings(Vec<Finding>);

impl Findings {
    fn error(&mut self, code: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.push(code, Severity::Error, message.into(), fix.into());
    }
    fn warning(&mut self, code: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.push(code, Severity::Warning, message.into(), fix.into());
    }
    fn push(&mut self, code: &str, severity: Severity, message: String, fix: String) {
        let message = aegis_ssh::script::tail(&message.replace('\n', " "), 1);
        self.0.push(Finding { code: code.to_owned(), severity, message, fix });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        DeploySettings, DeploymentRequest,
        health::StackSnapshot,
        model::{
            ports::{BoundSocket, Protocol},
            release::ReleaseManifest,
        },
        stack,
    };
    use aegis_types::{
        gpu::GpuDevice,
        ids::{DeploymentId, GpuUuid, NodeId},
        principal::Origin,
    };

    fn gpu() -> GpuDevice {
        GpuDevice { uuid: GpuUuid::parse("GPU-1").unwrap(), name: "A10".into(), memory_mb: 23_028 }
    }

    fn spec() -> DeploymentSpec {
        let request = DeploymentRequest { host: "edge1".into(), ..Default::default() };
        request.validate(Origin::Person, &DeploySettings::default()).unwrap().spec
    }

    fn taken(ports: &[u16]) -> BTreeSet<BoundSocket> {
        let socket = |port: &u16| BoundSocket {
            protocol: Protocol::Tcp,
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            port: *port,
        };
        ports.iter().map(socket).collect()
    }

    fn good() -> HostFacts {
        HostFacts {
            os: "Linux".into(),
            arch: "x86_64".into(),
            cpus: 2,
            memory_total_mb: 8192,
            disk_free_mb: 50 * 1024,
            has_flock: true,
            has_tar: true,
            docker_cli: true,
            docker_version: Some("26.1.5+dfsg1".into()),
            docker_socket: Some("/var/run/docker.sock".into()),
            compose_version: Some("2.26.1-4".into()),
            base_writable: true,
            base_free_mb: 50 * 1024,
            ..Default::default()
        }
    }

    fn judged(facts: &HostFacts, has_node_binary: bool) -> Vec<Finding> {
        let stack = stack::build(&spec(), None, false).unwrap();
        findings(
            facts,
            &spec(),
            Wanted { stack: &stack, has_node_binary, cluster: "ours", has_files: true, recorded_base: None },
        )
    }

    fn codes(facts: &HostFacts) -> Vec<String> {
        judged(facts, true).into_iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_good_host_has_none() {
        assert!(codes(&good()).is_empty());
        assert!(refusal("edge1", &[]).is_none());
    }

    #[test]
    fn each_lack_is_found() {
        let cases: Vec<(&str, HostFacts)> = vec![
            ("os", HostFacts { os: "Darwin".into(), ..good() }),
            ("docker_missing", HostFacts { docker_cli: false, ..good() }),
            (
                "docker_permission",
                HostFacts { docker_version: None, docker_error: "Permission denied".into(), ..good() },
            ),
            (
                "docker_permission",
                HostFacts {
                    docker_version: None,
                    docker_error: "permission denied".into(),
                    sudo_error: Some("sudo: a password is required".into()),
                    ..good()
                },
            ),
            ("docker_not_running", HostFacts { docker_version: None, ..good() }),
            ("docker_too_old", HostFacts { docker_version: Some("19.03.15".into()), ..good() }),
            ("compose_missing", HostFacts { compose_version: None, ..good() }),
            ("compose_too_old", HostFacts { compose_version: Some("1.29.2".into()), ..good() }),
            ("disk", HostFacts { disk_free_mb: 10 * 1024 - 1, ..good() }),
            ("memory", HostFacts { memory_total_mb: 100, ..good() }),
            ("port", HostFacts { bound: taken(&[8090]), ..good() }),
            ("port", HostFacts { bound: taken(&[11434]), ..good() }),
            ("base_directory", HostFacts { base_writable: false, ..good() }),
            ("read_only", HostFacts { base_read_only: true, base_writable: false, ..good() }),
            ("base_disk", HostFacts { base_free_mb: 100, ..good() }),
            ("volatile", HostFacts { base_volatile: true, ..good() }),
            ("sudo_log", HostFacts { sudo_logs_input: true, ..good() }),
            ("tar", HostFacts { has_tar: false, ..good() }),
            ("docker_rootless", HostFacts { docker_rootless: true, ..good() }),
            ("docker_snap", HostFacts { docker_snap: true, ..good() }),
            ("selinux", HostFacts { docker_selinux: true, ..good() }),
            ("gpu", HostFacts { gpus: vec![gpu()], ..good() }),
            ("flock", HostFacts { has_flock: false, ..good() }),
            ("forwarding", HostFacts { forwarding_error: Some("refused".into()), ..good() }),
            ("clock", HostFacts { clock_skew_seconds: -600, ..good() }),
        ];
        for (code, facts) in cases {
            assert_eq!(codes(&facts), [code], "{code}");
        }
    }

    #[test]
    fn our_own_stack_may_hold_its_ports() {
        let line = r#"{"id":"X","service":"X","status":"running","health":"","exit_code":0,"oom_killed":false,"restarts":0,"started_at":"","policy":"no","image":""}"#;
        let facts = HostFacts {
            bound: taken(&[8090, 11434]),
            release: Some(release()),
            look: StackSnapshot::parse(&format!(
                "{}\n{}\n",
                line.replace("X", "node"),
                line.replace("X", "ollama")
            )),
            ..good()
        };
        assert!(codes(&facts).is_empty());
    }

    fn release() -> ReleaseManifest {
        ReleaseManifest {
            deployment_id: DeploymentId::mint(1, 1),
            node_id: NodeId::parse("edge1").unwrap(),
            files: Default::default(),
            services: vec!["node".into(), "ollama".into()],
            cluster: None,
            goal: None,
        }
    }

    const CONTAINER: &str = r#"{"id":"X","service":"node","status":"running","health":"","exit_code":0,"oom_killed":false,"restarts":0,"started_at":"","policy":"no","image":"","directory":"/srv/comet"}"#;

    #[test]
    fn stack_without_a_release_is_foreign() {
        let facts = HostFacts { look: StackSnapshot::parse(CONTAINER), bound: taken(&[8090]), ..good() };
        let found = judged(&facts, true);
        assert_eq!(found.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(), ["foreign_stack"]);
        assert!(found[0].message.contains("/srv/comet") && found[0].fix.contains("--take-over"), "{found:?}");
        let taken = DeploymentSpec { take_over: true, ..spec() };
        let stack = stack::build(&taken, None, false).unwrap();
        let wanted = Wanted {
            stack: &stack,
            has_node_binary: true,
            cluster: "ours",
            has_files: false,
            recorded_base: None,
        };
        assert_eq!(findings(&facts, &taken, wanted), []);
        let known = HostFacts {
            release: Some(ReleaseManifest { services: vec!["node".into()], ..release() }),
            ..facts
        };
        assert!(codes(&known).is_empty());
    }

    #[test]
    fn base_other_than_the_recorded_one_is_found() {
        let stack = stack::build(&spec(), None, false).unwrap();
        let wanted = |recorded| Wanted {
            stack: &stack,
            has_node_binary: true,
            cluster: "ours",
            has_files: false,
            recorded_base: Some(recorded),
        };
        assert_eq!(findings(&good(), &spec(), wanted("/opt/aitheros-edge")), []);
        let found = findings(&good(), &spec(), wanted("/srv/edge"));
        assert_eq!(found[0].code, "base_moved");
        assert!(found[0].fix.contains("/srv/edge") && found[0].fix.contains("node remove"), "{found:?}");
    }

    #[test]
    fn port_is_not_judged_while_the_engine_is_down() {
        let facts =
            HostFacts { docker_version: None, bound: taken(&[8090]), release: Some(release()), ..good() };
        assert_eq!(codes(&facts), ["docker_not_running"]);
    }

    #[test]
    fn incomplete_image_is_an_error_and_unset_variable_a_warning() {
        let stack = Stack {
            unset: ["TAG".to_owned()].into(),
            incomplete_images: [("web".to_owned(), "shop/web:".to_owned())].into(),
            ..Stack::default()
        };
        let wanted = Wanted {
            stack: &stack,
            has_node_binary: true,
            cluster: "ours",
            has_files: false,
            recorded_base: None,
        };
        let found = findings(&good(), &spec(), wanted);
        let told: Vec<_> = found.iter().map(|one| (one.code.as_str(), one.severity)).collect();
        assert_eq!(told, [("image", Severity::Error), ("variables", Severity::Warning)]);
        assert!(found.iter().all(|one| one.message.contains("TAG") || one.fix.contains("TAG")));
    }

    #[test]
    fn free_disk_shows_one_decimal_and_the_path() {
        let facts = HostFacts { disk_free_mb: 10 * 1024 - 1, disk_path: "/var/lib/docker".into(), ..good() };
        let message = &judged(&facts, true)[0].message;
        assert!(message.contains("9.9 GB") && message.contains("/var/lib/docker"), "{message}");
    }

    #[test]
    fn another_node_on_the_host_is_named() {
        let release =
            ReleaseManifest { node_id: NodeId::parse("atlas").unwrap(), services: Vec::new(), ..release() };
        let found = judged(&HostFacts { release: Some(release), ..good() }, true);
        assert!(found[0].message.contains("atlas") && found[0].message.contains("edge1"));
    }

    #[test]
    fn another_clusters_release_is_named() {
        let release = ReleaseManifest {
            deployment_id: DeploymentId::mint(1, 1),
            node_id: NodeId::parse("edge1").unwrap(),
            files: Default::default(),
            services: Vec::new(),
            cluster: Some("theirs".into()),
            goal: None,
        };
        let facts = HostFacts { release: Some(release), ..good() };
        assert_eq!(codes(&facts), ["other_cluster"]);
    }

    #[test]
    fn all_come_at_once_in_one_error() {
        let facts = HostFacts { docker_cli: false, disk_free_mb: 0, ..good() };
        let error = refusal("edge1", &judged(&facts, true)).unwrap();
        assert_eq!(error.code(), ErrorCode::HostCheckFailed);
        assert!(error.message().contains("docker") && error.message().contains("GB"), "{error}");
    }

    #[test]
    fn another_architecture_names_the_setting() {
        let facts = HostFacts { arch: "aarch64".into(), ..good() };
        let found = judged(&facts, false);
        assert!(found[0].fix.contains("node_binaries.aarch64"));
    }
}
