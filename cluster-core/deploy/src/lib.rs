//! Deployments: a machine that can be reached by SSH becomes a node of the cluster.
//!
//! [`DeploymentRequest`] → validated [`DeploymentSpec`] → facts of the host and its plan → the steps of the pipeline, each
//! recorded before and after. [`Deployments`] is the handle on all of it.
//!
//! - [`model`]: types of a deployment, with their pure functions.
//! - [`request`]: validation of requests. [`settings`]: the operator's settings.
//! - [`stack`], `release`: compose projects, and the files of a release. [`env_file`]: the format of `.env`.
//! - [`host`]: SSH connections to approved hosts, and the scripts that run there.
//! - [`preflight`]: facts of a host, and findings about them. [`plan`]: what a deployment would change.
//! - `pipeline`: the steps, their resumption after a cut, and rollback. `health`: whether a stack is healthy.
//! - [`rollout`]: many hosts in one call; its members are deployments like any other.
//! - `ports`: what a deployment needs from the cluster and the store.
//!
//! Tasks: one for each running deployment, owned by [`Deployments`], bounded by `max_parallel`, and one for each host at a
//! time. The standing connection of a node is handed over to [`Membership::attach_link`].
//!
//! Port and user of a host are recorded. Everything else that `~/.ssh/config` says is read at each connection. A login that
//! needs sudo runs the scripts of [`host`] with sudo, and nothing else.

pub mod env_file;
mod health;
pub mod host;
mod images;
pub mod link;
pub mod model;
mod models;
mod pipeline;
pub mod plan;
mod ports;
pub mod preflight;
mod release;
pub mod request;
pub mod rollout;
mod service;
pub mod settings;
pub mod stack;

pub use self::{
    host::{LogsAsked, access::HostAccess},
    link::link_settings,
    model::{
        direct_offer::DirectOffer,
        drift::{Drift, DriftKind},
        finding::{Finding, Severity},
        operation::{Operation, Removal},
        record::{ApprovedHost, DeploymentFilter},
        release::StoredRelease,
        spec::{DeploymentRequest, DeploymentSpec, Service, Validated},
        state::{DeploymentState, StepName, StepState},
        tunnel::TunnelSource,
        view::{DeploymentView, PlanView, StepView},
    },
    ports::{Journal, Membership},
    rollout::{MemberState, MemberView, RolloutPlan, RolloutRequest, RolloutState, RolloutView, Rollouts},
    service::{Deployments, NodeOrder},
    settings::DeploySettings,
};
pub use crate::model::spec::Deployed;

use aegis_identity::hex_digest;
