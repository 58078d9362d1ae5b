//! Running one agent: what is asked for, how it lives, where it runs, what it says.

pub mod encoding;
pub mod lifecycle;
pub mod log;
pub mod manifest;
mod run;
pub mod supervisor;
pub mod view;
