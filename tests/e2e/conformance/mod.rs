//! What others say of our MCP: the official conformance suite, the Inspector, and the official clients.

mod clients;
mod fixtures;
mod inspector;
mod suite;
