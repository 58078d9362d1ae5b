use aegis_identity::{NodeKey, PublicKey};
use aegis_types::{
    execution::manifest::PlacementRequest,
    gpu::{GpuDevice, memory_gb},
    ids::{GpuUuid, UserName},
    link::NodeLink,
    node::{DrainState, NodeHost, Role},
};

use super::{health::GUARD_MS, *};

mod faults;
mod removed;

const STALE_MS: i64 = 90_000;
const STALENESS: Staleness = Staleness { threshold: Duration::from_millis(STALE_MS as u64), is_set: false };

fn id(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

fn site(host: &str) -> NodeHost {
    NodeHost {
        link: Default::default(),
        host: host.into(),
        port: 22,
        user: UserName::parse("root").unwrap(),
        key_path: None,
        base_dir: "/opt/e".into(),
        by_person: true,
        link_key: None,
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        total: Amounts { cpu_millicores: 2_000, memory_mb: 1_024, gpus: 0, vram_gb: 0 },
        engine: "docker 26".into(),
        ..Default::default()
    }
}

fn apply(membership: &mut Membership, changes: Vec<Change>, now_ms: i64) {
    for change in changes {
        membership.apply(change, now_ms);
    }
}

/// A cluster of deployed, registered nodes at time 0.
fn cluster(names: &[&str]) -> Membership {
    let mut membership = Membership::default();
    for name in names {
        let key = NodeKey::generate().unwrap().public();
        let changes = membership.admit(&id(name), &key, site(name)).unwrap();
        apply(&mut membership, changes, 0);
        let registration =
            Registration { capabilities: capabilities(), address: String::new(), interval: None };
        let changes = membership.register(&id(name), registration, 0).unwrap();
        apply(&mut membership, changes, 0);
        membership.set_link(&id(name), true);
    }
    membership
}

fn demand() -> PlacementRequest {
    PlacementRequest {
        tags: vec![],
        preferred_tags: Vec::new(),
        node_id: None,
        amounts: Amounts { cpu_millicores: 1_000, ..Default::default() },
        wait_seconds: None,
        priority: 0,
    }
}

/// A heartbeat; the commands in its answer.
fn report(membership: &mut Membership, name: &str, report: Report, now_ms: i64) -> Vec<(CommandId, Command)> {
    let (changes, commands) = membership.heartbeat(&id(name), report, now_ms).unwrap();
    apply(membership, changes, now_ms);
    commands
}

fn beat(membership: &mut Membership, name: &str, now_ms: i64) -> Vec<Command> {
    report(membership, name, Report::default(), now_ms).into_iter().map(|(_, command)| command).collect()
}

/// Acknowledges all that is open; what is left then.
fn acknowledge(membership: &mut Membership, name: &str, now_ms: i64) -> Vec<Command> {
    let open = report(membership, name, Report::default(), now_ms);
    let acknowledged = open.into_iter().map(|(id, _)| id).collect();
    let left = report(membership, name, Report { acknowledged, ..Default::default() }, now_ms);
    left.into_iter().map(|(_, command)| command).collect()
}

fn status(membership: &Membership, name: &str) -> PeerStatus {
    membership.view(&id(name), 0).unwrap().status
}

#[test]
fn registering_again_does_not_undo_a_drain() {
    let mut membership = cluster(&["a"]);
    let changes = membership.drain(&id("a"), 1_000, OnDeadline::Cancel).unwrap();
    apply(&mut membership, changes, 0);
    let registration = Registration { capabilities: capabilities(), address: String::new(), interval: None };
    let changes = membership.register(&id("a"), registration, 5).unwrap();
    apply(&mut membership, changes, 5);
    assert_eq!(status(&membership, "a"), PeerStatus::Draining);
    assert_eq!(membership.fit(&demand()).unwrap_err().to_string(), "a: draining");
}

#[test]
fn silence_makes_unhealthy_and_the_next_heartbeat_heals() {
    let mut membership = cluster(&["a", "b"]);
    let steady = membership.heartbeat(&id("b"), Report::default(), 80_000).unwrap();
    assert!(steady.0.is_empty(), "a steady heartbeat writes nothing");
    let changes = membership.sweep(STALENESS, STALE_MS + 1);
    assert_eq!(changes.len(), 1);
    apply(&mut membership, changes, STALE_MS + 1);
    assert_eq!(status(&membership, "a"), PeerStatus::Unhealthy);
    assert_eq!(status(&membership, "b"), PeerStatus::Active);
    beat(&mut membership, "a", STALE_MS + 2);
    assert_eq!(status(&membership, "a"), PeerStatus::Active);
}

#[test]
fn silence_of_most_nodes_is_doubted_at_first() {
    let mut membership = cluster(&["a", "b", "c", "d"]);
    assert!(membership.sweep(STALENESS, STALE_MS + 1).is_empty());
    assert!(membership.sweep(STALENESS, STALE_MS + GUARD_MS).is_empty());
    assert_eq!(membership.sweep(STALENESS, STALE_MS + GUARD_MS + 1).len(), 4);
}

#[test]
fn a_drain_waits_for_its_executions_and_then_asks_for_their_end() {
    let mut membership = cluster(&["a"]);
    let execution = ExecutionId::mint();
    membership.place(&execution, &demand()).unwrap();
    let changes = membership.drain(&id("a"), 5_000, OnDeadline::Cancel).unwrap();
    apply(&mut membership, changes, 0);
    let view = membership.drain_view(&id("a"), 1_000).unwrap();
    assert_eq!((view.state, view.blockers.len()), (DrainState::Draining, 1));
    assert_eq!((view.deadline_in_seconds, view.acknowledged), (Some(4), false));
    assert!(membership.overdue(4_999).is_empty());
    assert_eq!(membership.overdue(5_000), vec![execution.clone()]);
    membership.release(&execution);
    assert_eq!(membership.drain_view(&id("a"), 1_000).unwrap().state, DrainState::Drained);

    assert_eq!(beat(&mut membership, "a", 1), [Command::Drain]);
    assert_eq!(beat(&mut membership, "a", 1), [Command::Drain], "until it is acknowledged");
    assert_eq!(acknowledge(&mut membership, "a", 1), []);
    assert!(membership.drain_view(&id("a"), 0).unwrap().acknowledged);

    let changes = membership.resume(&id("a")).unwrap();
    apply(&mut membership, changes, 1);
    assert_eq!(status(&membership, "a"), PeerStatus::Active);
    assert!(membership.fit(&demand()).unwrap_err().to_string().contains("resuming"));
    assert_eq!(beat(&mut membership, "a", 2), [Command::Resume]);
    assert_eq!(acknowledge(&mut membership, "a", 2), []);
    membership.fit(&demand()).unwrap();
    assert!(membership.resume(&id("a")).unwrap().is_empty(), "resuming twice is once");
}

#[test]
fn a_known_name_with_another_key_is_refused_until_a_token_comes() {
    let membership = cluster(&["a"]);
    let other = NodeKey::generate().unwrap().public();
    let error = membership.check_key(&id("a"), &other, Enrolment::None).unwrap_err();
    assert_eq!(error.code(), ErrorCode::KeyMismatch);
    let error = membership.check_key(&id("a"), &other, Enrolment::Anybody).unwrap_err();
    assert_eq!(error.code(), ErrorCode::KeyMismatch, "a token for anybody is for names that nobody has");
    membership.check_key(&id("a"), &other, Enrolment::Bound).unwrap();
    let error = membership.check_key(&id("b"), &other, Enrolment::None).unwrap_err();
    assert_eq!(error.code(), ErrorCode::EnrolmentInvalid);
}

#[test]
fn an_identity_belongs_to_one_host() {
    let membership = cluster(&["a"]);
    membership.check_identity(&id("a"), &site("a")).unwrap();
    let error = membership.check_identity(&id("a"), &site("192.0.2.9")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Conflict);
    assert!(
        error.to_string().contains("host a port 22") && error.to_string().contains("192.0.2.9"),
        "{error}"
    );
}

#[test]
fn reservations_are_counted_and_freed() {
    let mut membership = cluster(&["a", "b"]);
    let ids = (0..5).map(|_| ExecutionId::mint()).collect::<Vec<_>>();
    let placed = ids[..4].iter().map(|id| membership.place(id, &demand()).unwrap()).collect::<Vec<_>>();
    assert_eq!(placed, [id("a"), id("b"), id("a"), id("b")]);
    let full = membership.place(&ids[4], &demand()).unwrap_err();
    assert!(full.may_change() && full.to_string().contains("0 free"), "{full}");
    membership.release(&ids[1]);
    assert_eq!(membership.place(&ids[4], &demand()).unwrap(), id("b"));
}

#[test]
fn a_node_behind_a_cut_connection_gets_no_work() {
    let mut membership = cluster(&["a"]);
    membership.set_link(&id("a"), false);
    assert_eq!(
        membership.fit(&demand()).unwrap_err().to_string(),
        "a: its SSH connection is down, or it does not answer there"
    );
}

#[test]
fn view_tells_why_an_ssh_connection_is_down() {
    let mut membership = cluster(&["a"]);
    let failure = Failure {
        code: ErrorCode::HostKeyChanged,
        message: "the key of a has changed".to_owned(),
        remedy: Some("run: aegis host forget a".to_owned()),
    };
    membership.set_link_failure(&id("a"), Some(failure.clone()));
    assert!(membership.view(&id("a"), 0).unwrap().problem.is_none(), "the link is up");
    membership.set_link(&id("a"), false);
    let problem = membership.view(&id("a"), 0).unwrap().problem.unwrap();
    assert_eq!((problem.code, problem.remedy), (failure.code, failure.remedy));
    assert_eq!(problem.message, "its SSH connection is down: the key of a has changed");
    membership.set_link_failure(&id("a"), None);
    assert!(membership.view(&id("a"), 0).unwrap().problem.is_some(), "its worker does not answer");
}

#[test]
fn a_removal_drains_first_and_unpins_the_key() {
    let mut membership = cluster(&["a", "b"]);
    let execution = ExecutionId::mint();
    let pinned = PlacementRequest { node_id: Some(id("a")), ..demand() };
    membership.place(&execution, &pinned).unwrap();
    let changes = membership.remove(&id("a"), 5_000, false).unwrap();
    apply(&mut membership, changes, 0);
    assert_eq!(membership.drain_view(&id("a"), 0).unwrap().state, DrainState::Draining);
    assert_eq!(status(&membership, "a"), PeerStatus::Draining);
    assert!(membership.fit(&pinned).unwrap_err().to_string().contains("being removed"));
    assert_eq!(membership.overdue(5_000), vec![execution.clone()], "at the deadline work is cancelled");
    assert!(membership.finished_removals().is_empty());
    membership.release(&execution);
    let changes = membership.finished_removals();
    assert_eq!(changes.len(), 1);
    apply(&mut membership, changes, 1);
    assert_eq!(status(&membership, "a"), PeerStatus::Removed);
    assert!(membership.finished_removals().is_empty());
    assert!(membership.remove(&id("a"), 0, false).unwrap().is_empty(), "removing twice is once");

    // Its key is nobody's any more; only a new enrolment brings it back, and then as a new member.
    let key = NodeKey::generate().unwrap().public();
    assert_eq!(
        membership.check_key(&id("a"), &key, Enrolment::None).unwrap_err().code(),
        ErrorCode::NodeRemoved
    );
    assert!(membership.record(&id("a")).unwrap().public_key.is_none());
    membership.check_key(&id("a"), &key, Enrolment::Anybody).unwrap();
    let record = membership.enrol(&id("a"), Role::Worker, &key, true);
    apply(&mut membership, vec![Change::Put(Box::new(record))], 2);
    assert_eq!(status(&membership, "a"), PeerStatus::Expected);
}

#[test]
fn forced_removal_skips_drain_and_controller_cannot_be_removed() {
    let mut membership = cluster(&["a"]);
    membership.place(&ExecutionId::mint(), &demand()).unwrap();
    let changes = membership.remove(&id("a"), 5_000, true).unwrap();
    apply(&mut membership, changes, 0);
    assert_eq!(status(&membership, "a"), PeerStatus::Removed);
    let own = NodeRecord::expected(id("home"), Role::Hybrid, [0; 32], LinkKind::Local);
    apply(&mut membership, vec![Change::Put(Box::new(own))], 0);
    for refused in [membership.remove(&id("home"), 0, true), membership.shutdown(&id("home"))] {
        assert_eq!(refused.unwrap_err().code(), ErrorCode::FailedPrecondition);
    }
}

#[test]
fn a_removal_can_be_undone_until_it_is_done() {
    let mut membership = cluster(&["a"]);
    membership.place(&ExecutionId::mint(), &demand()).unwrap();
    let changes = membership.remove(&id("a"), 5_000, false).unwrap();
    apply(&mut membership, changes, 0);
    let changes = membership.resume(&id("a")).unwrap();
    apply(&mut membership, changes, 0);
    assert_eq!(status(&membership, "a"), PeerStatus::Active);
    assert!(membership.finished_removals().is_empty());
}

#[test]
fn a_node_that_sealed_once_is_not_taken_without_a_seal() {
    let membership = cluster(&["a"]);
    let error = membership.attested(&id("a"), false, "1").unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnsealedContext);
    let key = NodeKey::generate().unwrap().public();
    let record = membership.enrol(&id("b"), Role::Worker, &key, false);
    let mut membership = membership;
    apply(&mut membership, vec![Change::Put(Box::new(record))], 0);
    assert!(membership.attested(&id("b"), false, "").unwrap().is_empty());
    let changes = membership.attested(&id("b"), true, "").unwrap();
    apply(&mut membership, changes, 0);
    assert!(membership.attested(&id("b"), false, "").is_err(), "from its first seal on");
}

fn pushes(membership: &Membership, node: &NodeId) -> Vec<String> {
    let version = |(_, command): &(CommandId, Command)| match command {
        Command::PushConfig { version, .. } => Some(version.clone()),
        Command::Drain | Command::Resume | Command::Shutdown => None,
    };
    membership.nodes[node].commands.iter().filter_map(version).collect()
}

#[test]
fn newer_configuration_replaces_unacknowledged_one() {
    let mut membership = cluster(&["a"]);
    let node = id("a");
    let push = |membership: &mut Membership, version: &str, changed| {
        let changes = membership.push_config(&node, version, changed).unwrap();
        apply(membership, changes, 0);
    };
    // It has said nothing yet: only a change is worth a command.
    push(&mut membership, "v0", false);
    assert!(pushes(&membership, &node).is_empty());
    push(&mut membership, "v1", true);
    push(&mut membership, "v1", true);
    assert_eq!(pushes(&membership, &node), ["v1"], "once");
    push(&mut membership, "v2", true);
    assert_eq!(pushes(&membership, &node), ["v2"]);
    assert!(membership.drain_view(&node, 0).unwrap().acknowledged, "no drain waits for it");

    let beat = |membership: &mut Membership, version: &str, error: Option<&str>| {
        let acknowledged = membership.nodes[&node].commands.iter().map(|(id, _)| id.clone()).collect();
        let config = Some(ConfigReport { version: version.into(), error: error.map(str::to_owned) });
        let report = Report { acknowledged, config, ..Default::default() };
        let (changes, _) = membership.heartbeat(&node, report, 0).unwrap();
        apply(membership, changes, 0);
    };
    beat(&mut membership, "v2", None);
    assert!(pushes(&membership, &node).is_empty());
    push(&mut membership, "v2", false);
    assert!(pushes(&membership, &node).is_empty(), "it runs it");
    push(&mut membership, "v3", true);
    beat(&mut membership, "v2", Some("spec.x"));
    let view = membership.view(&node, 0).unwrap();
    assert_eq!((view.config_version.as_deref(), view.config_error.as_deref()), (Some("v2"), Some("spec.x")));
    // Back to what it runs: sent again, since it still says that something is wrong.
    push(&mut membership, "v2", true);
    assert_eq!(pushes(&membership, &node), ["v2"]);
    beat(&mut membership, "v2", None);
    assert_eq!(membership.view(&node, 0).unwrap().config_error, None);
}

#[test]
fn a_configuration_command_is_kept_by_its_version_alone() {
    let command = Command::PushConfig { version: "v1".into(), body: b"secret".to_vec() };
    let stored = serde_json::to_string(&command).unwrap();
    assert_eq!(stored, r#"{"push_config":{"version":"v1"}}"#);
    assert_eq!(serde_json::to_string(&Command::Drain).unwrap(), r#""drain""#, "as it always was");
    let read: Command = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, Command::PushConfig { version: "v1".into(), body: Vec::new() });
}

#[test]
fn relocated_node_is_no_conflict_at_its_new_address() {
    let mut membership = cluster(&["a"]);
    let record = membership.record(&id("a")).unwrap().clone();
    let key = PublicKey::parse(&record.public_key.unwrap()).unwrap();
    let changes = membership.admit(&id("a"), &key, site("a")).unwrap();
    apply(&mut membership, changes, 0);
    let conflict = membership.check_identity(&id("a"), &site("new")).unwrap_err();
    assert_eq!(conflict.code(), ErrorCode::Conflict);
    let remedy = conflict.remedy_text().unwrap();
    assert!(remedy.contains("aegis host approve new") && remedy.contains("aegis node remove a"), "{remedy}");
    let changes = membership.relocate(&id("a"), "new".into(), 22).unwrap();
    apply(&mut membership, changes, 0);
    membership.check_identity(&id("a"), &site("new")).unwrap();
    assert_eq!(membership.record(&id("a")).unwrap().public_key, record.public_key);
    assert!(membership.relocate(&id("b"), "new".into(), 22).is_err());
}

#[test]
fn node_moved_to_another_link_keeps_its_key() {
    let mut membership = cluster(&["a"]);
    let record = membership.record(&id("a")).unwrap().clone();
    let key = PublicKey::parse(&record.public_key.unwrap()).unwrap();
    let direct = NodeLink::Direct {
        controller: "https://c.example:50056".into(),
        ca: "ab".repeat(32),
        node: "https://a.example:50056".into(),
    };
    for (link, kind, observed) in [
        (NodeLink::Sockets, LinkKind::Ssh, Observed::Active),
        (direct.clone(), LinkKind::Direct, Observed::Expected),
        (direct, LinkKind::Direct, Observed::Expected),
        (NodeLink::Sockets, LinkKind::Ssh, Observed::Expected),
    ] {
        let changes = membership.admit(&id("a"), &key, NodeHost { link, ..site("a") }).unwrap();
        apply(&mut membership, changes, 0);
        let moved = membership.record(&id("a")).unwrap();
        assert_eq!((moved.link, moved.observed), (kind, observed));
        assert_eq!(moved.public_key, record.public_key);
    }
}

#[test]
fn rejecting_node_is_backed_off_with_its_reason() {
    let mut membership = cluster(&["a", "b"]);
    membership.set_strategy(PlacementStrategy::BinPack);
    let execution_id = ExecutionId::mint();
    assert_eq!(membership.place(&execution_id, &demand()).unwrap(), id("a"));
    let refusal = |text: &str| Error::new(ErrorCode::ResourceExhausted, text);
    membership.refused(&id("a"), &execution_id, &refusal("its disk is full"), 0);
    assert_eq!(membership.nodes[&id("a")].reserved.len(), 0);
    assert_eq!(membership.fit(&demand()).unwrap(), id("b"));
    membership.refused(&id("b"), &execution_id, &refusal("so is this one"), 1_000);
    assert!(membership.view(&id("a"), 0).unwrap().problem.is_none());
    let no_fit = membership.fit(&demand()).unwrap_err();
    assert_eq!(no_fit.to_string(), "a: its disk is full; b: so is this one");
    assert!(no_fit.may_change());
    assert!(!membership.forget_refusals(4_999));
    assert!(membership.forget_refusals(5_000));
    assert_eq!(membership.fit(&demand()).unwrap(), id("a"));
}

#[test]
fn node_is_stale_by_its_own_interval() {
    let mut membership = cluster(&["slow", "quick", "silent"]);
    let second = Duration::from_secs(1);
    for (name, interval) in [("slow", Some(60 * second)), ("quick", Some(5 * second)), ("silent", None)] {
        report(&mut membership, name, Report { interval, ..Default::default() }, 0);
    }
    let stale = |membership: &mut Membership, staleness, now_ms| {
        let changes = membership.sweep(staleness, now_ms);
        changes.iter().map(|change| change.node_id().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(stale(&mut membership, STALENESS, 16_000), ["quick"]);
    assert_eq!(stale(&mut membership, STALENESS, 91_000), ["quick", "silent"]);
    assert_eq!(stale(&mut membership, STALENESS, 181_000).len(), 3);
    let set = Staleness { is_set: true, ..STALENESS };
    assert!(stale(&mut membership, set, 16_000).is_empty(), "the operator's threshold holds for all");
    report(&mut membership, "slow", Report { interval: Some(86_400 * second), ..Default::default() }, 0);
    assert!(stale(&mut membership, STALENESS, 901_000).contains(&"slow".to_owned()), "with a bound");
}

#[test]
fn age_of_a_heartbeat_is_the_stored_one_until_the_node_speaks() {
    let membership = cluster(&["a"]);
    let mut records = membership.records().cloned().collect::<Vec<_>>();
    records[0].version = String::new();
    let never = NodeRecord::expected(id("b"), Role::Worker, [1; 32], LinkKind::Direct);
    records.push(never);
    let mut membership =
        Membership::restore(records, Vec::new(), Vec::new(), RevokedKeys::default(), 500_000);
    let age =
        |membership: &Membership, name| membership.view(&id(name), 600_000).unwrap().last_heartbeat_age_ms;
    assert_eq!((age(&membership, "a"), age(&membership, "b")), (Some(600_000), None));
    assert_eq!(membership.view(&id("a"), 0).unwrap().version, "unknown");
    beat(&mut membership, "a", 590_000);
    assert_eq!(age(&membership, "a"), Some(10_000));
}

#[test]
fn guard_counts_nodes_that_went_silent_out_of_step() {
    let names = ["a", "b", "c", "d", "e"];
    let mut membership = cluster(&names);
    for (number, name) in names.iter().enumerate() {
        beat(&mut membership, name, 8_000 * number as i64);
    }
    for now_ms in (10_000..300_000).step_by(10_000) {
        let changes = membership.sweep(STALENESS, now_ms);
        assert!(changes.is_empty(), "{now_ms}: {changes:?}");
    }
    assert!(membership.guard_is_on());
    // One that is really gone among others that speak again.
    for name in &names[1..] {
        beat(&mut membership, name, 300_000);
    }
    assert_eq!(membership.sweep(STALENESS, 300_000).len(), 1);
    assert!(!membership.guard_is_on());
}

#[test]
fn contradicting_node_is_corrected_with_backoff_and_shown() {
    let mut membership = cluster(&["a"]);
    let says = |membership: &mut Membership, draining, now_ms| {
        let open = report(membership, "a", Report { draining: Some(draining), ..Default::default() }, now_ms);
        let acknowledged = open.iter().map(|(id, _)| id.clone()).collect();
        report(membership, "a", Report { acknowledged, ..Default::default() }, now_ms);
        open.len()
    };
    let corrections: usize = (0..3_600).map(|second| says(&mut membership, true, second * 1_000)).sum();
    assert_eq!(corrections, 7, "after 0, 30, 90, 210, 450, 930 and 1890 s");
    let problem = membership.view(&id("a"), 0).unwrap().problem.expect("it is shown");
    assert!(problem.message.contains("opposite"), "{}", problem.message);
    assert!(membership.fit(&demand()).is_err());
    assert_eq!(says(&mut membership, false, 3_600_000), 0);
    assert!(membership.view(&id("a"), 0).unwrap().problem.is_none());
    assert_eq!(says(&mut membership, true, 3_601_000), 1, "at once again");
}

#[test]
fn node_that_obeys_another_controller_is_shown_and_passed_over() {
    let mut membership = cluster(&["a"]);
    let fenced = Error::new(ErrorCode::Fenced, "epoch 1 is before 2");
    membership.refused(&id("a"), &ExecutionId::mint(), &fenced, 0);
    let problem = membership.view(&id("a"), 0).unwrap().problem.expect("it is shown");
    assert!(problem.code == ErrorCode::Fenced && problem.message.contains("epoch 1"), "{problem:?}");
    assert!(membership.fit(&demand()).is_err());
    assert!(!membership.forget_refusals(59_999));
    assert!(membership.forget_refusals(60_000));
    membership.fit(&demand()).unwrap();
}

#[test]
fn node_has_only_the_tags_that_its_token_allows() {
    let mut membership = cluster(&["a"]);
    let [gpu, eu] = ["gpu", "eu"].map(|tag| Tag::parse(tag).unwrap());
    let mut record = membership.record(&id("a")).unwrap().clone();
    record.bound_tags = Some(vec![eu.clone()]);
    apply(&mut membership, vec![Change::Put(Box::new(record))], 0);
    let claim = |membership: &mut Membership, tags: &[&Tag]| {
        let tags = tags.iter().map(|tag| (*tag).clone()).collect();
        let capabilities = Some(Capabilities { tags, ..capabilities() });
        report(membership, "a", Report { capabilities, ..Default::default() }, 1);
        membership.view(&id("a"), 1).unwrap()
    };
    let view = claim(&mut membership, &[&gpu, &eu]);
    assert_eq!(view.tags, std::slice::from_ref(&eu));
    assert!(view.problem.expect("it is shown").message.contains("gpu"));
    let view = claim(&mut membership, &[&eu]);
    assert_eq!((view.tags, view.problem), (vec![eu], None));
}

#[test]
fn deployed_node_has_only_the_tags_of_its_deployment() {
    let mut membership = cluster(&["a"]);
    let [gpu, eu] = ["gpu", "eu"].map(|tag| Tag::parse(tag).unwrap());
    let key = NodeKey::generate().unwrap().public();
    let deploy = |membership: &mut Membership, tags: &[Tag]| {
        let given = Given { tags: tags.to_vec(), size: None };
        let changes = membership.admit_deployed(&id("a"), &key, site("a"), &given).unwrap();
        apply(membership, changes, 1);
        let view = membership.view(&id("a"), 1).unwrap();
        (view.tags, view.problem)
    };
    assert_eq!(deploy(&mut membership, std::slice::from_ref(&eu)), (vec![], None));
    let capabilities = Capabilities { tags: vec![gpu.clone(), eu.clone()], ..capabilities() };
    report(&mut membership, "a", Report { capabilities: Some(capabilities), ..Default::default() }, 1);
    let view = membership.view(&id("a"), 1).unwrap();
    assert_eq!(view.tags, std::slice::from_ref(&eu));
    let problem = view.problem.expect("it is shown");
    assert!(problem.message.contains("gpu") && problem.remedy.unwrap().contains("deploy it again"));
    // It has registered with its new configuration when the deployment admits it.
    let both = [eu.clone(), gpu];
    assert_eq!(deploy(&mut membership, &both), (both.to_vec(), None));
    // A rollback may bring back what an earlier deployment named.
    assert_eq!(deploy(&mut membership, std::slice::from_ref(&eu)), (both.to_vec(), None));
    // A node that is removed and deployed again has what its new deployment names.
    let mut removed = membership.record(&id("a")).unwrap().clone();
    removed.desired = Desired::Removed;
    apply(&mut membership, vec![Change::Put(Box::new(removed))], 1);
    assert_eq!(deploy(&mut membership, &[]).0, vec![]);
}

#[test]
fn deployed_node_has_at_most_what_its_host_has() {
    let mut membership = cluster(&["a"]);
    let key = NodeKey::generate().unwrap().public();
    let deploy = |membership: &mut Membership, size: Option<Amounts>| {
        let given = Given { tags: Vec::new(), size };
        let changes = membership.admit_deployed(&id("a"), &key, site("a"), &given).unwrap();
        apply(membership, changes, 1);
        membership.view(&id("a"), 1).unwrap()
    };
    let claim = |membership: &mut Membership, total: Amounts| {
        let capabilities = Some(Capabilities { total, ..capabilities() });
        report(membership, "a", Report { capabilities, ..Default::default() }, 1);
        membership.view(&id("a"), 1).unwrap()
    };
    let host = Amounts { cpu_millicores: 4_000, memory_mb: 2_048, gpus: 0, vram_gb: 0 };
    let more = Amounts { cpu_millicores: 2_000, memory_mb: 4_096, gpus: 8, vram_gb: 320 };
    assert_eq!(deploy(&mut membership, Some(host)).problem, None);
    let view = claim(&mut membership, more);
    assert_eq!(view.capacity, Amounts { cpu_millicores: 2_000, ..host }, "the lesser of each");
    let problem = view.problem.expect("it is shown");
    assert!(problem.message.contains("4096 MB of memory, 8 GPUs with 320 GB"), "{}", problem.message);
    assert!(problem.message.contains("4 CPUs, 2048 MB of memory when"), "{}", problem.message);
    // A rollback measures nothing.
    assert_eq!(deploy(&mut membership, None).capacity.gpus, 0);
    // The host has got more, and the node has stated it before its deployment admits it.
    let grown = Amounts { cpu_millicores: 4_000, ..more };
    let view = deploy(&mut membership, Some(grown));
    assert_eq!((view.capacity, view.problem), (more, None));
    let view = claim(&mut membership, host);
    assert_eq!((view.capacity, view.problem), (host, None), "an operator may give less");
}

#[test]
fn devices_beyond_the_host_are_dropped() {
    let mut membership = cluster(&["a"]);
    let key = NodeKey::generate().unwrap().public();
    let host = Amounts { cpu_millicores: 4_000, memory_mb: 2_048, gpus: 2, vram_gb: 56 };
    let given = Given { tags: Vec::new(), size: Some(host) };
    let changes = membership.admit_deployed(&id("a"), &key, site("a"), &given).unwrap();
    apply(&mut membership, changes, 1);
    let claim = |membership: &mut Membership, memory_mb: &[u32]| {
        let device = |(number, memory_mb): (usize, &u32)| GpuDevice {
            uuid: GpuUuid::parse(format!("GPU-{number}")).unwrap(),
            name: "NVIDIA A10".to_owned(),
            memory_mb: *memory_mb,
        };
        let gpus: Vec<_> = memory_mb.iter().enumerate().map(device).collect();
        let vram_gb = memory_gb(gpus.iter());
        let total = Amounts { gpus: gpus.len() as u32, vram_gb, ..capabilities().total };
        let capabilities = Some(Capabilities { total, gpus, ..capabilities() });
        report(membership, "a", Report { capabilities, ..Default::default() }, 1);
        let view = membership.view(&id("a"), 1).unwrap();
        (view.capacity.gpus, view.capacity.vram_gb, view.gpu_devices.len(), view.problem.is_some())
    };
    assert_eq!(claim(&mut membership, &[40_960, 16_384]), (2, 56, 2, false));
    assert_eq!(claim(&mut membership, &[16_384]), (1, 16, 1, false), "an operator may give less");
    assert_eq!(claim(&mut membership, &[40_960, 40_960]), (2, 56, 0, true), "alike, in what its host had");
    assert_eq!(claim(&mut membership, &[16_384; 3]), (2, 48, 0, true));
    // The host has more since, as its next deployment sees.
    let given = Given { size: Some(Amounts { gpus: 3, ..host }), ..given };
    let changes = membership.admit_deployed(&id("a"), &key, site("a"), &given).unwrap();
    apply(&mut membership, changes, 2);
    assert_eq!(membership.view(&id("a"), 2).unwrap().capacity.gpus, 3);
    assert_eq!(claim(&mut membership, &[16_384; 3]), (3, 48, 3, false));
}

#[test]
fn node_that_sends_too_many_events_shows_it_for_a_day() {
    const DAY_MS: i64 = 24 * 3_600_000;
    let mut membership = cluster(&["a"]);
    let execution_id = ExecutionId::mint();
    membership.note_excess(&id("a"), execution_id.clone(), 0);
    let problem = membership.view(&id("a"), DAY_MS - 1).unwrap().problem.expect("it is shown");
    assert!(problem.message.contains(execution_id.as_str()), "{problem:?}");
    assert!(problem.remedy.unwrap().contains("execution_events_mb"));
    assert_eq!(membership.view(&id("a"), DAY_MS).unwrap().problem, None);
    membership.fit(&demand()).expect("it still takes work");
}

#[test]
fn copied_key_is_refused_with_advice_for_the_copy() {
    let mut membership = Membership::default();
    let [key, next] = [(); 2].map(|()| NodeKey::generate().unwrap().public());
    let changes = membership.admit(&id("one"), &key, site("host-1")).unwrap();
    apply(&mut membership, changes, 0);
    let deployed = membership.admit(&id("copy"), &key, site("host-2")).unwrap_err();
    let joined = membership.check_key(&id("copy"), &key, Enrolment::Bound).unwrap_err();
    let changes = membership.admit(&id("copy"), &next, site("host-2")).unwrap();
    apply(&mut membership, changes, 0);
    let rotated = membership.rotate_key(&id("copy"), &next, &key).unwrap_err();
    for error in [deployed, joined, rotated] {
        assert_eq!(error.code(), ErrorCode::KeyMismatch);
        let remedy = error.remedy_text().unwrap();
        assert!(error.message().contains("key of node one") && remedy.contains("the copy"), "{error}");
        assert!(!remedy.contains("node remove") && remedy.contains("leave one as it is"), "{remedy}");
    }
    membership.check_key(&id("one"), &key, Enrolment::None).unwrap();
    membership.admit(&id("one"), &key, site("host-1")).unwrap();
}
