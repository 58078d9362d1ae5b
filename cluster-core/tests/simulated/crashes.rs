//! Processes that end without a word.

use std::time::Duration;

use cluster_core::{
    store::{ExecutionWrite, Write},
    types::{
        execution::{
            record::NewExecution,
            request::{ExecutionRequest, Submission},
        },
        heartbeat::Command,
        ids::{ExecutionId, NodeId},
        node::{DrainState, PeerStatus},
        node_event::NodeEventKind,
    },
};

use crate::{
    home::{HOME, Running, jump},
    world::{COARSE, World},
};

fn epoch(world: &mut World) -> u64 {
    world.ask(async |home: Running| home.controller.epoch())
}

#[test]
fn controller_crash_keeps_drain_and_nodes_attest_by_key() {
    let names = ["a", "b", "c"];
    let mut world = World::of(&names, COARSE);
    world.drain("b");
    let mut before = epoch(&mut world);
    for life in 1..=3 {
        // One that nobody has heard of yet, too.
        if life == 2 {
            world.drain("c");
        }
        world.sim.crash(HOME);
        world.run_for(Duration::from_secs(40));
        world.sim.bounce(HOME);
        world.until("all have joined again", Duration::from_secs(60), |world| {
            world.diaries().values().all(|diary| diary.joined == life + 1)
        });
        let now = epoch(&mut world);
        assert!(now > before, "{now} is not after {before}");
        before = now;
    }
    world.until_home("the drains are known", Duration::from_secs(60), |views| {
        views["a"].status == PeerStatus::Active
            && ["b", "c"].iter().all(|name| views[*name].status == PeerStatus::Draining)
    });
    for name in ["b", "c"] {
        world.until("the node drains", Duration::from_secs(60), |world| world.diary(name).draining);
        let node_id = cluster_core::types::ids::NodeId::parse(name).unwrap();
        let view = world.ask(async move |home: Running| home.controller.drain_view(node_id).await.unwrap());
        assert_eq!(view.state, DrainState::Drained);
        let diary = world.diary(name);
        let first = &diary.obeyed[0];
        assert_eq!((diary.turns, &first.1), (1, &Command::Drain));
        assert!(diary.obeyed.iter().all(|command| command == first), "{diary:?}");
    }
    for (name, diary) in world.diaries() {
        assert_eq!((diary.enrolled, diary.attested), (1, 3), "{name}: {diary:?}");
    }
}

#[test]
fn a_node_that_crashes_comes_back_by_its_key_and_drains_on() {
    let mut world = World::of(&["a", "b"], COARSE);
    world.drain("a");
    world.until("the node drains", Duration::from_secs(60), |world| world.diary("a").draining);
    world.sim.crash("a");
    world.until_home("its link is down", Duration::from_secs(20), |views| !views["a"].link_up);
    world.until_home("a is unhealthy", Duration::from_secs(120), |views| {
        assert_eq!(views["b"].status, PeerStatus::Active);
        views["a"].status == PeerStatus::Unhealthy
    });
    world.sim.bounce("a");
    world.until_home("a drains on", Duration::from_secs(30), |views| {
        views["a"].status == PeerStatus::Draining && views["a"].link_up
    });
    let diary = world.diary("a");
    assert_eq!((diary.enrolled, diary.attested, diary.turns), (1, 1, 1), "{diary:?}");
}

/// Stores an execution that is assigned to this node.
async fn store_assigned(home: &Running, name: &str) -> ExecutionId {
    let request = ExecutionRequest { image: Some("busybox:1".into()), ..Default::default() };
    let new = NewExecution::new(Submission::check(request).unwrap(), String::new(), String::new(), 0);
    let (execution_id, node_id) = (new.record.execution_id.clone(), NodeId::parse(name).unwrap());
    let create = ExecutionWrite::Create(Box::new(new));
    let assign = ExecutionWrite::Assign { execution_id: execution_id.clone(), node_id, attempt: 1 };
    for write in [create, assign] {
        assert_eq!(home.store.write(Write::Execution(write)).await.unwrap(), 1);
    }
    execution_id
}

fn restart(world: &mut World, life: usize) {
    world.sim.crash(HOME);
    world.run_for(Duration::from_secs(5));
    world.sim.bounce(HOME);
    world.until("all have joined again", Duration::from_secs(60), |world| {
        world.diaries().values().all(|diary| diary.joined == life)
    });
}

#[test]
fn removal_over_a_restart_waits_for_its_work() {
    let mut world = World::of(&["a", "b"], COARSE);
    let execution_id = world.ask(async |home: Running| store_assigned(&home, "a").await);
    restart(&mut world, 2);
    let node_id = NodeId::parse("a").unwrap();
    let removed = node_id.clone();
    let view = world.ask(async move |home: Running| {
        home.controller.remove(removed, Duration::from_secs(3_600), false).await.unwrap()
    });
    assert_eq!(view.state, DrainState::Draining);
    restart(&mut world, 3);
    world.throughout("the node stays while its work goes on", Duration::from_secs(30), |views| {
        views["a"].status == PeerStatus::Draining
    });
    let asked = node_id.clone();
    let view = world.ask(async move |home: Running| home.controller.drain_view(asked).await.unwrap());
    assert_eq!((view.state, view.blockers), (DrainState::Draining, vec![execution_id.clone()]));
    world.ask(async move |home: Running| home.controller.release(execution_id).await.unwrap());
    world.until_home("the removal is done", Duration::from_secs(10), |views| {
        views["a"].status == PeerStatus::Removed
    });
}

#[test]
fn wall_clock_jumps_cancel_nothing_and_lose_no_node() {
    let mut world = World::of(&["a", "b"], COARSE);
    let execution_id = world.ask(async |home: Running| store_assigned(&home, "a").await);
    restart(&mut world, 2);
    world.drain("a");
    for hours in [2, -5, 24 * 365, -24 * 365] {
        jump(hours * 3_600_000);
        world.throughout("no node is lost", Duration::from_secs(40), |views| {
            views["a"].status == PeerStatus::Draining && views["b"].status == PeerStatus::Active
        });
        let overdue = world.ask(async |home: Running| home.controller.overdue().borrow().clone());
        assert!(overdue.is_empty(), "{hours} h: {overdue:?}");
    }
    let node_id = NodeId::parse("a").unwrap();
    let view = world.ask(async move |home: Running| home.controller.drain_view(node_id).await.unwrap());
    assert_eq!(view.blockers, vec![execution_id]);
    let left = view.deadline_in_seconds.expect("the deadline is ahead");
    assert!((3_000..3_600).contains(&left), "{left} s are left of an hour");
    let jumps = world.events("home").into_iter().filter(|kind| *kind == NodeEventKind::ClockJumped);
    assert_eq!(jumps.count(), 4);
}
