//! The cluster protocol over real sockets: a whole controller in this process, and nodes that speak to it
//! by gRPC, as members, as strangers, as attackers, and as another implementation would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bent;
mod black_hole;
mod enrolment;
mod envelope;
mod floods;
mod ids;
mod impostor;
mod membership;
mod orders;
mod published;
mod pushes;
mod runtime;
mod served;
mod stand_in;
mod support;
