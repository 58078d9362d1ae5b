//! Policy of a node's operator for executions, checked before anything is started. Pure functions.

use aegis_types::execution::manifest::{Manifest, NetworkMode};

use crate::schema::Policy;
pub use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::limits::{
        IMAGE_DISK_PERCENT_DEFAULT, OUTPUT_MB_DEFAULT, PROCESSES_DEFAULT, TIMEOUT_SECONDS_MAX_DEFAULT,
        TMP_MB_DEFAULT, WORKSPACE_MB_DEFAULT,
    },
};

/// Rejects a manifest that the policy does not allow, and names the key that would allow it.
pub fn check(manifest: &Manifest, policy: &Policy) -> Result<()> {
    let refused = |rule: &str, why: String| {
        Err(Error::new(ErrorCode::Forbidden, format!("this node's policy refuses it: {why}"))
            .remedy(format!("the operator sets spec.runtime.policy.{rule} on the node")))
    };
    if let Some(allowed) = &policy.allowed_images {
        let fits = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => manifest.image.starts_with(prefix),
            None => manifest.image == *pattern,
        };
        if !allowed.iter().any(fits) {
            return refused("allowed_images", format!("image {} is not on its list", manifest.image));
        }
    } else if has_numeric_registry(&manifest.image) {
        let why = format!("the registry of {} is an address and not a name", manifest.image);
        return refused("allowed_images", why);
    }
    if policy.require_digests.unwrap_or(false) && !manifest.image.contains("@sha256:") {
        return refused("require_digests", format!("image {} has no digest", manifest.image));
    }
    if manifest.network == NetworkMode::Allow && !policy.allow_network.unwrap_or(true) {
        return refused("allow_network", "network mode allow is not permitted".into());
    }
    let timeout_max = policy.max_timeout_seconds.unwrap_or(TIMEOUT_SECONDS_MAX_DEFAULT);
    if manifest.timeout_seconds > timeout_max {
        let why = format!("timeout {} s is above {timeout_max} s", manifest.timeout_seconds);
        return refused("max_timeout_seconds", why);
    }
    if policy.max_cpu.is_some_and(|max| f64::from(manifest.resources.cpu_millicores) > max * 1000.0) {
        return refused(
            "max_cpu",
            format!("{} cpu millicores are too many", manifest.resources.cpu_millicores),
        );
    }
    if policy.max_memory_mb.is_some_and(|max| manifest.resources.memory_mb > max) {
        return refused("max_memory_mb", format!("{} MiB memory are too much", manifest.resources.memory_mb));
    }
    let relaxed = &manifest.relaxed;
    if relaxed.writable_root && !policy.allow_root_filesystem_writes.unwrap_or(false) {
        return refused(
            "allow_root_filesystem_writes",
            "a writable root file system is not permitted".into(),
        );
    }
    let allowed = policy.allowed_capabilities.as_deref().unwrap_or_default();
    if let Some(more) = relaxed.capabilities.iter().find(|name| !allowed.contains(name)) {
        return refused("allowed_capabilities", format!("the capability {more} is not permitted"));
    }
    let processes_max = policy.max_processes.unwrap_or(PROCESSES_DEFAULT);
    if relaxed.processes.is_some_and(|processes| processes > processes_max) {
        return refused("max_processes", format!("more than {processes_max} processes are not permitted"));
    }
    // Both count as the container's memory, so they are bounded by its limit.
    for (what, size_mb) in [("tmp_mb", relaxed.tmp_mb), ("shm_mb", relaxed.shm_mb)] {
        if size_mb.is_some_and(|size_mb| size_mb > manifest.resources.memory_mb.max(TMP_MB_DEFAULT)) {
            let message = format!("security.{what} is more than resources.memory_mb, which it counts as");
            return Err(Error::invalid(message).remedy("ask for more memory"));
        }
    }
    Ok(())
}

/// Returns whether the registry is an IP address in any spelling that a resolver accepts, that is, its last label is a
/// number. The registry's response appears in the error, so such an image could probe any address that the node
/// reaches.
fn has_numeric_registry(image: &str) -> bool {
    let Some((registry, _)) = image.split_once('/') else { return false };
    if !registry.contains(['.', ':']) {
        return false;
    }
    let host = registry.split(':').next().unwrap_or_default().trim_end_matches('.');
    let label = host.rsplit('.').next().unwrap_or_default();
    let is_hex = label.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    is_hex || label.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the keys by which a pushed policy would allow more than the node's own file. Keys in the file override the
/// push in any case; for all other keys the file's defaults are the bound.
pub fn widened(own: &Policy, pushed: &Policy) -> Vec<&'static str> {
    let wider = |own: Option<u64>, pushed: Option<u64>, default: u64| {
        own.is_none() && pushed.is_some_and(|pushed| pushed > default)
    };
    let many = |value: Option<u32>| value.map(u64::from);
    let capabilities = pushed.allowed_capabilities.as_ref().is_some_and(|names| !names.is_empty());
    let networks = pushed.allowed_networks.as_ref().is_some_and(|networks| !networks.is_empty());
    let writes = pushed.allow_root_filesystem_writes == Some(true);
    [
        ("allowed_capabilities", own.allowed_capabilities.is_none() && capabilities),
        ("allowed_networks", own.allowed_networks.is_none() && networks),
        ("allow_root_filesystem_writes", own.allow_root_filesystem_writes.is_none() && writes),
        (
            "max_timeout_seconds",
            wider(own.max_timeout_seconds, pushed.max_timeout_seconds, TIMEOUT_SECONDS_MAX_DEFAULT),
        ),
        (
            "max_processes",
            wider(many(own.max_processes), many(pushed.max_processes), PROCESSES_DEFAULT.into()),
        ),
        (
            "max_output_mb",
            wider(many(own.max_output_mb), many(pushed.max_output_mb), OUTPUT_MB_DEFAULT.into()),
        ),
        (
            "max_workspace_mb",
            wider(many(own.max_workspace_mb), many(pushed.max_workspace_mb), WORKSPACE_MB_DEFAULT.into()),
        ),
        (
            "max_image_disk_percent",
            wider(
                many(own.max_image_disk_percent),
                many(pushed.max_image_disk_percent),
                IMAGE_DISK_PERCENT_DEFAULT.into(),
            ),
        ),
    ]
    .into_iter()
    .filter_map(|(key, is_wider)| is_wider.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::execution::{
        manifest::Relaxations,
        request::{ExecutionRequest, Submission},
    };

    fn manifest(change: impl FnOnce(&mut ExecutionRequest)) -> Manifest {
        let mut request = ExecutionRequest { image: Some("busybox:1.36".into()), ..Default::default() };
        change(&mut request);
        Submission::check(request).unwrap().manifest
    }

    fn relaxed(security: Relaxations) -> Manifest {
        manifest(|request| request.security = security)
    }

    #[test]
    fn registry_by_address_is_refused_unless_listed() {
        for image in ["169.254.169.254/x", "10.0.0.1:8080/x", "2130706433:80/x", "0x7f.1/x", "127.0.0.1./x:1"]
        {
            let asked = |policy: &Policy| {
                let mut manifest = manifest(|_| ());
                manifest.image = image.to_owned();
                check(&manifest, policy)
            };
            assert_eq!(asked(&Policy::default()).unwrap_err().code(), ErrorCode::Forbidden, "{image}");
            asked(&Policy { allowed_images: Some(vec![image.into()]), ..Default::default() }).unwrap();
        }
        for image in ["busybox:1.36", "1234/x", "r.example:5000/x", "localhost:5000/x", "a1.b2/x"] {
            assert!(!has_numeric_registry(image), "{image}");
        }
    }

    /// Settings that are denied by default are accepted with the key that the error names.
    #[test]
    fn each_relaxation_needs_the_manifest_and_the_policy() {
        let capability = relaxed(Relaxations { capabilities: vec!["NET_RAW".into()], ..Default::default() });
        let root = relaxed(Relaxations { writable_root: true, ..Default::default() });
        let many = relaxed(Relaxations { processes: Some(4096), ..Default::default() });
        let image = manifest(|_| ());
        let network = manifest(|request| request.network = Some(NetworkMode::Allow));
        let allowing = Policy {
            allowed_capabilities: Some(vec!["NET_RAW".into()]),
            allow_root_filesystem_writes: Some(true),
            max_processes: Some(4096),
            ..Default::default()
        };
        let strict = Policy {
            allowed_images: Some(vec!["registry.example/*".into()]),
            allow_network: Some(false),
            ..Default::default()
        };
        for (manifest, refusing, key) in [
            (&capability, &Policy::default(), "allowed_capabilities"),
            (&root, &Policy::default(), "allow_root_filesystem_writes"),
            (&many, &Policy::default(), "max_processes"),
            (&image, &strict, "allowed_images"),
            (&network, &Policy { allowed_images: None, ..strict.clone() }, "allow_network"),
        ] {
            let error = check(manifest, refusing).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Forbidden);
            assert!(
                error.chain().to_string().contains(key) || format!("{error:?}").contains(key),
                "{error:?}"
            );
            check(manifest, &allowing).unwrap();
        }
        for large in [
            Relaxations { tmp_mb: Some(1024), ..Default::default() },
            Relaxations { shm_mb: Some(1024), ..Default::default() },
        ] {
            assert!(check(&relaxed(large), &allowing).is_err());
        }
    }
}
