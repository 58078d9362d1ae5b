//! External checks of MCP: the official conformance suite, the Inspector, and the official clients.

mod clients;
mod fixtures;
mod inspector;
mod suite;
