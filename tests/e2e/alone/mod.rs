//! Tests that need no machine but this one.

mod access;
mod agents;
mod config;
mod config_push;
mod confirmation;
mod crowd;
mod direct;
mod doctor;
mod doors;
mod gpus;
mod hostile;
mod https;
mod image;
mod joined_by_hand;
mod large_output;
mod listening;
mod membership;
mod network;
mod packaging;
mod pipe;
mod placement;
mod protocol;
mod resources;
mod secrets;
mod token_keys;
