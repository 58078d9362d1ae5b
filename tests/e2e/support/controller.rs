//! A real `aegis serve` with its own data directory: started, killed, restarted.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{
    cli::{self, Answer},
    http,
    poll::until,
    testbed::Host,
};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(40);
const LOG_LINES_SHOWN: usize = 60;

/// Configuration of a controller.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Lines below `spec.deploy`.
    pub deploy: String,
    /// Lines below `spec.cluster`.
    pub cluster: String,
    /// `spec.runtime`, in braces.
    pub runtime: &'static str,
    /// `spec.mcp`, in braces; omitted if empty.
    pub mcp: &'static str,
    /// The node's id.
    pub id: &'static str,
    /// `spec.node.tags`; omitted if empty.
    pub tags: &'static str,
    /// `spec.node.resources`, in braces.
    pub resources: &'static str,
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        let cluster = format!("role: hybrid\n    cluster_grpc_port: {}", free_port());
        Self {
            deploy: "min_free_disk_gb: 1".into(),
            cluster,
            runtime: "{}",
            mcp: "",
            id: "home",
            tags: "home",
            resources: "{}",
            environment: Vec::new(),
        }
    }
}

impl Setup {
    /// Admits the keys of the testbed: its known_hosts, and the directory of its login key.
    pub fn for_hosts(hosts: &[Host]) -> Self {
        let host = &hosts[0];
        let key_dir = host.key_path.parent().expect("a directory");
        let deploy = format!(
            "min_free_disk_gb: 1\n    known_hosts: {}\n    key_dirs: [{}]\n    host_key_policy: strict",
            host.known_hosts_path.display(),
            key_dir.display()
        );
        Self { deploy, ..Self::default() }
    }

    fn file(&self) -> String {
        let tags = match self.tags {
            "" => String::new(),
            tags => format!(", tags: [{tags}]"),
        };
        let mcp = match self.mcp {
            "" => String::new(),
            mcp => format!("  mcp: {mcp}\n"),
        };
        format!(
            "apiVersion: 100monkeys.ai/v1\nkind: NodeConfig\nmetadata: {{name: e2e}}\nspec:\n  \
             node: {{id: {}, type: hybrid{tags}, resources: {}}}\n  cluster:\n    {}\n  \
             network: {{port: 0}}\n  runtime: {}\n{mcp}  deploy:\n    {}\n",
            self.id, self.resources, self.cluster, self.runtime, self.deploy
        )
    }
}

/// Returns a free loopback port below the range from which the kernel takes ports for connections and for listeners on
/// port 0. A killed daemon therefore finds its port free again.
pub fn free_port() -> u16 {
    const TRIES_MAX: usize = 100;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..TRIES_MAX).map(|_| fastrand::u16(10_000..32_000)).find(is_free).expect("a free port")
}

pub struct Controller {
    pub data: PathBuf,
    environment: Vec<(&'static str, String)>,
    daemon: Option<Daemon>,
    // Last: the directory goes when the daemon has ended.
    _directory: tempfile::TempDir,
}

struct Daemon {
    child: Child,
    /// Ends the daemon when this process ends in any way; it waits on a pipe.
    reaper: Child,
}

impl Controller {
    pub async fn start(setup: &Setup) -> Self {
        let mut controller = Self::prepare(setup);
        controller.start_again().await;
        controller
    }

    /// Prepares everything but the process, for a daemon that another process starts.
    pub fn prepare(setup: &Setup) -> Self {
        // Short: a socket's path has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("aegis-e2e-").tempdir().expect("a directory");
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("the data directory");
        std::fs::write(directory.path().join("aegis.yaml"), setup.file()).expect("the configuration");
        Self { data, environment: setup.environment.clone(), daemon: None, _directory: directory }
    }

    pub fn config(&self) -> PathBuf {
        self.data.with_file_name("aegis.yaml")
    }

    pub async fn start_again(&mut self) {
        self.launch();
        until("the controller is ready", START_LIMIT, async || {
            self.check_alive();
            let health = self.api("/health").await.ok()?;
            (health["ready"] == true && self.address().is_some()).then_some(())
        })
        .await;
    }

    /// Starts the process without waiting for it.
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log");
        let child = Command::new(cli::BINARY)
            .args(["serve", "--config"])
            .arg(self.config())
            .env("AEGIS_DATA_DIR", &self.data)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            // Nothing of the person who runs the tests.
            .env("HOME", self.data.parent().expect("a parent"))
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("aegis starts");
        let reaper = Command::new("sh")
            .args(["-c", "read -r _; kill -KILL \"$1\"", "reaper", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        self.daemon = Some(Daemon { child, reaper });
    }

    fn check_alive(&mut self) {
        if let Some(daemon) = &mut self.daemon
            && let Ok(Some(status)) = daemon.child.try_wait()
        {
            panic!("the controller ended: {status}\n{}", self.log_end());
        }
    }

    /// Kills the daemon, like a power cut.
    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Stops the daemon, like an operator.
    pub async fn stop(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        signal(&daemon.child, Signal::SIGTERM);
        until("the controller stops when told to", STOP_LIMIT, async || daemon.child.try_wait().ok()?).await;
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, with: Signal) {
        if let Some(mut daemon) = self.daemon.take() {
            // The reaper first: the daemon's number may be another's soon.
            signal(&daemon.reaper, Signal::SIGKILL);
            daemon.reaper.wait().expect("the reaper ends");
            signal(&daemon.child, with);
            daemon.child.wait().expect("the controller ends");
            // A killed one leaves it behind, and the next start must not be taken for the last.
            let _ = std::fs::remove_file(self.data.join("http.addr"));
        }
        self.end_detached();
    }

    /// Ends a daemon that `aegis mcp` or `aegis up` started; its command line names the data directory.
    fn end_detached(&self) {
        let Some(pid) = self.owner() else { return };
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&command).contains(&*self.data.to_string_lossy()) {
            return;
        }
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        let deadline = Instant::now() + STOP_LIMIT;
        while !has_ended(pid) {
            assert!(Instant::now() < deadline, "process {pid} does not end");
            std::thread::yield_now();
        }
    }

    /// Returns the current or last owner process of the data directory.
    pub fn owner(&self) -> Option<i32> {
        std::fs::read_to_string(self.data.join("lock")).ok()?.trim().parse().ok()
    }

    /// Sends a GET over the data directory's own socket, as a person.
    pub async fn api(&self, path: &str) -> Result<Value, String> {
        http::get_unix(&self.data.join("api.sock"), path).await
    }

    /// Sends a POST over the data directory's own socket, as a person.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        http::post_unix(&self.data.join("api.sock"), path, body).await
    }

    /// Returns the text of a GET; for a stream, up to the expected text.
    pub async fn text(&self, path: &str, holds: impl Fn(&str) -> bool) -> String {
        http::read_unix(&self.data.join("api.sock"), path, holds).await
    }

    /// Like [`text`](Self::text), but returns the unread body.
    pub async fn unread(&self, path: &str) -> hyper::body::Incoming {
        http::open_unix(&self.data.join("api.sock"), path).await
    }

    /// Returns the address of HTTP, like `127.0.0.1:41234`.
    pub fn address(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.data.join("http.addr")).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.data.join("http.token")).expect("the token").trim().to_owned()
    }

    /// Runs the command line against this controller.
    pub async fn cli(&self, words: &[&str]) -> Answer {
        self.cli_with(words, &[]).await
    }

    pub async fn cli_with(&self, words: &[&str], environment: &[(&str, &str)]) -> Answer {
        cli::run(&self.data, words, environment, b"").await
    }

    /// Approves the host, as a person who compared the fingerprint.
    pub async fn approve(&self, host: &Host) {
        let port = host.port.to_string();
        let fingerprint = host.fingerprint();
        let words = ["host", "approve", &host.ip, "--port", &port, "--fingerprint", &fingerprint];
        self.cli(&words).await.succeeded();
    }

    /// See [`memory_kb`].
    pub fn memory_kb(&self, figure: &str) -> u64 {
        memory_kb(self.daemon.as_ref().expect("it runs").child.id(), figure)
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_file_name("serve.log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// Returns all data that the controller wrote: its database, its files and its log.
    pub fn everything_written(&self) -> Vec<(PathBuf, Vec<u8>)> {
        super::files::below(self.data.parent().expect("a parent"))
    }
}

/// Returns a figure of a process in KB, as `/proc` names it: `VmRSS` is the current one, `VmHWM` its peak.
pub fn memory_kb(pid: u32, figure: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).expect("a figure of the process");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
}

/// Returns whether the process is gone, or is a zombie with a single thread.
fn has_ended(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    threads <= 1 && state == Some('Z')
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(pid), signal);
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
        if std::thread::panicking() {
            keep_log(&self.log_path(), &self.log());
        }
    }
}

/// Keeps the controller's log in the directory of the run's logs.
fn keep_log(path: &Path, log: &str) {
    let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let kept = super::files::logs_dir().join(format!("controller-{name}.log"));
    let copied = File::create(&kept).and_then(|mut file| file.write_all(log.as_bytes()));
    match copied {
        Ok(()) => eprintln!("the controller's log ({}) is {}", path.display(), kept.display()),
        Err(e) => eprintln!("the controller's log could not be kept: {e}\n{log}"),
    }
}
