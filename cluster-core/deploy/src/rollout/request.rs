//! Request of a rollout and its validation: either all hosts are valid, or the error lists every problem.

use std::collections::HashMap;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    principal::Origin,
};

use super::rule::Limits;
use crate::{DeploySettings, Validated, model::spec::DeploymentRequest};

/// Maximum number of hosts in a rollout, so that a summary can show all of them.
pub const HOSTS_MAX: usize = 100;
pub const FAILURES_DEFAULT: usize = 1;
/// Length limit of each host's problem in an error that lists all.
const PROBLEM_CHARS_MAX: usize = 300;

/// Request for many deployments, each with all of its arguments.
#[derive(Debug, Clone, Default)]
pub struct RolloutRequest {
    pub hosts: Vec<DeploymentRequest>,
    /// Hosts at a time, 1 to 100. Never more than the configuration's `max_parallel`, which is the default.
    pub max_parallel: Option<u32>,
    /// Number of failures after which no further host is started: 0 (never stop) to 100, default 1.
    pub max_failures: Option<u32>,
    pub idempotency_key: Option<String>,
}

/// Rollout whose hosts are all valid and different.
#[derive(Debug)]
pub(super) struct Checked {
    pub members: Vec<Validated>,
    pub limits: Limits,
}

impl RolloutRequest {
    pub(super) fn check(&self, origin: Origin, settings: &DeploySettings) -> Result<Checked> {
        if self.hosts.is_empty() || self.hosts.len() > HOSTS_MAX {
            return Err(Error::invalid(format!(
                "hosts: {} are named; 1 to {HOSTS_MAX} are taken",
                self.hosts.len()
            ))
            .remedy("give the hosts in several calls, each with its own part of the list"));
        }
        let parallel = bounded("max_parallel", self.max_parallel, settings.max_parallel, 1)?;
        let limits = Limits {
            parallel: parallel.min(settings.max_parallel).max(1),
            failures: bounded("max_failures", self.max_failures, FAILURES_DEFAULT, 0)?,
        };
        let mut seen = Seen::default();
        let members = self.hosts.iter().map(|host| {
            let validated = host.validate(origin, settings).and_then(|member| seen.once(member));
            (host.host.clone(), validated)
        });
        Ok(Checked { members: all_or_every_problem(members)?, limits })
    }
}

fn bounded(name: &str, asked: Option<u32>, default: usize, least: usize) -> Result<usize> {
    let Some(asked) = asked else { return Ok(default) };
    usize::try_from(asked).ok().filter(|number| (least..=HOSTS_MAX).contains(number)).ok_or_else(|| {
        Error::invalid(format!("{name}: {asked} is out of range {least} to {HOSTS_MAX}"))
            .remedy(format!("give a value from {least} to {HOSTS_MAX}"))
    })
}

/// Detects a host or an identity that occurs twice, and would be deployed over itself.
#[derive(Default)]
struct Seen {
    targets: HashMap<(String, u16), usize>,
    nodes: HashMap<String, String>,
    count: usize,
}

impl Seen {
    fn once(&mut self, member: Validated) -> Result<Validated> {
        self.count += 1;
        let target = &member.spec.target;
        let host = target.host.to_string();
        if let Some(first) = self.targets.insert((host.clone(), target.port), self.count) {
            return Err(Error::invalid(format!("it is named twice, as host {first} and {}", self.count))
                .remedy("name each host once"));
        }
        if let Some(other) = self.nodes.insert(member.spec.node.to_string(), host) {
            return Err(Error::invalid(format!("its identity {} is that of {other} too", member.spec.node))
                .remedy("give each host an identity of its own"));
        }
        Ok(member)
    }
}

/// Returns all values, or one error that lists the problem of each host.
pub fn all_or_every_problem<T>(hosts: impl IntoIterator<Item = (String, Result<T>)>) -> Result<Vec<T>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (host, outcome) in hosts {
        match outcome {
            Ok(one) => good.push(one),
            Err(error) => bad.push((aegis_types::text::shown(&host), error)),
        }
    }
    if bad.is_empty() {
        return Ok(good);
    }
    let mut remedies: Vec<&str> = Vec::new();
    for remedy in bad.iter().filter_map(|(_, error)| error.remedy_text()) {
        if !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    let problems = bad.iter().map(|(host, error)| {
        format!("{host}: {}", error.message().chars().take(PROBLEM_CHARS_MAX).collect::<String>())
    });
    let problems = problems.collect::<Vec<_>>().join("; ");
    let total = good.len() + bad.len();
    let text = format!("{} of {total} hosts are refused, and nothing was begun: {problems}", bad.len());
    let combined = Error::new(common_code(&bad), text);
    Err(match remedies.is_empty() {
        true => combined,
        false => combined.remedy(remedies.join("; ")),
    })
}

/// Returns the code that all errors share, and `InvalidArgument` for different codes.
fn common_code(bad: &[(String, Error)]) -> ErrorCode {
    let first = bad[0].1.code();
    match bad.iter().all(|(_, error)| error.code() == first) {
        true => first,
        false => ErrorCode::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(hosts: &[&str]) -> RolloutRequest {
        let hosts = hosts.iter().map(|host| DeploymentRequest { host: (*host).into(), ..Default::default() });
        RolloutRequest { hosts: hosts.collect(), ..Default::default() }
    }

    fn check(request: &RolloutRequest) -> Result<Checked> {
        request.check(Origin::Assistant, &DeploySettings::default())
    }

    #[test]
    fn one_error_says_what_is_wrong_with_every_host() {
        let error = check(&request(&["edge1", "127.0.0.1", "edge2", "a;b", "edge1"])).unwrap_err();
        let text = error.message();
        assert!(text.starts_with("3 of 5 hosts are refused, and nothing was begun: "), "{text}");
        assert!(text.contains("127.0.0.1: ") && text.contains("a;b: "), "{text}");
        assert!(text.contains("edge1: it is named twice, as host 1 and 3"), "{text}");
        assert!(!text.contains("edge2"), "{text}");
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.remedy_text().unwrap().contains("name each host once"));
    }

    #[test]
    fn a_host_or_an_identity_stands_once() {
        let mut same = request(&["edge1", "edge2"]);
        same.hosts.iter_mut().for_each(|host| host.identity = Some("one".into()));
        assert!(check(&same).unwrap_err().message().contains("identity one is that of edge1 too"));
        let mut ports = request(&["edge1", "edge1"]);
        (ports.hosts[1].ssh_port, ports.hosts[1].identity) = (Some(2222), Some("two".into()));
        assert_eq!(check(&ports).unwrap().members.len(), 2, "another port is another machine");
    }

    #[test]
    fn the_bounds_are_said() {
        assert!(check(&request(&[])).is_err());
        let names: Vec<String> = (0..=HOSTS_MAX).map(|number| format!("edge{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(check(&request(&names)).is_err());
        assert!(check(&request(&names[1..])).is_ok());
        let one = request(&["edge1"]);
        let limits = |parallel, failures| {
            check(&RolloutRequest { max_parallel: parallel, max_failures: failures, ..one.clone() })
                .map(|checked| (checked.limits.parallel, checked.limits.failures))
        };
        assert_eq!(limits(None, None).unwrap(), (8, 1));
        assert_eq!(limits(Some(2), Some(0)).unwrap(), (2, 0));
        assert_eq!(limits(Some(100), None).unwrap().0, 8, "the configuration's is the most");
        assert!(limits(Some(0), None).is_err() && limits(None, Some(101)).is_err());
    }

    #[test]
    fn problems_of_one_kind_keep_their_code() {
        let refused = |host: &str| {
            let error = Error::new(ErrorCode::HostNotApproved, "not approved").remedy("approve it");
            (host.to_owned(), Err::<(), _>(error))
        };
        let error = all_or_every_problem([refused("a"), ("b".into(), Ok(())), refused("c")]).unwrap_err();
        assert_eq!((error.code(), error.remedy_text()), (ErrorCode::HostNotApproved, Some("approve it")));
    }
}
