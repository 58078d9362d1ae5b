//! Container starts as reported by the engines, independent of the product, and the containers that remain at the end.

use std::{
    collections::BTreeSet,
    process::Stdio,
    sync::{Arc, Mutex},
};

use cluster_core::types::ids::ExecutionId;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::checker::EngineStart;
use crate::support::{
    fleet::Fleet,
    testbed::{self, Host},
};

const LABEL: &str = "aegis.execution_id";

/// Follows the events of all engines until dropped.
pub struct Witness {
    starts: Arc<Mutex<BTreeSet<EngineStart>>>,
    _followers: Vec<Child>,
}

impl Witness {
    pub fn new(hosts: &[Host]) -> Self {
        let since = testbed::own_engine(&["info", "--format", "{{.SystemTime}}"]);
        let starts = Arc::default();
        let own = testbed_command(&["docker"]);
        let on_hosts = hosts.iter().map(|host| testbed_command(&["exec", &host.name, "docker"]));
        let commands = std::iter::once(own).chain(on_hosts);
        let _followers = commands.map(|command| follow(command, since.trim(), &starts)).collect();
        Self { starts, _followers }
    }

    pub fn starts(&self) -> BTreeSet<EngineStart> {
        self.starts.lock().expect("no panic holds it").clone()
    }
}

fn testbed_command(words: &[&str]) -> Command {
    let mut command = Command::new(testbed::script());
    command.args(words);
    command
}

fn follow(mut client: Command, since: &str, starts: &Arc<Mutex<BTreeSet<EngineStart>>>) -> Child {
    let label = |name: &str| format!("{{{{index .Actor.Attributes \"aegis.{name}\"}}}}");
    let format =
        format!("{} {} {} {{{{.Actor.ID}}}}", label("execution_id"), label("attempt"), label("iteration"));
    let mut child = client
        .args(["events", "--since", since, "--filter", "type=container", "--filter", "event=start"])
        .args(["--filter", &format!("label={LABEL}"), "--format", &format])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("the client of an engine starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let starts = starts.clone();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let start = parse(&line).unwrap_or_else(|| panic!("no start of a container: {line:?}"));
            starts.lock().expect("no panic holds it").insert(start);
        }
    });
    child
}

fn parse(line: &str) -> Option<EngineStart> {
    let mut words = line.split_whitespace();
    Some(EngineStart {
        execution_id: ExecutionId::parse(words.next()?).ok()?,
        attempt: words.next()?.parse().ok()?,
        iteration: words.next()?.parse().ok()?,
        container: words.next()?.to_owned(),
    })
}

/// Returns the names of remaining containers of these executions, including ended ones. The hosts have no others.
pub fn containers(fleet: &Fleet, ours: &BTreeSet<String>) -> Vec<String> {
    const FORMAT: &str = "{{.Names}} {{.Label \"aegis.execution_id\"}}";
    let filter = format!("label={LABEL}");
    let own = testbed::own_engine(&["ps", "--all", "--filter", &filter, "--format", FORMAT]);
    let own = own.lines().filter_map(|line| line.split_once(' ').filter(|(_, id)| ours.contains(*id)));
    let mut found: Vec<String> = own.map(|(name, _)| name.to_owned()).collect();
    for host in &fleet.hosts {
        let names = host.sh(&format!("docker ps --all --filter {filter} --format '{{{{.Names}}}}'"));
        found.extend(names.lines().map(|name| format!("{name} on {}", host.name)));
    }
    found
}

/// Returns the remaining journal folders.
pub fn journals(fleet: &Fleet) -> Vec<String> {
    let own = std::fs::read_dir(fleet.controller.data.join("executions")).expect("the journal");
    let mut found: Vec<String> =
        own.map(|entry| entry.expect("an entry").path().display().to_string()).collect();
    for host in &fleet.hosts {
        let names = host.sh("ls -A /var/lib/docker/volumes/*node_data/_data/executions");
        found.extend(names.lines().map(|name| format!("{name} on {}", host.name)));
    }
    found
}
