//! A host's key without logging in: what `aegis host approve` shows to a person and then pins.

use super::{
    connection::{ConnectOptions, handshake, lock},
    handler::KeyCheck,
    host_keys::HostKey,
    target::HostAddress,
};
use crate::error::{Error, ErrorCode, Result};

/// Connects, reads the key the host proves to own, and hangs up. The rules in `options` are not
/// asked, but the key type by which the host is known already is preferred.
pub async fn host_key(host: &HostAddress, port: u16, options: &ConnectOptions) -> Result<HostKey> {
    let preferred = options.rules.preferred(host, port);
    let opened = handshake(host, port, KeyCheck::LookOnly, preferred, options).await?;
    let key = lock(&opened.seen)?.key.take();
    let key = key.ok_or_else(|| {
        Error::new(ErrorCode::HostUnreachable, format!("{host} port {port} showed no host key"))
    })?;
    HostKey::of(&key)
}
