//! The wire: generated messages, clients and servers. Nothing else lives here; the translation
//! into domain types is `cluster_core::rpc::convert`.

// Generated: its shapes are the protocol's.
#![allow(clippy::all)]

include!(concat!(env!("OUT_DIR"), "/protos.rs"));

/// The published protocol without our fields, as another implementation would generate it.
#[cfg(feature = "published")]
pub mod published {
    include!(concat!(env!("OUT_DIR"), "/published/published.rs"));
}
