//! Tests that need no machine but this one.

mod agents;
mod config;
mod config_push;
mod direct;
mod doors;
mod joined_by_hand;
mod membership;
mod protocol;
mod secrets;
mod token_keys;
