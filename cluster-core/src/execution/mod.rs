//! Running one agent: what is asked for, how it lives, where it runs, what it says.
//!
//! - [`request`], [`manifest`], [`lifecycle`], [`view`]: what is asked for, what is run, its states, what is
//!   shown; pure.
//! - [`dispatch`], `drive`: the controller's side, from submission to the stored end.
//! - [`supervisor`], `run`, [`log`]: the worker's side, from the journaled order to the last event.
//! - [`encoding`]: events on the wire and in both stores.

pub mod dispatch;
mod drive;
pub mod encoding;
mod image_reference;
pub mod lifecycle;
pub mod log;
pub mod manifest;
pub mod request;
mod run;
pub mod supervisor;
pub mod view;
