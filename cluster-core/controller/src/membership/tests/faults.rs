//! Nodes that fail executions, and executions that wait for long.

use super::*;

fn node_failed(membership: &mut Membership, name: &str, now_ms: i64) {
    membership.node_failed(&id(name), "create answered 500", now_ms);
}

#[test]
fn broken_node_cools_off_with_growing_pauses() {
    let mut membership = cluster(&["a"]);
    let mut now_ms = 0;
    for pause_ms in [5_000, 30_000, 300_000, 300_000] {
        membership.fit(&demand()).unwrap();
        node_failed(&mut membership, "a", now_ms);
        // Executions that fail at the same time count as one failure.
        node_failed(&mut membership, "a", now_ms + 1);
        let no_fit = membership.fit(&demand()).unwrap_err();
        assert!(no_fit.may_change() && no_fit.to_string().contains("cools off"), "{no_fit}");
        assert!(!membership.forget_refusals(now_ms + pause_ms - 1));
        assert!(membership.forget_refusals(now_ms + pause_ms));
        now_ms += pause_ms;
    }
    let problem = membership.view(&id("a"), 0).unwrap().problem.unwrap();
    assert_eq!(problem.code, ErrorCode::Engine);
    assert!(problem.message.contains("4 in a row") && problem.message.contains("500"), "{problem:?}");
    membership.node_ran(&id("a"));
    assert_eq!(membership.view(&id("a"), 0).unwrap().problem, None);
    node_failed(&mut membership, "a", now_ms);
    assert!(
        membership.forget_refusals(now_ms + 5_000),
        "a node that ran something begins with the short pause"
    );
}

#[test]
fn node_that_failed_is_used_where_no_other_takes_it() {
    let mut membership = cluster(&["a", "b"]);
    let execution = ExecutionId::mint();
    let mut excluded = Excluded::default();
    excluded.failed.insert(id("a"));
    let fit = |membership: &Membership, excluded: &Excluded| {
        membership.fit_except(Some(&execution), &demand(), excluded)
    };
    for _ in 0..2 {
        let other = ExecutionId::mint();
        assert_eq!(membership.place_except(&other, &demand(), &excluded).unwrap(), id("b"));
    }
    let no_fit = fit(&membership, &excluded).unwrap_err();
    assert!(no_fit.to_string().contains("b: needs"), "a node that works is waited for: {no_fit}");
    membership.set_link(&id("b"), false);
    assert_eq!(fit(&membership, &excluded).unwrap(), id("a"), "no other takes it");
    excluded.refused.insert(id("b"), "its policy refuses it".into());
    excluded.refused.insert(id("a"), "it has no such image".into());
    let no_fit = fit(&membership, &excluded).unwrap_err();
    assert_eq!(no_fit.to_string(), "a: it has no such image; b: its policy refuses it");
    assert!(!no_fit.may_change());
}

/// A broken node with work for many, as the drivers see it.
#[test]
fn broken_node_takes_little_of_the_work() {
    let mut membership = cluster(&["broken", "healthy"]);
    membership.set_strategy(PlacementStrategy::LeastLoaded);
    let (mut failures, mut done, mut running) = (0, 0, Vec::new());
    let mut waiting: Vec<(ExecutionId, Excluded)> =
        (0..40).map(|_| (ExecutionId::mint(), Excluded::default())).collect();
    for second in 0_i64..200 {
        membership.forget_refusals(second * 1000);
        // A healthy run takes a second.
        for execution_id in std::mem::take(&mut running) {
            membership.release(&execution_id);
            done += 1;
        }
        let mut later = Vec::new();
        for (execution_id, mut excluded) in waiting {
            match membership.place_except(&execution_id, &demand(), &excluded) {
                Ok(node_id) if node_id == id("healthy") => running.push(execution_id),
                Ok(node_id) => {
                    failures += 1;
                    membership.release(&execution_id);
                    node_failed(&mut membership, "broken", second * 1000);
                    assert!(excluded.failed.insert(node_id), "it came back to the broken node");
                    later.push((execution_id, excluded));
                }
                Err(_) => later.push((execution_id, excluded)),
            }
        }
        waiting = later;
    }
    assert_eq!((done, waiting.len()), (40, 0));
    assert!(failures <= 2, "{failures} executions failed on the broken node");
}

#[test]
fn oldest_large_execution_gets_a_node_kept_free() {
    let mut membership = cluster(&["a"]);
    let large =
        PlacementRequest { amounts: Amounts { cpu_millicores: 2_000, ..Default::default() }, ..demand() };
    let (oldest, none) = (ExecutionId::mint(), Excluded::default());
    let mut running: std::collections::VecDeque<_> = (0..2).map(|_| ExecutionId::mint()).collect();
    for execution_id in &running {
        membership.place(execution_id, &demand()).unwrap();
    }
    // Without a hold, small executions always pass the large one.
    for _ in 0..20 {
        membership.release(&running.pop_front().unwrap());
        assert!(membership.place(&oldest, &large).is_err());
        let small = ExecutionId::mint();
        membership.place(&small, &demand()).unwrap();
        running.push_back(small);
    }
    assert!(membership.hold_for(&oldest, &large, &none));
    while let Some(execution_id) = running.pop_front() {
        membership.release(&execution_id);
        let no_fit = membership.place(&ExecutionId::mint(), &demand()).unwrap_err();
        assert!(no_fit.may_change() && no_fit.to_string().contains("kept free"), "{no_fit}");
    }
    assert_eq!(membership.place(&oldest, &large).unwrap(), id("a"));
    membership.release(&oldest);
    assert_eq!(membership.fit(&demand()).unwrap(), id("a"), "nothing is kept free any more");
    // Nothing is kept free where waiting does not help.
    let huge =
        PlacementRequest { amounts: Amounts { cpu_millicores: 400_000, ..Default::default() }, ..demand() };
    assert!(!membership.hold_for(&oldest, &huge, &none));
}
