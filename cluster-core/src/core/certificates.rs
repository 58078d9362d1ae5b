//! Which certificates a controller and a worker start with, by what the settings say.

use std::{path::Path, sync::Arc};

use aegis_config::{Settings, cluster_port::ClusterTls, endpoint::Endpoint, settings::ControllerSettings};
use aegis_deploy::DirectOffer;
use aegis_fs::resolve_secret;
use aegis_identity::{Authority, EnrolmentToken, Fingerprint};
use aegis_rpc::{
    controller_line::LinkTls,
    tls::{Credentials, KeptCertificate, PeerRule, files, kept, own},
};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use tokio_util::sync::CancellationToken;
use url::Host;

/// Certificates with which a controller serves and dials.
#[derive(Debug, Clone)]
pub(super) struct ControllerTls {
    pub credentials: Option<Credentials>,
    /// Only with the built-in CA.
    pub authority: Option<Arc<Authority>>,
}

pub(super) fn of_controller(
    settings: &Settings,
    data: &Path,
    node_id: &NodeId,
    stop: &CancellationToken,
) -> Result<ControllerTls> {
    match &settings.cluster_port.tls {
        ClusterTls::Off => Ok(ControllerTls { credentials: None, authority: None }),
        ClusterTls::Operator(paths) => {
            let credentials = files::watch(paths.clone(), PeerRule::Required, stop.clone())?;
            Ok(ControllerTls { credentials: Some(credentials), authority: None })
        }
        ClusterTls::BuiltIn => {
            let mut names: Vec<String> =
                [node_id.as_str(), "localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
            let advertised = settings.cluster_port.advertise.as_ref().and_then(|url| url.host());
            names.extend(advertised.map(|host| match host {
                Host::Domain(name) => name.to_owned(),
                Host::Ipv4(address) => address.to_string(),
                Host::Ipv6(address) => address.to_string(),
            }));
            names.sort();
            names.dedup();
            let authority = Arc::new(Authority::load_or_create(data, names)?);
            let credentials = own::issue(authority.clone(), node_id.clone(), stop.clone())?;
            Ok(ControllerTls { credentials: Some(credentials), authority: Some(authority) })
        }
    }
}

/// Returns how a deployed node may dial this controller.
pub(super) fn direct_offer(settings: &Settings, tls: &ControllerTls, endpoint: &str) -> DirectOffer {
    let advertised = settings.cluster_port.advertise.as_ref().filter(|url| url.scheme() == "https");
    match (advertised, &tls.authority, endpoint.parse()) {
        (Some(_), Some(authority), Ok(endpoint)) => {
            DirectOffer::BuiltIn { endpoint, ca: authority.fingerprint() }
        }
        (Some(_), None, _) => DirectOffer::OperatorCertificates,
        _ => DirectOffer::Nothing,
    }
}

pub(super) fn of_worker(
    settings: &Settings,
    controller: &ControllerSettings,
    data: &Path,
    node_id: &NodeId,
    stop: &CancellationToken,
) -> Result<LinkTls> {
    let port = &settings.cluster_port;
    if let Endpoint::Http(url) = &controller.endpoint
        && controller.endpoint.is_remote()
        && !port.allow_insecure
    {
        return Err(Error::new(
            ErrorCode::ConfigInvalid,
            format!("spec.cluster.controller.endpoint {url}: only loopback is dialled without TLS"),
        )
        .remedy("write https://; or, where everybody on the network may read along, set spec.network.allow_insecure_bind: true"));
    }
    match &port.tls {
        ClusterTls::Off => Ok(LinkTls::Off),
        ClusterTls::Operator(paths) => {
            files::watch(paths.clone(), PeerRule::Required, stop.clone()).map(LinkTls::Operator)
        }
        ClusterTls::BuiltIn => {
            let path = data.join(kept::FILE);
            KeptCertificate::load(path, node_id.clone(), pinned(controller)).map(LinkTls::BuiltIn)
        }
    }
}

/// The CA that the configuration names, or else the enrolment token. A token that cannot be read any more is no error here: it is
/// for the first contact, and what matters after that is kept.
fn pinned(controller: &ControllerSettings) -> Option<Fingerprint> {
    if controller.ca.is_some() {
        return controller.ca;
    }
    let token = resolve_secret(controller.token.as_deref()?).ok()?;
    EnrolmentToken::parse(&token).ok()?.ca
}
