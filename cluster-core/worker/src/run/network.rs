//! The network of an execution that may use one: its guard, and who joins it.

use std::{net::SocketAddr, time::Duration};

use aegis_engine::{
    Found, GuardSpec, guard_name, network_guard,
    node_image::{ImageSource, NodeImage},
};
use aegis_types::{
    error::{Error, Result},
    execution::manifest::NetworkMode,
    network,
};
use tokio::net::lookup_host;

use super::{Run, Shared};

/// Limit for resolving the name of a model server. A name that takes longer is not opened.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes what the container's network needs, and returns the network to join.
pub(super) async fn ensure(shared: &Shared, run: &Run) -> Result<String> {
    if run.journaled.order.manifest.network == NetworkMode::None {
        return Ok(shared.network.clone());
    }
    shared.engine.ensure_network(&shared.network).await?;
    let texts = shared.policy.load().allowed_networks.clone().unwrap_or_default();
    let open = network::parse_open(&texts)?;
    if network_guard::is_needless(&open) {
        return Ok(shared.network.clone());
    }
    let mut arguments = vec!["network-guard".to_owned()];
    let mut argument = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    open.iter().for_each(|net| argument("open", net.to_string()));
    for address in services(&shared.env).await {
        argument("service", address.to_string());
    }
    network_guard::own_addresses().iter().for_each(|address| argument("own", address.to_string()));
    let image = image(shared).await?;
    let attempt = run.journaled.order.attempt();
    let of = shared.volume(&attempt);
    shared.engine.ensure_guard(&GuardSpec { of, image: &image, network: &shared.network, arguments }).await?;
    Ok(format!("container:{}", guard_name(&shared.node_id, &attempt)))
}

/// Whether a created container can be started: its guard, if it has one, still runs.
pub(super) async fn is_there(shared: &Shared, run: &Run) -> Result<bool> {
    if run.journaled.order.manifest.network == NetworkMode::None {
        return Ok(true);
    }
    let guard = guard_name(&shared.node_id, &run.journaled.order.attempt());
    Ok(matches!(shared.engine.find(&guard).await?, Found::Running))
}

/// Removes the guard of an execution whose containers have ended.
pub(super) async fn release(shared: &Shared, run: &Run) {
    if run.journaled.order.manifest.network == NetworkMode::None {
        return;
    }
    let guard = guard_name(&shared.node_id, &run.journaled.order.attempt());
    if let Err(error) = shared.engine.remove(&guard).await {
        // The release of the execution removes it.
        tracing::debug!(%guard, error = %error.chain(), "the guard of a network stays for now");
    }
}

/// Returns the image of this program, in the engine.
async fn image(shared: &Shared) -> Result<String> {
    let build = || async {
        tokio::task::spawn_blocking(|| NodeImage::build(&ImageSource::Own))
            .await
            .map_err(|error| Error::internal("the node's image was not built").source(error))?
    };
    let known = shared.guard_image.get_or_try_init(|| async {
        let image = build().await?;
        load(shared, &image).await?;
        Ok::<_, Error>(image.reference)
    });
    let reference = known.await?.clone();
    // It may have been removed since.
    if !shared.engine.has_image(&reference).await? {
        load(shared, &build().await?).await?;
    }
    shared.images.used(&reference).await;
    Ok(reference)
}

/// Loads an image unless the engine has it. What was loaded here is removed when images take too much of the disk.
async fn load(shared: &Shared, image: &NodeImage) -> Result<()> {
    if shared.engine.has_image(&image.reference).await? {
        return Ok(());
    }
    shared.engine.load_image(image.reader()).await?;
    shared.images.brought(&image.reference).await
}

/// Returns the addresses of the model servers that the node names to its containers.
async fn services(env: &[(String, String)]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for (_, url) in env {
        let Ok(url) = url.parse::<http::Uri>() else { continue };
        let Some(host) = url.host() else { continue };
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match tokio::time::timeout(LOOKUP_TIMEOUT, lookup_host((host, port))).await {
            Ok(Ok(addresses)) => found.extend(addresses.filter(|address| !address.ip().is_loopback())),
            Ok(Err(_)) | Err(_) => tracing::debug!(host, "a model server has no address"),
        }
    }
    found
}
