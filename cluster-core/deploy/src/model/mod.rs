//! Types of a deployment, with their pure functions. Nothing here does I/O.

pub mod containers;
pub mod direct_offer;
pub mod drift;
pub mod facts;
pub mod finding;
pub mod names;
pub mod operation;
pub mod plan;
pub mod ports;
pub mod project;
pub mod record;
pub mod release;
pub mod spec;
pub mod state;
pub mod tunnel;
pub mod view;
