//! Name and ports of the compose project on a host.

pub const PROJECT: &str = "aitheros-edge";

/// Loopback port at which the embedded cloudflared reports its readiness.
pub const CLOUDFLARED_METRICS_PORT: u16 = 20241;

pub const NODE_PORT_DEFAULT: u16 = 8090;

pub const OLLAMA_PORT: u16 = 11434;
