//! Slow, jittery and lossy networks.

use std::{collections::BTreeMap, time::Duration};

use cluster_core::types::{heartbeat::Command, node::PeerStatus, node_event::NodeEventKind::*};

use crate::{
    home::HOME,
    world::{COARSE, Network, World, all_are},
};

const MINUTE: Duration = Duration::from_secs(60);
/// 200 ms, give or take 100.
const FAR: Network = Network { latency_ms: (100, 300), tick_ms: 50 };

#[test]
fn latency_and_jitter_keep_nodes_healthy_and_calls_unique() {
    let names = ["a", "b", "c"];
    let mut world = World::of(&names, FAR);
    world.throughout("all stay active", MINUTE, |views| all_are(views, PeerStatus::Active));
    world.drain("b");
    world.run_for(MINUTE);
    assert!(world.acknowledged("b"));
    world.resume("b");
    world.throughout("nobody is unhealthy", 2 * MINUTE, |views| {
        views.values().all(|view| view.status != PeerStatus::Unhealthy && view.link_up)
    });
    assert_eq!(world.events("a"), [NodeJoined]);
    assert_eq!(world.events("b"), [NodeJoined, NodeDraining, NodeResumed]);
    let commands: Vec<_> = world.diary("b").obeyed.into_iter().map(|(_, command)| command).collect();
    assert_eq!((commands, world.diary("b").turns), (vec![Command::Drain, Command::Resume], 2));
    for (name, diary) in world.diaries() {
        assert_eq!((diary.enrolled, diary.joined), (1, 1), "{name}: {diary:?}");
        assert!(diary.failures.is_empty(), "{name}: {diary:?}");
    }
    // A call that is under way is sent, and not taken yet.
    world.until("no call is under way", MINUTE, |world| {
        world.diaries().values().all(|diary| diary.beats_sent == diary.beats_answered)
    });
    let sent = world.diaries().values().map(|diary| diary.beats_sent).sum::<u64>();
    assert!(sent >= 24, "{sent}");
    assert_eq!(world.calls("Heartbeat"), BTreeMap::from([("ok".to_owned(), sent)]));
}

#[test]
fn lossy_network_keeps_members_and_applies_commands_once() {
    let names = ["a", "b", "c"];
    let mut world = World::of(&names, COARSE);
    for name in names {
        world.sim.set_link_fail_rate(HOME, name, 0.02);
    }
    world.run_for(MINUTE);
    world.drain("a");
    world.run_for(4 * MINUTE);
    let troubled = world.diaries().values().map(|diary| diary.failures.len()).sum::<usize>();
    assert!(troubled > 0, "seed {}: nothing was lost", world.seed);
    for name in names {
        world.sim.set_link_fail_rate(HOME, name, 0.0);
        world.sim.repair(HOME, name);
    }
    world.until_home("all are back", 2 * MINUTE, |views| {
        views["a"].status == PeerStatus::Draining
            && ["b", "c"].iter().all(|name| views[*name].status == PeerStatus::Active)
    });
    let diary = world.diary("a");
    assert_eq!((diary.turns, diary.draining), (1, true), "{diary:?}");
    let first = &diary.obeyed[0];
    assert!(diary.obeyed.iter().all(|command| command == first), "told again, it is the same: {diary:?}");
    assert!(world.acknowledged("a"));
    assert!(world.diaries().values().all(|diary| diary.enrolled == 1), "{:?}", world.diaries());
    let sent = world.diaries().values().map(|diary| diary.beats_sent).sum::<u64>();
    let taken = world.calls("Heartbeat");
    assert!(taken["ok"] <= sent && !taken.contains_key("NonceReplay"), "{sent} sent, {taken:?}");
}
