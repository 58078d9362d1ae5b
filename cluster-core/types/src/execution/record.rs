//! Executions as they are stored.

use crate::{
    agent::AgentReference,
    error::Failure,
    execution::{
        artifacts::Artifacts,
        dependencies::Dependencies,
        lifecycle::{Lifecycle, State},
        manifest::{Manifest, PlacementRequest, WorkspaceNote},
        order::Attempt,
        request::{ResourceRequest, Submission},
        retry::RetryPolicy,
        usage::Usage,
        view::{ExecutionView, SpecView},
    },
    ids::{ExecutionId, HookName, NodeId, Tag},
    resources::Amounts,
};

/// Manifest and input of an execution. They are read when an order is made, and not kept in memory while the execution
/// is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderContent {
    pub manifest: Manifest,
    pub input: String,
}

/// An accepted submission, to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewExecution {
    pub record: ExecutionRecord,
    pub content: OrderContent,
}

impl NewExecution {
    pub fn new(submission: Submission, caller: String, request_digest: String, now_ms: i64) -> Self {
        let record =
            ExecutionRecord { caller, ..ExecutionRecord::pending(&submission, request_digest, now_ms) };
        Self { record, content: OrderContent { manifest: submission.manifest, input: submission.input } }
    }

    /// Notes what the workspace was packed into.
    pub fn set_workspace(&mut self, note: WorkspaceNote) {
        self.record.workspace = Some(note.clone());
        self.content.manifest.workspace = Some(note);
    }
}

/// Changes to an execution whose dependencies have ended: it waits for a node from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unblocked {
    pub queued_at_ms: i64,
    /// The packed artifacts that it takes over.
    pub workspace: Option<WorkspaceNote>,
}

/// An execution as it is stored, without its manifest and input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutionRecord {
    pub execution_id: ExecutionId,
    /// The registered one that it runs, in the version that it was resolved to.
    pub agent: Option<AgentReference>,
    /// Caller that submitted it, as the audit log names it.
    pub caller: String,
    pub state: State,
    pub image: String,
    /// The packed directory that is sent along.
    pub workspace: Option<WorkspaceNote>,
    /// Paths are kept of it when it has ended.
    pub has_artifacts: bool,
    /// About the size of its manifest and input.
    pub order_bytes: u64,
    /// From the start of its first container.
    pub timeout_seconds: u64,
    pub demand: PlacementRequest,
    /// Executions that it runs after. `None` once it may be placed.
    pub dependencies: Option<Dependencies>,
    /// The caller's own words for it.
    pub labels: Vec<Tag>,
    /// Hooks that are told of its end.
    pub notify: Vec<HookName>,
    pub node_id: Option<NodeId>,
    pub attempt: u32,
    /// Attempts that may have run in all, and those that were given up because their node was lost.
    pub max_attempts: u32,
    pub lost_attempts: u32,
    pub retry: Option<RetryPolicy>,
    /// Retries of its program so far.
    pub retries: u32,
    /// Time from which it waits for a node. It lies ahead while a retry waits for its pause.
    pub queued_at_ms: i64,
    /// Number before the first event of this attempt. Its node counts from 1.
    pub sequence_base: u64,
    pub iteration: u32,
    pub exit_code: Option<i32>,
    pub result: Option<String>,
    pub failure: Option<Failure>,
    /// Artifacts that were kept, once it has ended.
    pub artifacts: Option<Artifacts>,
    /// Resources that its latest attempt used.
    pub usage: Option<Usage>,
    /// Reason of the caller that asked for its end.
    pub cancel_reason: Option<String>,
    pub created_at_ms: i64,
    pub started_at_ms: Option<i64>,
    pub ended_at_ms: Option<i64>,
    pub last_sequence: u64,
    pub idempotency_key: Option<String>,
    /// Digest of the request, to refuse another request with the same key.
    pub request_digest: String,
}

impl ExecutionRecord {
    /// Accepted, and nothing more.
    pub fn pending(submission: &Submission, request_digest: String, now_ms: i64) -> Self {
        Self {
            execution_id: ExecutionId::mint(),
            agent: submission.agent.clone(),
            caller: String::new(),
            state: State::Pending,
            image: submission.manifest.image.clone(),
            workspace: submission.manifest.workspace.clone(),
            has_artifacts: !submission.manifest.artifacts.is_empty(),
            order_bytes: (serde_json::to_string(&submission.manifest).map_or(0, |json| json.len())
                + submission.input.len()) as u64,
            timeout_seconds: submission.manifest.timeout_seconds,
            demand: submission.demand.clone(),
            dependencies: submission.dependencies.clone(),
            labels: submission.labels.clone(),
            notify: submission.notify.clone(),
            node_id: None,
            attempt: 0,
            max_attempts: submission.max_attempts,
            lost_attempts: 0,
            retry: submission.retry.clone(),
            retries: 0,
            queued_at_ms: now_ms,
            sequence_base: 0,
            iteration: 0,
            exit_code: None,
            result: None,
            failure: None,
            artifacts: None,
            usage: None,
            cancel_reason: None,
            created_at_ms: now_ms,
            started_at_ms: None,
            ended_at_ms: None,
            last_sequence: 0,
            idempotency_key: submission.idempotency_key.clone(),
            request_digest,
        }
    }

    /// The assignment of this moment.
    pub fn attempt(&self) -> Attempt {
        Attempt { execution_id: self.execution_id.clone(), number: self.attempt }
    }

    /// Notes that it may be placed.
    pub fn unblock(&mut self, unblocked: Unblocked) {
        self.dependencies = None;
        self.queued_at_ms = unblocked.queued_at_ms;
        self.workspace = unblocked.workspace.or(self.workspace.take());
    }

    pub fn life(&self) -> Lifecycle {
        Lifecycle {
            state: self.state,
            attempt: self.attempt,
            max_attempts: self.max_attempts,
            lost_attempts: self.lost_attempts,
            retries_left: self.retry.as_ref().map_or(0, |retry| retry.max.saturating_sub(self.retries)),
            is_cancelled: self.cancel_reason.is_some(),
        }
    }

    /// Returns the request that this execution was accepted with.
    pub fn into_spec(self, manifest: Manifest) -> SpecView {
        let demand = self.demand;
        let Amounts { cpu_millicores, memory_mb, gpus, vram_gb } = manifest.resources;
        SpecView {
            variables: manifest.env.into_keys().chain(manifest.secret_env.into_keys()).collect(),
            resources: ResourceRequest {
                cpu: Some(f64::from(cpu_millicores) / 1000.0),
                memory_mb: Some(memory_mb),
                gpus: (gpus > 0).then_some(gpus),
                vram_gb: (vram_gb > 0).then_some(vram_gb),
            },
            command: manifest.command,
            args: manifest.args,
            network: manifest.network,
            target_tags: demand.tags,
            preferred_tags: demand.preferred_tags,
            node_id: demand.node_id,
            timeout_seconds: manifest.timeout_seconds,
            max_iterations: manifest.iterations.max,
            max_attempts: self.max_attempts,
            retry: self.retry,
            after: self.dependencies.map(|dependencies| dependencies.after).unwrap_or_default(),
            priority: demand.priority,
            workspace_bytes: manifest.workspace.map(|workspace| workspace.bytes),
            artifacts: manifest.artifacts,
        }
    }

    pub fn view(&self) -> ExecutionView {
        ExecutionView {
            execution_id: self.execution_id.clone(),
            agent: self.agent.clone(),
            state: self.state,
            image: self.image.clone(),
            labels: self.labels.clone(),
            node_id: self.node_id.clone(),
            attempt: self.attempt,
            retries: self.retries,
            iteration: self.iteration,
            exit_code: self.exit_code,
            result: self.result.clone(),
            failure: self.failure.clone(),
            artifacts: self.artifacts.clone(),
            usage: self.usage.clone(),
            waiting: None,
            created_at_ms: self.created_at_ms,
            started_at_ms: self.started_at_ms,
            ended_at_ms: self.ended_at_ms,
            last_sequence: self.last_sequence,
        }
    }
}

/// Space that an execution takes up after its end.
#[derive(Debug, Clone)]
pub struct Ended {
    pub execution_id: ExecutionId,
    pub ended_at_ms: i64,
    pub events_bytes: u64,
    pub artifacts_bytes: u64,
}
