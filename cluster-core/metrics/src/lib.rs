//! Metrics of a node in one registry, and their text for `/metrics` (OpenMetrics 1.0).
//!
//! Gauges are read when they are asked for; nothing here has a task.

use std::{sync::Arc, time::Duration};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::lifecycle::State,
    node::PeerStatus,
    node_event::NodeEventKind,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// From a cached answer to a call that waited for the disk.
const DURATION_BUCKETS: [f64; 9] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// From a container that ends at once to a day.
const EXECUTION_BUCKETS: [f64; 12] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0, 3_600.0, 21_600.0, 86_400.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
    /// `ok`, or the reason of the refusal.
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    part: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExecutionState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    state: &'static str,
    /// Why it failed; empty where it did not.
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookDelivery {
    hook: String,
    outcome: &'static str,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    calls: Family<Call, Counter>,
    durations: Family<Name, Histogram>,
    events: Family<Kind, Counter>,
    nodes: Family<Status, Gauge>,
    parts: Family<Part, Gauge>,
    open_executions: Family<ExecutionState, Gauge>,
    ended_executions: Family<Outcome, Counter>,
    waits: Histogram,
    runs: Family<ExecutionState, Histogram>,
    hook_deliveries: Family<HookDelivery, Counter>,
    audit_lost: Counter,
    uptime: Gauge,
}

/// A cheap handle on the counters.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("aegis");
        let calls = Family::default();
        let durations: Family<Name, Histogram> =
            Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
        let (events, nodes, parts) = (Family::default(), Family::default(), Family::default());
        let (audit_lost, uptime) = (Counter::default(), Gauge::default());
        registry.register(
            "cluster_calls",
            "Calls of the cluster protocol by their outcome: ok, or the reason of the refusal",
            calls.clone(),
        );
        registry.register_with_unit(
            "cluster_call_duration",
            "Time to answer a call of the cluster protocol",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register("node_events", "What happened to nodes", events.clone());
        registry.register("nodes", "Nodes by status", nodes.clone());
        registry.register("part_up", "Whether a part of this node works: 1 or 0", parts.clone());
        let open_executions = Family::default();
        registry.register("executions", "Executions that have not ended, by state", open_executions.clone());
        let ended_executions = Family::default();
        registry.register(
            "executions_ended",
            "Executions that have ended since this process started, by state and cause",
            ended_executions.clone(),
        );
        let waits = Histogram::new(EXECUTION_BUCKETS);
        registry.register_with_unit(
            "execution_wait",
            "Time from the submission of an execution to the choice of its node",
            Unit::Seconds,
            waits.clone(),
        );
        let runs: Family<ExecutionState, Histogram> =
            Family::new_with_constructor(|| Histogram::new(EXECUTION_BUCKETS));
        registry.register_with_unit(
            "execution_duration",
            "Time from the start of an execution to its end, by state",
            Unit::Seconds,
            runs.clone(),
        );
        let hook_deliveries = Family::default();
        registry.register(
            "hook_deliveries",
            "Tries to tell hooks of ended executions, by outcome: delivered, failed, dropped",
            hook_deliveries.clone(),
        );
        registry.register(
            "audit_entries_lost",
            "Entries of the audit log that could not be written",
            audit_lost.clone(),
        );
        registry.register_with_unit("uptime", "Since this process started", Unit::Seconds, uptime.clone());
        Self(Arc::new(Inner {
            registry,
            calls,
            durations,
            events,
            nodes,
            parts,
            open_executions,
            ended_executions,
            waits,
            runs,
            hook_deliveries,
            audit_lost,
            uptime,
        }))
    }
}

impl Metrics {
    /// Counts a call that was answered.
    pub fn call(&self, call: &'static str, refused: Option<ErrorCode>, took: Duration) {
        let outcome = refused.map_or("ok", ErrorCode::name);
        self.0.calls.get_or_create(&Call { call, outcome }).inc();
        self.0.durations.get_or_create(&Name { call }).observe(took.as_secs_f64());
    }

    pub fn event(&self, kind: NodeEventKind) {
        self.0.events.get_or_create(&Kind { kind: kind.name() }).inc();
    }

    /// Sets the gauges of all statuses. A status without nodes falls to 0.
    pub fn nodes(&self, statuses: impl IntoIterator<Item = PeerStatus>) {
        let statuses: Vec<_> = statuses.into_iter().collect();
        for status in &PeerStatus::ALL {
            let count = statuses.iter().filter(|known| *known == status).count();
            let gauge = self.0.nodes.get_or_create(&Status { status: status.name() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Sets the gauges of all states that are not final.
    pub fn executions(&self, states: impl IntoIterator<Item = State>) {
        let states: Vec<_> = states.into_iter().collect();
        for state in State::ALL.iter().filter(|state| !state.is_final()) {
            let count = states.iter().filter(|known| *known == state).count();
            let gauge = self.0.open_executions.get_or_create(&ExecutionState { state: state.name() });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts an execution that was given to a node.
    pub fn execution_placed(&self, waited: Duration) {
        self.0.waits.observe(waited.as_secs_f64());
    }

    /// Counts an execution that has ended. `ran` is the time since its start, where it has started.
    pub fn execution_ended(&self, state: State, failure: Option<ErrorCode>, ran: Option<Duration>) {
        let (state, code) = (state.name(), failure.map_or("", ErrorCode::name));
        self.0.ended_executions.get_or_create(&Outcome { state, code }).inc();
        if let Some(ran) = ran {
            self.0.runs.get_or_create(&ExecutionState { state }).observe(ran.as_secs_f64());
        }
    }

    pub fn part(&self, name: &str, ok: bool) {
        self.0.parts.get_or_create(&Part { part: name.to_owned() }).set(i64::from(ok));
    }

    pub fn hook_delivery(&self, hook: &str, outcome: &'static str) {
        self.0.hook_deliveries.get_or_create(&HookDelivery { hook: hook.to_owned(), outcome }).inc();
    }

    pub fn audit_lost(&self, entries: u64) {
        self.0.audit_lost.inc_by(entries);
    }

    /// The text that a Prometheus server reads.
    pub fn text(&self, uptime: Duration) -> Result<String> {
        self.0.uptime.set(i64::try_from(uptime.as_secs()).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.0.registry)
            .map_err(|e| Error::internal("the metrics cannot be written").source(e))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_call_and_reason() {
        let metrics = Metrics::default();
        metrics.call("Heartbeat", None, Duration::from_millis(1));
        metrics.call("Heartbeat", Some(ErrorCode::NonceReplay), Duration::from_millis(1));
        metrics.call("Heartbeat", Some(ErrorCode::NonceReplay), Duration::from_millis(1));
        metrics.nodes([PeerStatus::Active, PeerStatus::Active]);
        metrics.executions([State::Pending, State::Running, State::Pending]);
        metrics.execution_placed(Duration::from_secs(3));
        metrics.execution_ended(State::Failed, Some(ErrorCode::Timeout), Some(Duration::from_secs(60)));
        metrics.execution_ended(State::Cancelled, None, None);
        let text = metrics.text(Duration::from_secs(7)).unwrap();
        for line in [
            r#"aegis_cluster_calls_total{call="Heartbeat",outcome="NonceReplay"} 2"#,
            r#"aegis_nodes{status="active"} 2"#,
            r#"aegis_nodes{status="offline"} 0"#,
            "aegis_uptime_seconds 7",
            r#"aegis_executions{state="pending"} 2"#,
            r#"aegis_executions{state="lost"} 0"#,
            r#"aegis_executions_ended_total{state="failed",code="Timeout"} 1"#,
            r#"aegis_executions_ended_total{state="cancelled",code=""} 1"#,
            r#"aegis_execution_wait_seconds_bucket{le="2.5"} 0"#,
            r#"aegis_execution_wait_seconds_bucket{le="10.0"} 1"#,
            r#"aegis_execution_duration_seconds_count{state="failed"} 1"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
