//! Where the Cloudflare tunnel token comes from. The plan tells the source, never the value.

use std::path::Path;

use super::{Secret, env_file, settings::DeploySettings};
use crate::error::{Error, Result};

const NAME: &str = "CLOUDFLARE_TUNNEL_TOKEN";
const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TunnelSource {
    /// No token: no tunnel.
    None,
    Argument,
    ControllerEnvironment,
    ProjectEnvFile,
}

/// The argument, else the controller's environment, else that line of `.env` under `project_root`.
pub fn resolve(
    argument: Option<&Secret>,
    settings: &DeploySettings,
) -> Result<(TunnelSource, Option<Secret>)> {
    if let Some(token) = argument.filter(|token| !token.is_empty()) {
        return Ok((TunnelSource::Argument, Some(token.clone())));
    }
    found(settings)
}

/// A token nobody gave: it goes only to hosts that a person or the configuration named.
pub fn found(settings: &DeploySettings) -> Result<(TunnelSource, Option<Secret>)> {
    if let Some(token) = &settings.environment_tunnel_token {
        return Ok((TunnelSource::ControllerEnvironment, Some(token.clone())));
    }
    let Some(root) = &settings.project_root else { return Ok((TunnelSource::None, None)) };
    Ok(match read(&root.join(".env"))? {
        Some(token) => (TunnelSource::ProjectEnvFile, Some(token)),
        None => (TunnelSource::None, None),
    })
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

    #[test]
    fn the_first_source_wins() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(".env"), "X=1\nCLOUDFLARE_TUNNEL_TOKEN=from-file\n").unwrap();
        let mut settings =
            DeploySettings { project_root: Some(root.path().to_owned()), ..Default::default() };
        let (argument, empty) = (Secret::new("from-argument"), Secret::new(""));
        let source = |argument, settings: &DeploySettings| {
            let (source, token) = resolve(argument, settings).unwrap();
            (source, token.map(|token| token.reveal().to_owned()))
        };
        assert_eq!(source(None, &settings), (TunnelSource::ProjectEnvFile, Some("from-file".into())));
        settings.environment_tunnel_token = Some(Secret::new("from-environment"));
        assert_eq!(source(None, &settings).0, TunnelSource::ControllerEnvironment);
        assert_eq!(
            source(Some(&argument), &settings),
            (TunnelSource::Argument, Some("from-argument".into()))
        );
        assert_eq!(source(Some(&empty), &settings).0, TunnelSource::ControllerEnvironment);
        assert_eq!(source(None, &DeploySettings::default()), (TunnelSource::None, None));
    }
}
