//! Points between two steps with an effect, at which a test can stop a process.
//!
//! Without the feature `fail-points`, which only tests enable, a point does nothing.

/// Point named by the step before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailPoint {
    // On the worker.
    Journaled,
    TakingTold,
    Created,
    Started,
    StartTold,
    Exited,
    IterationTold,
    StopNoted,
    Stopped,
    // On the controller.
    Assigned,
    Forwarded,
    EventsStored,
    EndStored,
}

#[cfg(not(feature = "fail-points"))]
pub async fn reached(_: FailPoint) {}

#[cfg(feature = "fail-points")]
pub use armed::{arm, arm_here, reached};

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        cell::RefCell,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use tokio::sync::Notify;

    use super::FailPoint;

    impl FailPoint {
        pub const WORKER: [Self; 7] = [
            Self::Journaled,
            Self::TakingTold,
            Self::Created,
            Self::Started,
            Self::StartTold,
            Self::Exited,
            Self::IterationTold,
        ];
        pub const STOPPING: [Self; 2] = [Self::StopNoted, Self::Stopped];
        pub const CONTROLLER: [Self; 4] =
            [Self::Assigned, Self::Forwarded, Self::EventsStored, Self::EndStored];
    }

    /// Stops the nth task that reaches its place.
    #[derive(Debug, Clone)]
    pub struct Armed {
        point: FailPoint,
        left: Arc<AtomicU32>,
        reached: Arc<Notify>,
    }

    impl Armed {
        pub async fn wait(&self) {
            self.reached.notified().await;
        }
    }

    thread_local! {
        static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
    }

    pub fn arm(point: FailPoint, nth: u32) -> Armed {
        Armed { point, left: Arc::new(AtomicU32::new(nth)), reached: Arc::default() }
    }

    /// On this thread, which runs the whole of the process that is to stop.
    pub fn arm_here(armed: &Armed) {
        ARMED.with(|here| here.replace(Some(armed.clone())));
    }

    pub async fn reached(point: FailPoint) {
        let armed = ARMED.with(|here| here.borrow().clone());
        let Some(armed) = armed.filter(|armed| armed.point == point) else { return };
        if armed.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            armed.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}
