//! The worker of an Aegis node: its membership of the cluster, and the executions that it runs.
//!
//! - [`membership`]: the task that joins the controller, sends heartbeats and applies commands.
//! - [`capacity`]: resources and GPUs of the machine.
//! - [`supervisor`]: owner of the executions of this node. Each execution has a task, in `run`.
//! - `journal`: assignments on disk. [`event_log`]: events on disk, until the controller has stored them.
//! - [`incoming`], `volume`, [`artifacts`]: workspaces and images that arrive, and artifacts that leave.
//! - `images`, `disk`: room on the disk of the container engine. `reaper`: containers without an execution.
//! - [`api`]: the gRPC services of a worker.
//!
//! A controller calls the worker through [`aegis_rpc::node_worker::NodeWorker`], and depends on nothing here.

pub mod api;
pub mod artifacts;
pub mod capacity;
pub mod control;
mod disk;
pub mod event_log;
mod gpus;
mod images;
pub mod incoming;
mod journal;
mod journaled;
pub mod membership;
mod position;
mod reaper;
mod run;
mod space;
mod state;
pub mod supervisor;
mod turns;
mod volume;
