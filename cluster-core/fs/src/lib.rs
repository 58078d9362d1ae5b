//! Files of a node: its data directory, private files that survive a crash, and secrets that lie outside the store.

mod data_directory;
mod files;
mod secret_reference;

pub use self::{
    data_directory::{DataDirectory, LOCK_FILE},
    files::{
        PRIVATE_DIRECTORY, PRIVATE_FILE, private_directory, write_error, write_new, write_synced,
        write_synced_elsewhere,
    },
    secret_reference::{SecretPlace, SecretReference, resolve_secret},
};
