//! An execution: its request, its order, its states and events, and its record.

pub mod after;
pub mod artifacts;
pub mod content;
pub mod dependencies;
pub mod filter;
pub mod image_reference;
pub mod lifecycle;
pub mod limits;
pub mod manifest;
pub mod order;
pub mod record;
pub mod request;
pub mod retry;
pub mod usage;
pub mod view;
