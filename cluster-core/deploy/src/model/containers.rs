//! Judges one snapshot of a stack's containers. This is a plain function, so that tests distinguish a crash loop, a
//! slow start and a one-shot service without a host.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::model::release::ReleaseContents;

/// Uptime that counts as healthy for a service without a health check.
const STEADY_SECONDS: i64 = 5;
/// Restarts since the first snapshot. Docker doubles the pause after each, so six restarts take 6 s and more. A service
/// that waits for another by exiting comes up before the limit.
const RESTARTS_MAX: u64 = 6;

/// Docker's default stop timeout.
const STOP_TIMEOUT_DEFAULT_SECS: u64 = 10;
/// Longest stop timeout that is waited for.
const STOP_TIMEOUT_MAX_SECS: u64 = 3600;

/// A container of the stack as the engine reports it, one per line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Container {
    pub id: String,
    pub service: String,
    pub status: String,
    /// Health status; empty without a health check.
    pub health: String,
    pub exit_code: i64,
    pub oom_killed: bool,
    pub restarts: u64,
    started_at: String,
    /// Restart policy: `no`, `always`, `unless-stopped` or `on-failure`.
    policy: String,
    /// Id of the image, not its name.
    pub image: String,
    /// Seconds that the container has to stop; `None` for Docker's default.
    #[serde(default)]
    stop_timeout: Option<u64>,
    /// Directory of the compose file.
    #[serde(default)]
    pub directory: Option<String>,
}

/// Format for `docker inspect` that prints a [`Container`] as one line. The names are those of the engine's Go
/// structure. In its JSON, an absent field is an error.
pub const CONTAINER_FORMAT: &str = concat!(
    r#"{"id":{{json .ID}},"service":{{json (index .Config.Labels "com.docker.compose.service")}},"#,
    r#""status":{{json .State.Status}},"health":{{if .State.Health}}{{json .State.Health.Status}}{{else}}""{{end}},"#,
    r#""exit_code":{{.State.ExitCode}},"oom_killed":{{.State.OOMKilled}},"restarts":{{.RestartCount}},"#,
    r#""started_at":{{json .State.StartedAt}},"policy":{{json .HostConfig.RestartPolicy.Name}},"image":{{json .Image}},"#,
    r#""stop_timeout":{{json .Config.StopTimeout}},"directory":{{json (index .Config.Labels "com.docker.compose.project.working_dir")}}}"#,
);

/// All containers at one moment of the host's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StackSnapshot {
    pub now_seconds: i64,
    pub containers: Vec<Container>,
}

/// Result of a readiness probe of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Healthy, with the evidence to show.
    Yes(String),
    No,
    /// sshd forwards no TCP channels, so only the container's state counts.
    CannotAsk,
}

/// Probe results by service; a service that is not in the map was not probed.
pub type Answers = BTreeMap<String, Answer>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StackHealth {
    Healthy,
    /// Waiting for this service.
    Waiting {
        service: String,
    },
    /// The service will not come up by waiting.
    Failed {
        service: String,
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Healthy,
    Waiting,
    Failed,
}

impl StackSnapshot {
    /// Returns whether any container runs.
    pub fn any_runs(&self) -> bool {
        self.containers.iter().any(|container| container.status == "running")
    }

    /// Parses a snapshot. The first line is the host's clock, and each other line is a container.
    pub fn parse(text: &str) -> Self {
        let mut look = Self::default();
        for line in text.lines() {
            if let Some(now) = line.strip_prefix("now ") {
                look.now_seconds = now.trim().parse().unwrap_or(0);
            } else if let Ok(container) = serde_json::from_str::<Container>(line) {
                look.containers.push(container);
            }
        }
        look.containers.sort_by(|one, other| one.service.cmp(&other.service));
        look
    }

    /// Returns how long it may take to stop all containers one after another.
    pub fn stop_time(&self) -> Duration {
        let seconds = self
            .containers
            .iter()
            .map(|one| one.stop_timeout.unwrap_or(STOP_TIMEOUT_DEFAULT_SECS).min(STOP_TIMEOUT_MAX_SECS));
        Duration::from_secs(seconds.sum())
    }

    pub fn restarts(&self) -> BTreeMap<String, u64> {
        self.containers.iter().map(|container| (container.id.clone(), container.restarts)).collect()
    }

    /// Returns the service whose log is worth keeping after a failed start.
    pub fn failed_service(&self) -> Option<&str> {
        let failed = |one: &&Container| one.condition(self.now_seconds) == Condition::Failed;
        let restarting = |one: &&Container| one.status == "restarting";
        let found = self.containers.iter().find(failed).or_else(|| self.containers.iter().find(restarting));
        found.map(|container| container.service.as_str())
    }

    pub fn runs(&self, service: &str) -> bool {
        self.containers.iter().any(|one| one.service == service && one.status == "running")
    }

    /// Returns why a service does not run; `None` if it runs or exited successfully.
    pub fn down(&self, service: &str) -> Option<String> {
        let mut containers = self.containers.iter().filter(|one| one.service == service).peekable();
        if containers.peek().is_none() {
            return Some("has no container".to_owned());
        }
        let down = containers.find(|one| {
            let well = one.condition(self.now_seconds) == Condition::Healthy;
            !well && (one.status != "running" || one.health == "unhealthy")
        });
        down.map(|one| format!("does not run: {}", one.describe(self.now_seconds)))
    }

    /// Judges the snapshot. `first` holds the restarts of each container when it was first seen.
    pub fn verdict(
        &self,
        goal: &ReleaseContents,
        answers: &Answers,
        first: &BTreeMap<String, u64>,
    ) -> StackHealth {
        let failed =
            |container: &Container, why| StackHealth::Failed { service: container.service.clone(), why };
        for container in &self.containers {
            let since = container.restarts - container.restarts.min(*first.get(&container.id).unwrap_or(&0));
            if since >= RESTARTS_MAX {
                return failed(container, format!("does not stay up: {}", container.last_end()));
            }
            if container.condition(self.now_seconds) == Condition::Failed {
                return failed(container, container.describe(self.now_seconds));
            }
        }
        for service in &goal.services {
            let mut containers = self.containers.iter().filter(|one| one.service == *service).peekable();
            let well = |one: &Container| self.is_well(one, answers.get(service));
            if containers.peek().is_none() || !containers.all(well) {
                return StackHealth::Waiting { service: service.clone() };
            }
        }
        StackHealth::Healthy
    }

    /// A successful probe counts as healthy before the container's own health check runs again.
    fn is_well(&self, container: &Container, answer: Option<&Answer>) -> bool {
        match answer {
            Some(Answer::Yes(_)) => container.status == "running",
            Some(Answer::No) => false,
            Some(Answer::CannotAsk) | None => container.condition(self.now_seconds) == Condition::Healthy,
        }
    }

    /// Formats each service with its state and probe result as one line for a person.
    pub fn describe(&self, goal: &ReleaseContents, answers: &Answers) -> String {
        let mut parts = Vec::new();
        for service in &goal.services {
            let containers: Vec<_> = self.containers.iter().filter(|one| one.service == *service).collect();
            if containers.is_empty() {
                parts.push(format!("{service} is not there"));
            }
            for container in containers {
                let state = container.describe(self.now_seconds);
                parts.push(match answers.get(service) {
                    Some(Answer::Yes(answer)) => format!("{service} {state}: {answer}"),
                    Some(Answer::No) => format!("{service} {state}, does not answer"),
                    Some(Answer::CannotAsk) | None => format!("{service} {state}"),
                });
            }
        }
        parts.join(", ")
    }

    /// Returns the first container that restarted or failed since it was healthy.
    pub fn changed_since(&self, before: &BTreeMap<String, u64>) -> Option<(String, String)> {
        let restarted = self.containers.iter().find(|container| {
            let restarts = before.get(&container.id);
            restarts.is_some_and(|restarts| container.restarts > *restarts)
                || container.condition(self.now_seconds) == Condition::Failed
        });
        if let Some(container) = restarted {
            return Some((container.service.clone(), container.last_end()));
        }
        let gone = before.keys().any(|id| !self.containers.iter().any(|one| one.id == *id));
        gone.then(|| ("one".to_owned(), "its container is gone".to_owned()))
    }
}

impl Container {
    fn condition(&self, now_seconds: i64) -> Condition {
        match (self.status.as_str(), self.health.as_str()) {
            ("running", "healthy") => Condition::Healthy,
            ("running", "unhealthy") => Condition::Failed,
            ("running", "" | "none") if self.age(now_seconds) >= STEADY_SECONDS => Condition::Healthy,
            // One-shot services exit; a successful exit is all that they have to show.
            ("exited", _) if self.exit_code == 0 && !self.is_kept_up() => Condition::Healthy,
            ("exited", _) if self.exit_code == 0 => Condition::Waiting,
            ("exited" | "dead" | "removing", _) => Condition::Failed,
            _ => Condition::Waiting,
        }
    }

    fn is_kept_up(&self) -> bool {
        matches!(self.policy.as_str(), "always" | "unless-stopped")
    }

    /// Returns the seconds since the last start. The absolute value guards against a clock that was set back.
    fn age(&self, now_seconds: i64) -> i64 {
        let format = &time::format_description::well_known::Rfc3339;
        let Ok(started) = time::OffsetDateTime::parse(&self.started_at, format) else { return 0 };
        now_seconds.saturating_sub(started.unix_timestamp()).abs()
    }

    fn describe(&self, now_seconds: i64) -> String {
        let restarts = match self.restarts {
            0 => String::new(),
            1 => ", restarted once".to_owned(),
            restarts => format!(", restarted {restarts} times"),
        };
        let state = match (self.status.as_str(), self.health.as_str()) {
            ("exited" | "dead", _) if self.oom_killed => "was killed: out of memory".to_owned(),
            ("exited" | "dead", _) => format!("exited {}", self.exit_code),
            ("running", "" | "none") => format!("runs for {} s", self.age(now_seconds)),
            ("running", "starting") => "starting".to_owned(),
            ("running", "unhealthy") => "unhealthy by its own check".to_owned(),
            ("running", health) => health.to_owned(),
            (status, _) => status.to_owned(),
        };
        format!("{state}{restarts}")
    }

    fn last_end(&self) -> String {
        let end = match self.oom_killed {
            true => "it was killed, out of memory".to_owned(),
            false => format!("it exited {}", self.exit_code),
        };
        format!("{end}, restarted {} times", self.restarts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_100;

    fn container(service: &str, status: &str, health: &str) -> Container {
        Container {
            id: format!("id-{service}"),
            service: service.into(),
            status: status.into(),
            health: health.into(),
            exit_code: 0,
            oom_killed: false,
            restarts: 0,
            // 100 s before NOW.
            started_at: "2023-11-14T22:13:20.5Z".into(),
            policy: "unless-stopped".into(),
            image: "sha256:1".into(),
            stop_timeout: None,
            directory: None,
        }
    }

    #[test]
    fn stop_time_is_the_sum_of_bounded_grace_periods() {
        let with = |seconds| Container { stop_timeout: seconds, ..container("a", "running", "") };
        let look = StackSnapshot {
            now_seconds: NOW,
            containers: vec![with(None), with(Some(300)), with(Some(1 << 40))],
        };
        assert_eq!(look.stop_time(), Duration::from_secs(10 + 300 + 3600));
        assert_eq!(StackSnapshot::default().stop_time(), Duration::ZERO);
    }

    fn stack(services: &[&str]) -> ReleaseContents {
        ReleaseContents {
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            ..ReleaseContents::default()
        }
    }

    fn verdict(container: Container) -> StackHealth {
        let look = StackSnapshot { now_seconds: NOW, containers: vec![container] };
        look.verdict(&stack(&["web"]), &Answers::new(), &BTreeMap::new())
    }

    fn waiting() -> StackHealth {
        StackHealth::Waiting { service: "web".into() }
    }

    #[test]
    fn the_engines_lines_are_read() {
        let text = "now 1700000100\n{\"id\":\"a\",\"service\":\"web\",\"status\":\"running\",\"health\":\"\",\"exit_code\":0,\
                    \"oom_killed\":false,\"restarts\":2,\"started_at\":\"2023-11-14T22:13:20.5Z\",\"policy\":\"no\",\
                    \"image\":\"sha256:1\"}\nnoise\n";
        let look = StackSnapshot::parse(text);
        assert_eq!((look.now_seconds, look.containers.len(), look.containers[0].restarts), (NOW, 1, 2));
        assert_eq!(
            look.describe(&stack(&["web", "db"]), &Answers::new()),
            "web runs for 100 s, restarted 2 times, db is not there"
        );
        assert_eq!(StackSnapshot::parse("noise"), StackSnapshot::default());
    }

    #[test]
    fn a_slow_start_is_waited_for_and_a_crash_loop_is_not() {
        assert_eq!(verdict(container("web", "running", "healthy")), StackHealth::Healthy);
        assert_eq!(verdict(container("web", "running", "starting")), waiting());
        assert_eq!(verdict(container("web", "created", "")), waiting());
        assert_eq!(verdict(container("web", "restarting", "")), waiting());
        assert!(matches!(verdict(container("web", "running", "unhealthy")), StackHealth::Failed { .. }));
        let looping =
            Container { restarts: RESTARTS_MAX, exit_code: 3, ..container("web", "restarting", "") };
        let StackHealth::Failed { service, why } = verdict(looping.clone()) else { panic!() };
        assert!(service == "web" && why.contains("exited 3, restarted 6 times"), "{why}");
        let look = StackSnapshot { now_seconds: NOW, containers: vec![looping.clone()] };
        let first = look.restarts();
        assert_eq!(
            look.verdict(&stack(&["web"]), &Answers::new(), &first),
            waiting(),
            "what was before counts not"
        );
        let StackHealth::Failed { why, .. } = verdict(Container { oom_killed: true, ..looping }) else {
            panic!()
        };
        assert!(why.contains("out of memory"), "{why}");
    }

    #[test]
    fn without_a_health_check_it_must_run_for_a_while() {
        let young =
            |started_at: &str| Container { started_at: started_at.into(), ..container("web", "running", "") };
        assert_eq!(verdict(young("2023-11-14T22:14:56Z")), waiting());
        assert_eq!(verdict(young("2023-11-14T22:14:55Z")), StackHealth::Healthy);
        assert_eq!(verdict(young("nonsense")), waiting());
    }

    #[test]
    fn one_shots_end_well() {
        let ended = |policy: &str, exit_code| Container {
            policy: policy.into(),
            exit_code,
            ..container("web", "exited", "")
        };
        assert_eq!(verdict(ended("no", 0)), StackHealth::Healthy);
        assert_eq!(verdict(ended("on-failure", 0)), StackHealth::Healthy);
        assert_eq!(verdict(ended("always", 0)), waiting());
        assert!(matches!(verdict(ended("no", 1)), StackHealth::Failed { why, .. } if why == "exited 1"));
    }

    #[test]
    fn probe_success_overrides_starting_health_check() {
        let look =
            StackSnapshot { now_seconds: NOW, containers: vec![container("web", "running", "starting")] };
        let with =
            |answer| look.verdict(&stack(&["web"]), &[("web".to_owned(), answer)].into(), &BTreeMap::new());
        assert_eq!(with(Answer::Yes("200".into())), StackHealth::Healthy);
        assert_eq!(with(Answer::No), waiting());
        assert_eq!(with(Answer::CannotAsk), waiting());
        assert_eq!(look.verdict(&stack(&["web", "db"]), &Answers::new(), &BTreeMap::new()), waiting());
    }

    #[test]
    fn a_restart_after_it_was_well_is_seen() {
        let before =
            StackSnapshot { now_seconds: NOW, containers: vec![container("web", "running", "healthy")] };
        assert_eq!(before.changed_since(&before.restarts()), None);
        let mut after = before.clone();
        after.containers[0].restarts = 1;
        assert_eq!(after.changed_since(&before.restarts()).unwrap().0, "web");
        assert!(StackSnapshot::default().changed_since(&before.restarts()).is_some());
        assert_eq!(before.failed_service(), None);
    }
}
