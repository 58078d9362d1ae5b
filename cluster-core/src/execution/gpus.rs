//! Which of a node's GPUs an execution gets. Pure.
//!
//! Docker counts its own devices from 0 each time it is asked for a number of them, so that two executions
//! would share the first: the worker names the devices itself.

use crate::error::{Error, ErrorCode, Result};

/// The GPUs of an execution that its worker has not been told to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub gpus: Vec<u32>,
    pub has_ended: bool,
}

/// Indices as the driver counts them, from 0, lowest first. What has ended and is not forgotten gives its
/// GPUs back when there are no others: its controller has handed them out again before it says so here.
pub(super) fn choose(wanted: u32, on_node: u32, held: &[Held]) -> Result<Vec<u32>> {
    let holds =
        |gpu: &u32, has_ended| held.iter().any(|held| held.has_ended == has_ended && held.gpus.contains(gpu));
    let free = (0..on_node).filter(|gpu| !holds(gpu, false));
    let (given_back, never_held): (Vec<u32>, Vec<u32>) = free.partition(|gpu| holds(gpu, true));
    let count = never_held.len() + given_back.len();
    if usize::try_from(wanted).unwrap_or(usize::MAX) > count {
        let message = format!("needs {wanted} of this node's {on_node} GPUs, and {count} are free");
        return Err(Error::new(ErrorCode::ResourceExhausted, message)
            .remedy("wait until an execution that has one has ended, or set spec.node.resources.gpu_count"));
    }
    let mut chosen: Vec<u32> = never_held.into_iter().chain(given_back).take(wanted as usize).collect();
    chosen.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn held(gpus: &[u32], has_ended: bool) -> Held {
        Held { gpus: gpus.to_vec(), has_ended }
    }

    #[test]
    fn the_lowest_that_nobody_has_and_then_what_has_ended() {
        assert_eq!(choose(2, 4, &[]).unwrap(), [0, 1]);
        assert_eq!(choose(2, 4, &[held(&[0], false), held(&[2], false)]).unwrap(), [1, 3]);
        assert_eq!(choose(1, 2, &[held(&[0], true)]).unwrap(), [1]);
        assert_eq!(choose(2, 2, &[held(&[0], true)]).unwrap(), [0, 1]);
        assert_eq!(choose(0, 0, &[]).unwrap(), [0_u32; 0]);
        // Its node was given fewer since: what it has no more is nobody's to take.
        assert!(choose(1, 1, &[held(&[0, 3], false)]).is_err());
    }

    #[test]
    fn what_there_is_not_is_refused_with_the_count() {
        let error = choose(2, 2, &[held(&[1], false)]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert_eq!(error.message(), "needs 2 of this node's 2 GPUs, and 1 are free");
    }

    proptest! {
        /// Begun, ended and forgotten in any order, no two that run ever have the same one.
        #[test]
        fn no_two_that_run_share_one(on_node in 0u32..6, steps in vec((0u32..4, any::<bool>(), any::<prop::sample::Index>()), 1..60)) {
            let mut all: Vec<Held> = Vec::new();
            for (wanted, forget, index) in steps {
                if wanted == 0 {
                    if let Some(one) = (!all.is_empty()).then(|| index.index(all.len())) {
                        if forget { all.remove(one); } else { all[one].has_ended = true; }
                    }
                    continue;
                }
                let running = || all.iter().filter(|held| !held.has_ended).flat_map(|held| &held.gpus);
                let in_use = running().count() as u32;
                match choose(wanted, on_node, &all) {
                    Ok(gpus) => {
                        prop_assert_eq!(gpus.len() as u32, wanted);
                        prop_assert!(gpus.windows(2).all(|two| two[0] < two[1]) && gpus.iter().all(|gpu| *gpu < on_node));
                        prop_assert!(!running().any(|gpu| gpus.contains(gpu)));
                        all.push(Held { gpus, has_ended: false });
                    }
                    Err(_) => prop_assert!(wanted > on_node - in_use, "refused with room"),
                }
            }
        }
    }
}
