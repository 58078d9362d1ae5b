//! Who is in the cluster and what is placed where.

pub mod membership;
pub mod peer;
pub mod placement;
