//! Commands whose acknowledgement is lost on the way, one way or the other.

use std::time::Duration;

use cluster_core::types::{heartbeat::Command, node::PeerStatus};

use crate::{
    home::HOME,
    world::{NEAR, World},
};

const MINUTE: Duration = Duration::from_secs(60);

/// Up to the moment in which the node has the command and has not acknowledged it.
fn given() -> World {
    let mut world = World::of(&["a"], NEAR);
    world.drain("a");
    world.until("the command came", MINUTE, |world| world.diary("a").draining);
    assert!(world.diary("a").beats_sent == world.diary("a").beats_answered);
    world
}

fn settled(world: &mut World) {
    world.until_home("a drains", 2 * MINUTE, |views| {
        views["a"].status == PeerStatus::Draining && views["a"].link_up
    });
    world.run_for(MINUTE);
    assert!(world.acknowledged("a"));
    let diary = world.diary("a");
    assert!(diary.draining && diary.joined == 2 && diary.enrolled == 1, "{diary:?}");
}

#[test]
fn lost_answer_to_acknowledgement_applies_command_once() {
    let mut world = given();
    world.sim.partition_oneway(HOME, "a");
    world.until("it acknowledges", MINUTE, |world| {
        let diary = world.diary("a");
        diary.beats_sent > diary.beats_answered
    });
    world.run_for(Duration::from_secs(2));
    assert!(world.acknowledged("a"), "the acknowledgement itself has come");
    world.until("the node gives up", MINUTE, |world| !world.diary("a").failures.is_empty());
    world.sim.repair(HOME, "a");
    settled(&mut world);
    let diary = world.diary("a");
    assert_eq!(diary.obeyed.len(), 1, "it is not given again: {diary:?}");
    assert_eq!((&diary.obeyed[0].1, diary.turns), (&Command::Drain, 1));
}

#[test]
fn lost_acknowledgement_repeats_command_without_effect() {
    let mut world = given();
    world.sim.partition_oneway("a", HOME);
    world.until("the node gives up", MINUTE, |world| !world.diary("a").failures.is_empty());
    assert!(!world.acknowledged("a"));
    world.sim.repair(HOME, "a");
    settled(&mut world);
    let diary = world.diary("a");
    assert_eq!((diary.obeyed.len(), diary.turns), (2, 1), "{diary:?}");
    assert_eq!(diary.obeyed[0], diary.obeyed[1], "the same id");
}
