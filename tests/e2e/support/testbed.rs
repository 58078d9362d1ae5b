//! Edge hosts of the testbed, and direct access to them without their sshd.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

#[derive(Debug, Clone, serde::Deserialize)]
pub struct Host {
    pub name: String,
    pub ip: String,
    pub port: u16,
    pub user: String,
    pub key_path: PathBuf,
    pub known_hosts_path: PathBuf,
}

pub fn from_environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests are run by tests/run"))
}

pub fn hosts() -> [Host; 2] {
    all_hosts().try_into().expect("two hosts: tests/testbed up 2 --json")
}

/// Returns all hosts, of any number.
pub fn all_hosts() -> Vec<Host> {
    let path = from_environment("AEGIS_TESTBED_HOSTS");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).expect("a JSON list of hosts")
}

/// Returns a Python with the official MCP client.
pub fn python() -> PathBuf {
    from_environment("AEGIS_TEST_PYTHON").into()
}

/// Returns the testbed script.
pub fn script() -> PathBuf {
    from_environment("AEGIS_TESTBED").into()
}

/// Runs the testbed script and returns its output, whatever its status.
fn testbed(words: &[&str]) -> Output {
    Command::new(script()).args(words).output().expect("the testbed script starts")
}

fn stdout_of(words: &[&str]) -> String {
    let output = testbed(words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "testbed {words:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Resets both hosts.
pub fn reset() {
    stdout_of(&["reset"]);
}

/// Runs the client of this machine's own engine, on which the hosts are containers.
pub fn own_engine(words: &[&str]) -> String {
    stdout_of(&[&["docker"], words].concat())
}

impl Host {
    /// Runs a shell script in the host; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        stdout_of(&["exec", &self.name, "sh", "-c", script])
    }

    /// Returns whether a shell script succeeds in the host.
    pub fn holds(&self, script: &str) -> bool {
        testbed(&["exec", &self.name, "sh", "-c", script]).status.success()
    }

    /// Starts a private registry in the host and returns its image.
    pub fn registry(&self, user: &str, password: &str) -> String {
        let mut child = Command::new(from_environment("AEGIS_TESTBED"))
            .args(["registry", &self.name, user])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the testbed script starts");
        child.stdin.take().expect("a pipe").write_all(password.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("its output");
        assert!(output.status.success(), "the registry does not start");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// Returns the fingerprint as `ssh-keygen -l` shows it, which a person compares.
    pub fn fingerprint(&self) -> String {
        let line = self.sh("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
        line.split_whitespace().nth(1).expect("a fingerprint").to_owned()
    }

    /// Returns the duration of a manual deployment here, as the testbed measures it.
    pub fn by_hand(&self) -> serde_json::Value {
        serde_json::from_str(&stdout_of(&["by-hand", &self.name])).expect("JSON")
    }

    /// Returns everything that a deployment could leave, which is empty on an untouched host. (A starting engine makes
    /// /opt/containerd.)
    pub fn traces(&self) -> String {
        self.sh("ls -A /opt | grep -vx containerd; docker ps -a --format '{{.Names}}'; docker volume ls -q; \
             docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -vx busybox:testbed; true")
    }

    pub fn key(&self) -> String {
        self.key_path.display().to_string()
    }
}

/// Restarts the host's engine: its supervisor starts it once it has ended.
pub const RESTART_DOCKER: &str = "old=$(pidof dockerd); kill $old; \
     until now=$(pidof dockerd) && [ \"$now\" != \"$old\" ] && docker info >/dev/null 2>&1; do sleep 0.1; done";

/// Returns the full ids of the containers of an execution, including ended ones.
pub fn containers_of(host: &Host, execution_id: &str) -> Vec<String> {
    let filter = format!("label=aegis.execution_id={execution_id}");
    let ids = host.sh(&format!("docker ps -a --no-trunc --filter {filter} --format '{{{{.ID}}}}'"));
    ids.lines().map(str::to_owned).collect()
}

/// Undoes a test's changes of a host, also when the test fails.
pub struct Disturbed<'a> {
    host: &'a Host,
    undo: &'static str,
}

impl<'a> Disturbed<'a> {
    pub fn new(host: &'a Host, script: &str, undo: &'static str) -> Self {
        // Before the disturbance: half of one is undone too.
        let disturbed = Self { host, undo };
        host.sh(script);
        disturbed
    }
}

impl Drop for Disturbed<'_> {
    fn drop(&mut self) {
        if !self.host.holds(self.undo) {
            eprintln!("{}: could not be undone: {}", self.host.name, self.undo);
        }
    }
}
