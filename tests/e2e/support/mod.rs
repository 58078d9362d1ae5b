//! Helpers that the tests share: the machines, the controller, the clients, and waiting.

pub mod cli;
pub mod controller;
pub mod engine_proxy;
pub mod files;
pub mod fleet;
pub mod http;
pub mod mcp;
pub mod npm;
pub mod pair;
pub mod poll;
pub mod raw;
pub mod sse;
pub mod testbed;
pub mod transcript;
pub mod work;

pub const IMAGE: &str = "busybox:testbed";
