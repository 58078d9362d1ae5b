//! Tests that begin with machines as good as new.

mod interrupted;
mod journey;
mod links;
mod operations;
mod python;
mod refused;
mod seed_bugs;
