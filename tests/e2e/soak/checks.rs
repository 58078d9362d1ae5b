//! The checker finds what it is there for: a world in which all is right, spoilt in one way at a time.

use cluster_core::types::{
    error::{ErrorCode, Failure},
    execution::{
        lifecycle::State,
        view::{EventKind, EventView, ExecutionView, Stream},
    },
    ids::ExecutionId,
};
use hyper::body::Bytes;
use serde_json::json;

use super::{
    checker::{EngineStart, Seen, Submitted, World, check},
    work::Work,
};

const CODE: i32 = 7;
const TEXT: &str = "start 0a1b 1\nline 1 x\nline 2 x\nend\n";

fn failure(code: ErrorCode) -> Failure {
    Failure { code, message: "of the container".into(), remedy: None }
}

fn output(text: &str) -> EventKind {
    EventKind::Output { stream: Stream::Stdout, data: Bytes::from(text.to_owned()), truncated: false }
}

fn number(events: Vec<EventKind>) -> Vec<EventView> {
    let numbered = (1..).zip(events);
    numbered.map(|(sequence, kind)| EventView { sequence, attempt: 1, time_ms: 0, kind }).collect()
}

/// One execution that wrote two lines and failed as it was to.
fn right() -> World {
    let id = ExecutionId::mint();
    let told = failure(ErrorCode::ContainerFailed);
    let events = number(vec![
        EventKind::Started,
        EventKind::IterationStarted { iteration: 1 },
        output(&TEXT[..20]),
        output(&TEXT[20..]),
        EventKind::IterationFailed {
            iteration: 1,
            failure: told.clone(),
            exit_code: Some(CODE),
            stderr_tail: String::new(),
        },
        EventKind::Failed { failure: told.clone(), exit_code: Some(CODE) },
    ]);
    let view: ExecutionView = serde_json::from_value(json!({
        "execution_id": id, "state": "failed", "image": "i", "attempt": 1, "iteration": 1,
        "exit_code": CODE, "failure": told, "created_at_ms": 0, "last_sequence": events.len(),
    }))
    .unwrap();
    let start = EngineStart { execution_id: id.clone(), attempt: 1, iteration: 1, container: "c".into() };
    World {
        submitted: vec![Submitted { id: id.clone(), work: Work::Exits { lines: 2, code: CODE }, removed: 0 }],
        seen: [(id, Seen { view, events })].into(),
        starts: [start].into(),
        ..World::default()
    }
}

fn seen(world: &mut World) -> &mut Seen {
    world.seen.values_mut().next().unwrap()
}

fn rewrite(world: &mut World, text: &str) {
    let events = &mut seen(world).events;
    events[2].kind = output(text);
    events[3].kind = EventKind::ImageProgress { message: String::new() };
}

#[test]
fn a_world_in_which_all_is_right_passes() {
    assert_eq!(check(&right()), [""; 0]);
    let mut cut = right();
    rewrite(&mut cut, TEXT);
    assert_eq!(check(&cut), [""; 0]);
}

#[test]
fn each_wrong_is_found() {
    type Spoil = fn(&mut World);
    let spoilt: [(&str, Spoil); 20] = [
        ("is not there", |world| world.seen.clear()),
        ("container x is left", |world| world.containers.push("x".into())),
        ("journal x is left", |world| world.journals.push("x".into())),
        ("event 4 stands where 3", |world| drop(seen(world).events.remove(2))),
        ("event 3 stands where 4", |world| {
            let again = seen(world).events[2].clone();
            seen(world).events.insert(3, again);
        }),
        ("the last event is 6, the view says 7", |world| seen(world).view.last_sequence = 7),
        ("its ends are", |world| seen(world).view.state = State::Running),
        ("its ends are [Cancelled, Failed]", |world| {
            seen(world).events[0].kind = EventKind::Cancelled { reason: String::new() };
        }),
        ("it ended as", |world| seen(world).view.exit_code = Some(8)),
        ("it ended as", |world| seen(world).view.failure = Some(failure(ErrorCode::Timeout))),
        // Nobody took its container away.
        ("it ended as", |world| seen(world).view.failure = Some(failure(ErrorCode::Lost))),
        ("1 of 2 lines", |world| rewrite(world, "start 0a1b 1\nline 1 x\nend\n")),
        ("its end is not", |world| rewrite(world, "start 0a1b 1\nline 1 x\nline 2 x\n")),
        ("comes after line 1", |world| rewrite(world, "start 0a1b 1\nline 1 x\nline 1 x\nend\n")),
        ("comes after line 0", |world| rewrite(world, "start 0a1b 1\nline 2 x\nend\n")),
        ("comes after its end", |world| rewrite(world, &format!("{TEXT}{TEXT}"))),
        ("iteration 2", |world| rewrite(world, &TEXT.replace("0a1b 1", "0a1b 2"))),
        ("started (1, 1) 2 times", |world| {
            let mut again = world.starts.first().unwrap().clone();
            again.container = "d".into();
            world.starts.insert(again);
        }),
        ("2 attempts ran of 1", |world| {
            let mut again = world.starts.first().unwrap().clone();
            again.attempt = 2;
            world.starts.insert(again);
        }),
        ("no engine started", |world| world.starts.clear()),
    ];
    for (expected, spoil) in spoilt {
        let mut world = right();
        spoil(&mut world);
        let wrong = check(&world);
        assert!(wrong.iter().any(|line| line.contains(expected)), "{expected}: {wrong:?}");
    }
}

#[test]
fn two_containers_with_one_number_are_one_too_few() {
    let mut world = right();
    let other = right();
    world.submitted.extend(other.submitted);
    world.seen.extend(other.seen);
    world.starts.extend(other.starts);
    assert!(check(&world).iter().any(|line| line.contains("is another's too")));
}

/// Only for those whose container was really taken away, and only where no other attempt was left.
#[test]
fn what_was_taken_away_may_be_lost() {
    let mut world = right();
    let lost = Some(failure(ErrorCode::Lost));
    (seen(&mut world).view.failure, seen(&mut world).view.exit_code) = (lost.clone(), None);
    seen(&mut world).events[4].kind = EventKind::ImageProgress { message: String::new() };
    rewrite(&mut world, "start 0a1b 1\nline 1 x\nli");
    world.submitted[0].removed = 1;
    assert_eq!(check(&world), [""; 0]);
    world.submitted[0].work = Work::Retries { lines: 2, code: CODE };
    assert!(check(&world).iter().any(|line| line.contains("it ended as")), "another attempt was left");
}
