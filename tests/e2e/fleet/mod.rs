//! Tests that share one controller with two nodes, and leave both active and idle.

mod bad_input;
mod cli;
mod drain;
mod killed;
mod output;
mod slow_link;
mod workspaces;
