//! A host's key without logging in: what `aegis host approve` shows to a person and then pins.

use aegis_types::error::{Error, ErrorCode, Result};

use super::{
    connection::{Connection, handshake, lock},
    handler::KeyCheck,
    host_keys::HostKey,
    target::Endpoint,
};
use crate::dial::ConnectOptions;

/// Connects, reads the key the host proves to own, and hangs up. The rules in `options` are not
/// asked, but the key type by which the host is known already is preferred. `through` is a connection
/// to the host before it, when it is not reached directly.
pub async fn host_key(
    host: &Endpoint,
    through: Option<&Connection>,
    options: &ConnectOptions,
) -> Result<HostKey> {
    let preferred = options.rules.preferred(host);
    let opened = handshake(host, through, KeyCheck::LookOnly, preferred, options).await?;
    let key = lock(&opened.seen)?.key.take();
    let key =
        key.ok_or_else(|| Error::new(ErrorCode::HostUnreachable, format!("{host} showed no host key")))?;
    HostKey::of(&key)
}
