//! Sessions of one connection: commands, held commands, and SFTP. Servers limit concurrent sessions (`MaxSessions`, 10
//! by default), so sessions wait for a slot.

use std::time::Duration;

use aegis_types::error::{Error, ErrorCode, Result};
use russh::{Channel, client::Msg};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Connection;
use crate::session_slots::SESSIONS_MAX;

/// sshd frees a session's slot shortly after the session ended, without notice.
const RETRY_PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(400)];

impl Connection {
    /// Returns whether the server allows a second session next to a held session. This is tried once, before the first
    /// held session. If only one session is allowed, all sessions of this connection run one after another.
    pub async fn allows_several_sessions(&self) -> Result<bool> {
        self.sessions().several.get_or_try_init(|| self.try_two_sessions()).await.copied()
    }

    async fn try_two_sessions(&self) -> Result<bool> {
        let slots = self.sessions().slots.clone();
        let mut all = slots.acquire_many_owned(SESSIONS_MAX).await.map_err(|_| self.lost())?;
        let first = self.session_channel().await?;
        let second = self.session_channel().await;
        // A dropped channel stays open on the host.
        let _ = first.close().await;
        match second {
            Ok(channel) => {
                let _ = channel.close().await;
                Ok(true)
            }
            Err(error) if error.code() == ErrorCode::Unavailable => {
                drop(all.split(1));
                all.forget();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a session once a slot is free. The permit holds the slot.
    pub(super) async fn open_session(&self) -> Result<(Channel<Msg>, OwnedSemaphorePermit)> {
        let slot = self.sessions().slots.clone().acquire_owned().await.map_err(|_| self.lost())?;
        Ok((self.session_channel().await?, slot))
    }

    async fn session_channel(&self) -> Result<Channel<Msg>> {
        let mut pauses = RETRY_PAUSES.into_iter();
        loop {
            match self.request_session().await {
                Err(error) if error.code() == ErrorCode::Unavailable => match pauses.next() {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(no_session(error)),
                },
                outcome => return outcome,
            }
        }
    }
}

fn no_session(error: Error) -> Error {
    Error::new(error.code(), error.message().to_owned()).remedy(
        "set MaxSessions 1 or more in sshd_config on the host; it may also bound the user's processes",
    )
}
