//! Running one agent: what is asked for, how it lives, where it runs, what it says.
//!
//! - [`request`], [`manifest`], [`lifecycle`], [`view`]: what is asked for, what is run, its states, what is
//!   shown; pure.
//! - [`dispatch`], [`live`], `queue`, `drive`, `reconcile`, `retention`: the controller's side, from submission to the
//!   stored end, and to its being forgotten.
//! - [`order`]: what goes between them.
//! - [`supervisor`], `policy`, `gpus`, `run`, [`log`]: the worker's side, from the journaled order to the last
//!   event.
//! - `images`, `disk`: what the worker does for room on its engine's disk.
//! - [`content`], `place`, [`artifacts`]: what travels with an execution, on its worker; [`sending`]: the
//!   controller's side of it.

pub mod artifacts;
mod blocked;
mod callers;
pub mod content;
mod disk;
pub mod dispatch;
mod drive;
mod event_budget;
mod exclusion;
mod gpus;
pub mod hooks;
mod images;
mod journal;
mod journaled;
pub mod live;
pub mod log;
mod order_cache;
mod patience;
mod place;
mod position;
mod projection;
mod queue;
mod reconcile;
pub(crate) mod retention;
mod run;
pub mod sending;
pub mod supervisor;
mod watch;

#[cfg(test)]
mod tests;
