//! Sources of the Cloudflare tunnel token. The plan shows the source, never the value.
//!
//! The source is chosen when the request is validated, and recorded. The value of a named secret is opened only after
//! the host's approval is verified. A token that was found rather than given also needs that approval: see
//! [`crate::HostAccess::require_approval`].

use std::path::Path;

use aegis_types::{
    error::{Error, Result},
    secret::Secret,
};

use crate::{
    TunnelSource, env_file,
    model::{spec::DeploymentSpec, tunnel::Argument},
    ports::Journal,
    settings::DeploySettings,
};

const NAME: &str = "CLOUDFLARE_TUNNEL_TOKEN";
const TOKEN_LENGTH_MAX: usize = 8192;
const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Resolves the token from the argument, else from the controller's environment, else from `.env` under `project_root`.
/// A named secret has no value yet.
pub fn resolve(
    argument: Option<Argument>,
    settings: &DeploySettings,
) -> Result<(TunnelSource, Option<Secret>)> {
    match argument {
        Some(Argument::Value(token)) if !token.is_empty() => Ok((TunnelSource::Argument, Some(token))),
        Some(Argument::Named(name)) => Ok((TunnelSource::Secret(name), None)),
        Some(Argument::Value(_)) | None => found(settings),
    }
}

/// Finds a token that the request did not give. It is sent only to hosts that a person or the configuration named.
fn found(settings: &DeploySettings) -> Result<(TunnelSource, Option<Secret>)> {
    if let Some(token) = &settings.environment_tunnel_token {
        return Ok((TunnelSource::ControllerEnvironment, Some(token.clone())));
    }
    let Some(root) = &settings.project_root else { return Ok((TunnelSource::None, None)) };
    Ok(match read(&root.join(".env"))? {
        Some(token) => (TunnelSource::ProjectEnvFile, Some(token)),
        None => (TunnelSource::None, None),
    })
}

/// Returns the value of a recorded source. A given value that is no longer in memory exists on the host only.
pub async fn open(
    spec: &DeploymentSpec,
    given: Option<Secret>,
    settings: &DeploySettings,
    journal: &dyn Journal,
) -> Result<Option<Secret>> {
    match (&spec.tunnel, given) {
        (_, Some(token)) => Ok(Some(token)),
        (TunnelSource::None | TunnelSource::Argument, None) => Ok(None),
        (TunnelSource::ControllerEnvironment | TunnelSource::ProjectEnvFile, None) => Ok(found(settings)?.1),
        (TunnelSource::Secret(name), None) => {
            let token = journal.use_secret(name, &format!("tunnel token of {}", spec.node)).await?;
            check(token.reveal()).map_err(|why| Error::invalid(format!("the secret {name} {why}")))?;
            Ok(Some(token))
        }
    }
}

/// Checks that a token is one line.
pub(super) fn check(token: &str) -> Result<(), &'static str> {
    match token.len() > TOKEN_LENGTH_MAX || token.chars().any(char::is_control) {
        true => Err("is too long for a tunnel token, or holds control characters"),
        false => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Secret>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.is_file() && metadata.len() <= ENV_FILE_BYTES_MAX => {}
        _ => {
            return Err(Error::invalid(format!(
                "{} is not a readable file of sensible size",
                path.display()
            )));
        }
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("{} cannot be read", path.display())).source(error))?;
    Ok(env_file::find(&text, NAME).filter(|value| !value.is_empty()).map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_types::secret::SecretName;

    #[test]
    fn the_first_source_wins() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".env"), "X=1\nCLOUDFLARE_TUNNEL_TOKEN=from-file\n").unwrap();
        let mut settings =
            DeploySettings { project_root: Some(root.path().to_owned()), ..Default::default() };
        let value = |text: &str| Some(Argument::Value(Secret::new(text)));
        let source = |argument, settings: &DeploySettings| {
            let (source, token) = resolve(argument, settings).unwrap();
            (source, token.map(|token| token.reveal().to_owned()))
        };
        assert_eq!(source(None, &settings), (TunnelSource::ProjectEnvFile, Some("from-file".into())));
        settings.environment_tunnel_token = Some(Secret::new("from-environment"));
        assert_eq!(source(None, &settings).0, TunnelSource::ControllerEnvironment);
        assert_eq!(
            source(value("from-argument"), &settings),
            (TunnelSource::Argument, Some("from-argument".into()))
        );
        let name = SecretName::parse("tunnel").unwrap();
        let named = Some(Argument::Named(name.clone()));
        assert_eq!(source(named, &settings), (TunnelSource::Secret(name), None));
        assert_eq!(source(value(""), &settings).0, TunnelSource::ControllerEnvironment);
        assert_eq!(source(None, &DeploySettings::default()), (TunnelSource::None, None));
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let read = |text: &str| serde_json::from_str::<TunnelSource>(text).unwrap();
        assert_eq!(read("\"argument\""), TunnelSource::Argument);
        assert_eq!(read("\"project_env_file\""), TunnelSource::ProjectEnvFile);
        let named = TunnelSource::Secret(SecretName::parse("tunnel").unwrap());
        let text = serde_json::to_string(&named).unwrap();
        assert_eq!((text.as_str(), read(&text)), ("{\"secret\":\"tunnel\"}", named));
    }
}
