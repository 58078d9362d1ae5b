//! Sources of the token of a Cloudflare tunnel.

use aegis_types::secret::{Secret, SecretName};

/// Token argument of the request.
#[derive(Debug, Clone)]
pub enum Argument {
    Value(Secret),
    Named(SecretName),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TunnelSource {
    /// No token, and therefore no tunnel.
    None,
    Argument,
    /// Name of an operator's secret.
    Secret(SecretName),
    ControllerEnvironment,
    ProjectEnvFile,
}
