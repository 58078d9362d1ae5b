//! Tests that begin with machines as good as new.

mod faults;
mod gpu;
mod interrupted;
mod journey;
mod links;
mod operations;
mod python;
mod refused;
mod rollout;
mod secrets;
mod seed_bugs;
