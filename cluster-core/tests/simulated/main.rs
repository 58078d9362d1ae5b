//! The cluster protocol over a simulated network: the real controller with its real server on one host, the
//! real client on several others, and between them latency, loss, partitions and crashes.
//!
//! Time is simulated too, so that minutes of silence take moments. What is not deterministic is SQLite, which
//! works on threads of its own and is waited for after each tick: see [`sqlite`]. `AEGIS_SIMULATION_SEED` repeats a run's network.
//!
//! turmoil's TCP does not send again what is lost: one lost segment stalls its connection until keepalive
//! ends it. Loss here is therefore harder on us than that of a real network, and what a kernel makes of it
//! (retransmission, duplicates) is for the tests on hosts to show.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod crashes;
mod home;
mod latency;
mod node;
mod partitions;
mod sqlite;
mod world;
