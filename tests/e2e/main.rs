//! The whole product from outside: the real binary, real MCP clients, real machines.
//!
//! [`alone`] needs no machine, [`fleet`] shares one controller with two deployed nodes, [`fresh`]
//! begins with machines as good as new, [`faults`] has a fleet for each test and takes parts of it away,
//! [`soak`] goes on for minutes. The machines are those of `tests/testbed`; `tests/run` sets what the tests
//! need and runs them one at a time.

// Clippy's exception for tests does not reach what the tests share.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod alone;
mod conformance;
mod faults;
mod fleet;
mod fresh;
mod soak;
mod support;
