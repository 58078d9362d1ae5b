use super::*;
use crate::{identity::NodeKey, ids::UserName};

const STALE_MS: i64 = 90_000;

fn id(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

fn site(host: &str) -> Site {
    Site {
        host: host.into(),
        port: 22,
        user: UserName::parse("root").unwrap(),
        key_path: None,
        base_dir: "/opt/e".into(),
        by_person: true,
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
            Registration { capabilities: capabilities(), address: String::new(), version: "1".into() };
        let changes = membership.register(&id(name), registration, 0).unwrap();
        apply(&mut membership, changes, 0);
        membership.set_link(&id(name), true);
    }
    membership
}

fn demand() -> Demand {
    Demand { tags: vec![], node_id: None, amounts: Amounts { cpu_millicores: 1_000, ..Default::default() } }
}

fn status(membership: &Membership, name: &str) -> PeerStatus {
    membership.view(&id(name), 0).unwrap().status
}

#[test]
fn registering_again_does_not_undo_a_drain() {
    let mut membership = cluster(&["a"]);
    let changes = membership.drain(&id("a"), 1_000, OnDeadline::Cancel).unwrap();
    apply(&mut membership, changes, 0);
    let registration =
        Registration { capabilities: capabilities(), address: String::new(), version: "2".into() };
    let changes = membership.register(&id("a"), registration, 5).unwrap();
    apply(&mut membership, changes, 5);
    assert_eq!(status(&membership, "a"), PeerStatus::Draining);
    assert_eq!(membership.fit(&demand()).unwrap_err().to_string(), "a: draining");
}

#[test]
fn silence_makes_unhealthy_and_the_next_heartbeat_heals() {
    let mut membership = cluster(&["a", "b"]);
    let steady = membership.heartbeat(&id("b"), Report::default(), 80_000).unwrap();
    assert!(steady.is_empty(), "a steady heartbeat writes nothing");
    let changes = membership.sweep(STALE_MS, STALE_MS + 1);
    assert_eq!(changes.len(), 1);
    apply(&mut membership, changes, STALE_MS + 1);
    assert_eq!(status(&membership, "a"), PeerStatus::Unhealthy);
    assert_eq!(status(&membership, "b"), PeerStatus::Active);
    let changes = membership.heartbeat(&id("a"), Report::default(), STALE_MS + 2).unwrap();
    apply(&mut membership, changes, STALE_MS + 2);
    assert_eq!(status(&membership, "a"), PeerStatus::Active);
}

#[test]
fn when_most_fall_silent_at_once_the_controller_doubts_itself_first() {
    let mut membership = cluster(&["a", "b", "c", "d"]);
    assert!(membership.sweep(STALE_MS, STALE_MS + 1).is_empty());
    assert!(membership.sweep(STALE_MS, STALE_MS + BRAKE_MS).is_empty());
    assert_eq!(membership.sweep(STALE_MS, STALE_MS + BRAKE_MS + 1).len(), 4);
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

    let command = membership.commands(&id("a"));
    assert_eq!(command[0].1, Command::Drain);
    let acknowledged = Report { acknowledged: vec![command[0].0.clone()], ..Default::default() };
    let changes = membership.heartbeat(&id("a"), acknowledged, 1).unwrap();
    apply(&mut membership, changes, 1);
    assert!(membership.commands(&id("a")).is_empty());
    assert!(membership.drain_view(&id("a"), 0).unwrap().acknowledged);

    let changes = membership.resume(&id("a")).unwrap();
    apply(&mut membership, changes, 1);
    assert_eq!(status(&membership, "a"), PeerStatus::Active);
    let command = membership.commands(&id("a"));
    assert_eq!(command[0].1, Command::Resume);
    assert!(membership.fit(&demand()).unwrap_err().to_string().contains("resuming"));
    let acknowledged = Report { acknowledged: vec![command[0].0.clone()], ..Default::default() };
    let changes = membership.heartbeat(&id("a"), acknowledged, 2).unwrap();
    apply(&mut membership, changes, 2);
    membership.fit(&demand()).unwrap();
    assert!(membership.resume(&id("a")).unwrap().is_empty(), "resuming twice is once");
}

#[test]
fn a_known_name_with_another_key_is_refused_until_a_token_comes() {
    let membership = cluster(&["a"]);
    let other = NodeKey::generate().unwrap().public();
    let error = membership.check_key(&id("a"), &other, false).unwrap_err();
    assert_eq!(error.code(), ErrorCode::KeyMismatch);
    membership.check_key(&id("a"), &other, true).unwrap();
    let error = membership.check_key(&id("b"), &other, false).unwrap_err();
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
