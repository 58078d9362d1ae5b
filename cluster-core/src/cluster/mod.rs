//! Who is in the cluster and what is placed where.

pub mod peer;
