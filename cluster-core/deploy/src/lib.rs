//! Deployments: a machine that can be reached by SSH becomes a node of the cluster.
//!
//! [`DeploymentRequest`] → validated [`DeploymentSpec`] → facts of the host and [`plan::Plan`] (pure;
//! both from `examine`) → the steps of `apply`, each recorded before and after. [`Deployments`] is the handle that
//! everything above uses.
//!
//! What is done with a host is an [`operation`]: deploy, roll back, remove. All are recorded, followed and
//! cancelled in one way.
//!
//! Many hosts in one call are a [`rollout`], whose members are deployments like any other.
//!
//! Tasks: one per running deployment, owned by [`Deployments`], bounded by `max_parallel`, one a host;
//! it ends with the deployment. The standing connection of a node is not ours: it is handed over to
//! [`Membership::attach_link`].
//!
//! Port and user are recorded; all else that `~/.ssh/config` says of a host is read at each connection
//! (`hosts`). A login that needs sudo runs the scripts of `remote` by it, and nothing else.

mod agent_sockets;
mod apply;
pub mod checks;
mod deployments;
mod direct;
mod drift;
pub mod env_file;
mod examine;
pub mod findings;
pub mod grammar;
mod health;
pub mod hosts;
mod images;
pub mod link;
pub mod link_key;
mod local_http;
mod local_images;
mod models;
pub mod names;
mod node_config;
pub mod operation;
pub mod plan;
mod ports;
mod release;
pub mod remote;
pub mod rollout;
mod scripts;
pub mod settings;
pub mod spec;
pub mod stack;
mod tunnel;
pub mod view;
pub mod world;

pub use self::{
    deployments::{Deployments, NodeOrder},
    direct::DirectOffer,
    drift::{Drift, DriftKind},
    findings::{Finding, Severity},
    hosts::Hosts,
    link::link_settings,
    operation::{Operation, Removal},
    release::KeptRelease,
    remote::LogsAsked,
    rollout::{MemberState, MemberView, RolloutPlan, RolloutRequest, RolloutState, RolloutView, Rollouts},
    settings::DeploySettings,
    spec::{DeploymentRequest, DeploymentSpec, Service, Validated},
    tunnel::TunnelSource,
    view::{DeploymentState, DeploymentView, PlanView, StepName, StepState, StepView},
    world::{ApprovedHost, Deployed, DeploymentFilter, Journal, Membership},
};

use aegis_identity::hex_digest;
