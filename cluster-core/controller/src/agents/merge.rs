//! An agent and a request in one: what the request states wins. Pure.

use std::collections::BTreeMap;

use aegis_types::{
    agent::AgentReference,
    error::{Error, Result},
    execution::{
        manifest::Relaxations,
        request::{ExecutionRequest, ResourceRequest},
    },
    ids::Tag,
};

use super::Manifest;

/// The request with what it leaves out taken from the agent. `defaults` is the agent as a request
/// ([`Manifest::request`]), `resolved` names it with its version.
///
/// Variables are united by name and tags are united; a command takes the place of the agent's command and
/// arguments, which belong to each other.
pub fn merge(
    request: ExecutionRequest,
    defaults: ExecutionRequest,
    resolved: AgentReference,
) -> Result<ExecutionRequest> {
    if request.image.is_some() {
        return Err(Error::invalid("agent and image are both given")
            .remedy("give one of them; an agent brings its image"));
    }
    let (command, args) = match (request.command.is_empty(), request.args.is_empty()) {
        (true, true) => (defaults.command, defaults.args),
        (true, false) => (defaults.command, request.args),
        (false, _) => (request.command, request.args),
    };
    let mut env = defaults.env;
    env.extend(request.env);
    let resources = ResourceRequest {
        cpu: request.resources.cpu.or(defaults.resources.cpu),
        memory_mb: request.resources.memory_mb.or(defaults.resources.memory_mb),
        gpus: request.resources.gpus.or(defaults.resources.gpus),
        vram_gb: request.resources.vram_gb.or(defaults.resources.vram_gb),
    };
    let security = match request.security == Relaxations::default() {
        true => defaults.security,
        false => request.security,
    };
    Ok(ExecutionRequest {
        agent: Some(resolved),
        image: defaults.image,
        command,
        args,
        env,
        target_tags: united(defaults.target_tags, request.target_tags),
        preferred_tags: united(defaults.preferred_tags, request.preferred_tags),
        resources,
        network: request.network.or(defaults.network),
        timeout_seconds: request.timeout_seconds.or(defaults.timeout_seconds),
        max_iterations: request.max_iterations.or(defaults.max_iterations),
        iteration_timeout_seconds: request.iteration_timeout_seconds.or(defaults.iteration_timeout_seconds),
        max_attempts: request.max_attempts.or(defaults.max_attempts),
        retry: request.retry.or(defaults.retry),
        artifacts: if request.artifacts.is_empty() { defaults.artifacts } else { request.artifacts },
        result_file: request.result_file.or(defaults.result_file),
        empty_workspace: request.empty_workspace || defaults.empty_workspace,
        security,
        // The caller's own: an agent has none of them.
        input: request.input,
        after: request.after,
        after_condition: request.after_condition,
        workspace_from: request.workspace_from,
        node_id: request.node_id,
        workspace: request.workspace,
        queue: request.queue,
        queue_timeout_seconds: request.queue_timeout_seconds,
        priority: request.priority,
        labels: request.labels,
        notify: request.notify,
        idempotency_key: request.idempotency_key,
    })
}

fn united(mut tags: Vec<Tag>, more: Vec<Tag>) -> Vec<Tag> {
    for tag in more {
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
}

impl Manifest {
    /// The request of an execution that runs this agent.
    pub fn resolve(
        &self,
        request: ExecutionRequest,
        version: u32,
        images: &BTreeMap<String, String>,
    ) -> Result<ExecutionRequest> {
        merge(request, self.request(images)?, AgentReference::version(self.name.clone(), version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::execution::{manifest::NetworkMode, request::Submission};

    const AGENT: &str = "
apiVersion: 100monkeys.ai/v1
kind: Agent
metadata: {name: worker}
spec:
  runtime: {image: 'busybox:1.36'}
  command: [sh, -c]
  args: [echo agent]
  env: {A: agent, B: agent}
  execution: {mode: iterative, max_iterations: 4, target_tags: [gpu], preferred_tags: [fast], max_attempts: 2,
    retry: {max: 3, exit_codes: [75]}}
  security:
    network: {mode: allow}
    resources: {cpu: 500m, memory: 512Mi, timeout: 10m}
";

    fn resolved(request: ExecutionRequest) -> Result<ExecutionRequest> {
        let agent = Manifest::parse(AGENT, &BTreeMap::new()).unwrap();
        let asked = ExecutionRequest { agent: Some("worker".parse().unwrap()), queue: true, ..request };
        agent.resolve(asked, 3, &BTreeMap::new())
    }

    #[test]
    fn what_is_left_out_comes_from_the_agent() {
        let whole = resolved(ExecutionRequest::default()).unwrap();
        assert_eq!(whole.agent.as_ref().unwrap().to_string(), "worker@3");
        assert_eq!(whole.image.as_deref(), Some("busybox:1.36"));
        assert_eq!((whole.command.len(), whole.args.as_slice()), (2, &["echo agent".to_owned()][..]));
        assert_eq!((whole.max_iterations, whole.max_attempts), (Some(4), Some(2)));
        assert_eq!(whole.retry.as_ref().unwrap().exit_codes, [75]);
        let submission = Submission::check(whole).unwrap();
        assert_eq!(submission.manifest.network, NetworkMode::Allow);
        assert_eq!(submission.manifest.timeout_seconds, 600);
        assert_eq!(submission.demand.amounts.memory_mb, 512);
    }

    #[test]
    fn what_the_request_states_wins() {
        let request = ExecutionRequest {
            command: vec!["true".into()],
            env: [("B".to_owned(), "mine".to_owned())].into(),
            target_tags: vec![Tag::parse("eu").unwrap(), Tag::parse("gpu").unwrap()],
            network: Some(NetworkMode::None),
            resources: ResourceRequest { cpu: Some(2.0), ..Default::default() },
            timeout_seconds: Some(5),
            max_iterations: Some(1),
            ..Default::default()
        };
        let whole = resolved(request).unwrap();
        assert_eq!((whole.command.as_slice(), whole.args.len()), (&["true".to_owned()][..], 0));
        assert_eq!((whole.env["A"].as_str(), whole.env["B"].as_str()), ("agent", "mine"));
        let tags: Vec<&str> = whole.target_tags.iter().map(Tag::as_str).collect();
        assert_eq!(tags, ["gpu", "eu"]);
        assert_eq!(whole.network, Some(NetworkMode::None));
        assert_eq!((whole.resources.cpu, whole.resources.memory_mb), (Some(2.0), Some(512)));
        assert_eq!((whole.timeout_seconds, whole.max_iterations), (Some(5), Some(1)));
    }

    #[test]
    fn arguments_alone_take_the_place_of_arguments() {
        let whole =
            resolved(ExecutionRequest { args: vec!["echo mine".into()], ..Default::default() }).unwrap();
        assert_eq!((whole.command.len(), whole.args.as_slice()), (2, &["echo mine".to_owned()][..]));
    }

    #[test]
    fn an_image_beside_an_agent_is_refused() {
        let both = ExecutionRequest { image: Some("alpine".into()), ..Default::default() };
        assert!(resolved(both).unwrap_err().message().contains("both"));
    }
}
