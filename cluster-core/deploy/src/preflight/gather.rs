//! Facts about a host, gathered before anything is changed on it. One script collects them in one round trip. The
//! link's forwarding is tested in both directions, by a socket or else by a port.

use std::{collections::BTreeMap, time::Duration};

use aegis_engine::nvidia_smi;
use aegis_ssh::{Connection, ForwardEndpoint, SshStream};
use aegis_types::error::{Error, ErrorCode, Result};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    health::{CONTAINER_FORMAT, StackSnapshot},
    host::scripts,
    model::{
        facts::HostFacts,
        ports::{BoundSocket, Protocol},
        project::PROJECT,
        release::ReleaseManifest,
    },
};

const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// Size limit of all files that are sent with a stack: 64 MiB.
const HASHED_BYTES_MAX: &str = "67108864";
const DIGESTS_LIMIT: Duration = Duration::from_secs(60);
const FORWARD_LIMIT: Duration = Duration::from_secs(10);

/// Gathers all facts. An error means that the host could not be asked at all.
pub async fn gather(
    connection: &Connection,
    base_dir: &str,
    images: &[String],
    now_seconds: i64,
) -> Result<HostFacts> {
    let mut arguments = vec![base_dir, PROJECT, CONTAINER_FORMAT];
    arguments.extend(images.iter().map(String::as_str));
    let output = connection.script(scripts::CHECKS, &arguments, SCRIPT_LIMIT).await?;
    if !output.success() {
        let why = aegis_ssh::script::tail(&output.stderr, 3);
        return Err(Error::new(ErrorCode::HostCheckFailed, format!("the host cannot be examined: {why}")));
    }
    let mut facts = parse(&output.stdout, now_seconds)?;
    facts.files = file_digests(connection, base_dir, &facts).await?;
    if let Err(sockets) = socket_forwarding(connection, &facts, base_dir).await {
        facts.sockets_error = Some(sockets.message().to_owned());
        let ports = port_forwarding(connection).await.err();
        facts.forwarding_error = ports.map(|ports| format!("{}; {}", sockets.message(), ports.message()));
    }
    Ok(facts)
}

/// Returns the digests of the files that the current release names. Other files are ignored, since containers may keep
/// any amount of data in the same directories.
async fn file_digests(
    connection: &Connection,
    base_dir: &str,
    facts: &HostFacts,
) -> Result<BTreeMap<String, String>> {
    let Some(release) = &facts.release else { return Ok(BTreeMap::new()) };
    let names: String = release.files.keys().map(|name| format!("{name}\n")).collect();
    let directory = format!("{base_dir}/current");
    let elevated = facts.sudo.then(|| connection.elevated());
    let connection = elevated.as_ref().unwrap_or(connection);
    let input = std::io::Cursor::new(names.into_bytes());
    let arguments = [directory.as_str(), HASHED_BYTES_MAX];
    let output = connection
        .script_with_input(scripts::FILE_DIGESTS, &arguments, input, DIGESTS_LIMIT)
        .await
        .map_err(|error| match error.code() {
            ErrorCode::Timeout => {
                Error::new(ErrorCode::Timeout, format!("hash the release's files: {}", error.message()))
            }
            _ => error,
        })?;
    Ok(output.stdout.lines().filter_map(file).collect())
}

/// Forwards a socket on the host to this controller and connects to it from the host: both directions of the link at
/// once.
///
/// Uses the link's directory if it exists, since labels or a network file system may prevent sshd from using it. The
/// directory is never created here.
async fn socket_forwarding(connection: &Connection, facts: &HostFacts, base_dir: &str) -> Result<()> {
    let directory = if facts.link_directory { format!("{base_dir}/run") } else { "/tmp".to_owned() };
    let path = format!("{directory}/aegis-check-{}.sock", uuid::Uuid::new_v4().simple());
    let end = ForwardEndpoint::Socket(path.clone());
    let (sender, streams) = mpsc::channel(1);
    connection.listen(&end, sender).await?;
    let tried = there_and_back(connection, &end, streams).await;
    connection.unlisten(&end).await?;
    connection.script(scripts::REMOVE_FILE, &[&path], FORWARD_LIMIT).await?;
    tried
}

/// Does the same with a port of the host's loopback.
async fn port_forwarding(connection: &Connection) -> Result<()> {
    let (sender, streams) = mpsc::channel(1);
    let end = connection.listen_somewhere(sender).await?;
    let tried = there_and_back(connection, &end, streams).await;
    connection.unlisten(&end).await?;
    tried
}

async fn there_and_back(
    connection: &Connection,
    end: &ForwardEndpoint,
    mut streams: mpsc::Receiver<SshStream>,
) -> Result<()> {
    let _out = connection.open_channel(end).await?;
    match timeout(FORWARD_LIMIT, streams.recv()).await {
        Ok(Some(_)) => Ok(()),
        _ => Err(Error::new(ErrorCode::HostCheckFailed, format!("a forwarded {end} leads nowhere"))),
    }
}

/// Parses the script's output.
///
/// # Errors
/// Fails if a release note exists but cannot be read: the host would count as a host without a release.
pub fn parse(text: &str, now_seconds: i64) -> Result<HostFacts> {
    let mut facts = HostFacts { clock_skew_seconds: 0, ..HostFacts::default() };
    let (mut containers, mut now) = (String::new(), String::new());
    let (mut gpu_rows, mut gpu_list) = (String::new(), String::new());
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let value = value.trim();
        let some = || Some(value.to_owned()).filter(|value| !value.is_empty());
        let megabytes = || value.parse::<u64>().unwrap_or(0) / 1024;
        match name {
            "os" => facts.os = value.to_owned(),
            "arch" => facts.arch = value.to_owned(),
            "uid" => facts.uid = value.parse().unwrap_or(u32::MAX),
            "gid" => facts.gid = value.parse().unwrap_or(u32::MAX),
            "user" => facts.user = value.to_owned(),
            "sudo" => facts.sudo = true,
            "sudo_logs_input" => facts.sudo_logs_input = true,
            "base_volatile" => facts.base_volatile = true,
            "sudo_error" => facts.sudo_error = some(),
            "epoch" => {
                now = format!("now {value}\n");
                facts.clock_skew_seconds = value.parse::<i64>().map_or(0, |epoch| epoch - now_seconds);
            }
            "cpus" => facts.cpus = value.parse().unwrap_or(1),
            "memory_total_kb" => facts.memory_total_mb = megabytes(),
            "memory_free_kb" => facts.memory_free_mb = megabytes(),
            "disk_total_kb" => facts.disk_total_mb = megabytes(),
            "disk_free_kb" => facts.disk_free_mb = megabytes(),
            "disk_path" => facts.disk_path = value.to_owned(),
            "flock" => facts.has_flock = true,
            "docker_cli" => facts.docker_cli = true,
            "docker_version" => facts.docker_version = some(),
            "docker_error" => facts.docker_error = value.to_owned(),
            "docker_socket" => facts.docker_socket = some(),
            "docker_gid" => facts.docker_gid = value.parse().unwrap_or(0),
            "compose_version" => facts.compose_version = some(),
            "nvidia_runtime" => facts.nvidia_runtime = true,
            "gpu" => gpu_rows.push_str(&format!("{value}\n")),
            "gpu_list" => gpu_list.push_str(&format!("{value}\n")),
            "base_exists" => facts.base_exists = true,
            "base_writable" => facts.base_writable = true,
            "bound" => {
                let socket = BoundSocket::parse(value);
                facts.listening.extend(
                    socket.filter(|socket| socket.protocol == Protocol::Tcp).map(|socket| socket.port),
                );
                facts.bound.extend(socket);
            }
            "container" => containers.push_str(&format!("{value}\n")),
            "replaced" => facts.replaced.extend(some()),
            "link_directory" => facts.link_directory = true,
            "base_read_only" => facts.base_read_only = true,
            "base_free_kb" => facts.base_free_mb = megabytes(),
            "tar" => facts.has_tar = true,
            "docker_selinux" => facts.docker_selinux = true,
            "docker_rootless" => facts.docker_rootless = true,
            "docker_snap" => facts.docker_snap = true,
            "nvidia_toolkit" => facts.nvidia_toolkit = true,
            "image" => facts.images.extend(some()),
            "link" => facts.link = serde_json::from_str(value).ok(),
            "release" => facts.release = Some(release(value)?),
            "ready" => facts.ready = serde_json::from_str(value).ok(),
            "kept" => facts.releases.extend(some()),
            _ => {}
        }
    }
    facts.gpus = nvidia_smi::parse(&gpu_rows, &gpu_list).into_iter().map(|found| found.device).collect();
    facts.look = StackSnapshot::parse(&(now + &containers));
    Ok(facts)
}

fn release(text: &str) -> Result<ReleaseManifest> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorCode::HostCheckFailed, "current/release.json on the host cannot be read")
            .remedy("restore the file on the host, or remove the node (its volumes stay) and deploy again")
            .source(error)
    })
}

/// A line of `sha256sum`.
fn file(line: &str) -> Option<(String, String)> {
    let (digest, path) = line.split_once("  ")?;
    Some((path.trim_start_matches("./").to_owned(), digest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_lines() {
        let text = "os=Linux\narch=x86_64\nuid=0\nepoch=1060\ncpus=2\nmemory_total_kb=2097152\ndisk_free_kb=1048576\n\
                    docker_version=26.1.5\ncompose_version=2.26.1\nbound=tcp 0100007F:1F9A\nbound=tcp 00000000000000000000000000000000:0016\nbound=udp 3500007F:0035\nbound=x\n\
                    replaced=docker-compose.yml\nbase_free_kb=2048\n\
                    container={\"id\":\"a\",\"service\":\"node\",\"status\":\"running\",\"health\":\"\",\"exit_code\":0,\
                    \"oom_killed\":false,\"restarts\":0,\"started_at\":\"x\",\"policy\":\"no\",\"image\":\"x\"}\n\
                    gpu=0, GPU-1, Enabled, 40960, NVIDIA A100\ngpu=1, GPU-2, [N/A], 15360, Tesla T4\n\
                    gpu_list=GPU 0: NVIDIA A100 (UUID: GPU-1)\ngpu_list=  MIG 1g.5gb  Device  0: (UUID: MIG-1)\nimage=a:b\nbase_writable=yes\nkept=x\nnoise\n";
        let facts = parse(text, 1000).unwrap();
        assert_eq!((facts.os.as_str(), facts.cpus, facts.clock_skew_seconds), ("Linux", 2, 60));
        assert_eq!((facts.memory_total_mb, facts.disk_free_mb), (2048, 1024));
        assert_eq!(Vec::from_iter(&facts.listening), [&22, &8090]);
        let bound: Vec<String> = facts.bound.iter().map(ToString::to_string).collect();
        assert_eq!(bound, ["tcp 127.0.0.1:8090", "tcp [::]:22", "udp 127.0.0.53:53"]);
        let gpus = facts.gpus.iter().map(|gpu| format!("{} {} {}", gpu.uuid, gpu.name, gpu.memory_mb));
        assert_eq!(Vec::from_iter(gpus), ["MIG-1 NVIDIA A100 MIG 1g.5gb 4291", "GPU-2 Tesla T4 15360"]);
        assert!(
            facts.look.runs("node")
                && facts.base_free_mb == 2
                && facts.replaced.contains("docker-compose.yml")
        );
        assert!(parse("release={\"deployment_id\":\n", 0).is_err(), "a note that was cut is not no release");
        assert!(facts.base_writable && !facts.docker_cli);
    }
}
