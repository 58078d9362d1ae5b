//! Processes that end without a word.

use std::time::Duration;

use cluster_core::cluster::{
    membership::Command,
    peer::{DrainState, PeerStatus},
};

use crate::{
    home::{HOME, Running},
    world::{COARSE, World},
};

fn epoch(world: &mut World) -> u64 {
    world.ask(async |home: Running| home.controller.epoch())
}

#[test]
fn after_the_controllers_crash_nodes_attest_by_key_alone_and_a_drain_holds() {
    let names = ["a", "b", "c"];
    let mut world = World::of(&names, COARSE);
    world.drain("b");
    let before = epoch(&mut world);
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
        assert_eq!(epoch(&mut world), before + life as u64);
    }
    world.until_home("the drains are known", Duration::from_secs(60), |views| {
        views["a"].status == PeerStatus::Active
            && ["b", "c"].iter().all(|name| views[*name].status == PeerStatus::Draining)
    });
    for name in ["b", "c"] {
        world.until("the node drains", Duration::from_secs(60), |world| world.diary(name).draining);
        let node_id = cluster_core::ids::NodeId::parse(name).unwrap();
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
