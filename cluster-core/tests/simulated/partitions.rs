//! Nodes that cannot be heard, and a controller that cannot.

use std::time::Duration;

use cluster_core::types::{node::PeerStatus, node_event::NodeEventKind::*};

use crate::{
    home::{HOME, STALE_THRESHOLD, SWEEP_INTERVAL},
    node::HEARTBEAT_INTERVAL,
    world::{COARSE, World, all_are},
};

/// Keepalive's interval and its limit, the pause and a join.
const BACK_WITHIN: Duration = HEARTBEAT_INTERVAL;
/// From the cut on: the last heartbeat may have come just before it.
const UNHEALTHY_WITHIN: Duration =
    Duration::from_secs(STALE_THRESHOLD.as_secs() + SWEEP_INTERVAL.as_secs() + 2);

/// Which way nothing goes.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Both,
    ToHome,
    FromHome,
}

fn cut(world: &World, name: &str, cut: Cut) {
    match cut {
        Cut::Both => world.sim.partition(HOME, name),
        Cut::ToHome => world.sim.partition_oneway(name, HOME),
        Cut::FromHome => world.sim.partition_oneway(HOME, name),
    }
}

fn a_partition(way: Cut) {
    let mut world = World::of(&["a", "b", "c"], COARSE);
    world.run_for(Duration::from_secs(10));
    cut(&world, "a", way);
    let cut_at = world.sim.elapsed();
    // New work stays away long before the node is called unhealthy. turmoil lets a connection be opened by
    // what gets there alone, so that the controller's look at a node it cannot hear finds it there.
    if !matches!(way, Cut::ToHome) {
        world.until_home("its link is down", Duration::from_secs(20), |views| !views["a"].link_up);
    }
    let noticed = world.sim.elapsed() - cut_at;
    world.until_home("a is unhealthy", UNHEALTHY_WITHIN + HEARTBEAT_INTERVAL, |views| {
        assert!(
            ["b", "c"].iter().all(|name| views[*name].status == PeerStatus::Active && views[*name].link_up)
        );
        views["a"].status == PeerStatus::Unhealthy
    });
    // Not before its time: it may have been heard an interval before the cut.
    let unhealthy = world.sim.elapsed() - cut_at;
    assert!(unhealthy > STALE_THRESHOLD - HEARTBEAT_INTERVAL, "{way:?}: {unhealthy:?}");
    world.throughout("the others are active", Duration::from_secs(30), |views| {
        views["a"].status == PeerStatus::Unhealthy
            && ["b", "c"].iter().all(|name| views[*name].status == PeerStatus::Active)
    });
    world.sim.repair(HOME, "a");
    let back = world.until_home("a is back", BACK_WITHIN, |views| {
        views["a"].status == PeerStatus::Active && views["a"].link_up
    });
    eprintln!("{way:?}: link down {noticed:?}, unhealthy {unhealthy:?}, back {back:?} after");
    assert_eq!(world.events("a"), [NodeJoined, NodeUnhealthy, NodeRecovered]);
    assert_eq!(world.events("b"), [NodeJoined]);
    let diary = world.diary("a");
    assert_eq!(diary.enrolled, 1, "by its key alone: {diary:?}");
}

#[test]
fn a_node_cut_off_is_unhealthy_in_time_and_comes_back_by_itself() {
    a_partition(Cut::Both);
}

#[test]
fn unheard_node_is_unhealthy_and_recovers() {
    a_partition(Cut::ToHome);
}

#[test]
fn deaf_node_is_unhealthy_and_recovers() {
    a_partition(Cut::FromHome);
}

#[test]
fn ten_seconds_away_are_nothing() {
    let mut world = World::of(&["a", "b"], COARSE);
    // Late: what was said arrives. Lost: the connection is made anew.
    world.sim.hold(HOME, "a");
    world.sim.partition(HOME, "b");
    world.throughout("nobody is unhealthy", Duration::from_secs(10), |views| {
        all_are(views, PeerStatus::Active)
    });
    world.sim.release(HOME, "a");
    world.sim.repair(HOME, "b");
    world.throughout("nobody is unhealthy", UNHEALTHY_WITHIN, |views| all_are(views, PeerStatus::Active));
    for name in ["a", "b"] {
        assert_eq!(world.events(name), [NodeJoined]);
    }
    let (a, b) = (world.diary("a"), world.diary("b"));
    assert_eq!((a.joined, a.failures.len()), (1, 0), "{a:?}");
    assert!(b.enrolled == 1 && b.joined <= 2, "{b:?}");
}

#[test]
fn when_most_fall_silent_at_once_nobody_is_declared_lost() {
    let names = ["a", "b", "c", "d", "e"];
    let mut world = World::of(&names, COARSE);
    let most = ["a", "b", "c"];
    for name in most {
        world.sim.partition(HOME, name);
    }
    // The brake holds for five minutes from the first sweep that doubts.
    world.throughout("nobody is declared lost", Duration::from_secs(300), |views| {
        all_are(views, PeerStatus::Active)
    });
    let views = world.views();
    assert!(most.iter().all(|name| !views[*name].link_up), "none of them gets work: {views:?}");
    for name in most {
        world.sim.repair(HOME, name);
    }
    world.until_home("all are reached again", Duration::from_secs(60), |views| {
        all_are(views, PeerStatus::Active) && views.values().all(|view| view.link_up)
    });
    for name in names {
        assert_eq!(world.events(name), [NodeJoined]);
    }
    // Two of five are believed.
    for name in ["a", "b"] {
        world.sim.partition(HOME, name);
    }
    world.until_home("both are unhealthy", UNHEALTHY_WITHIN + HEARTBEAT_INTERVAL, |views| {
        ["a", "b"].iter().all(|name| views[*name].status == PeerStatus::Unhealthy)
    });
    assert_eq!(world.views()["e"].status, PeerStatus::Active);
}
