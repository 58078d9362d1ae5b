//! Handler of a host's requests on a connection. It checks the host key, accepts channels of requested forwards, and
//! rejects everything else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use aegis_types::error::Error;
use russh::{
    Channel, ChannelOpenFailure,
    client::{ChannelOpenHandle, DisconnectReason, Handler, Msg, Session},
    keys::{PublicKey, PublicKeyOrCertificate},
};
use tokio::sync::{mpsc, watch};

use super::{
    host_keys::{Accepted, HostKeyRules},
    target::Endpoint,
};
use crate::{
    SshStream,
    endpoint::{ForwardEndpoint, LOOPBACK},
};

/// Listening ends on the host, with the receivers of their connections.
pub(super) type Forwards = Arc<Mutex<HashMap<ForwardEndpoint, mpsc::Sender<SshStream>>>>;

/// Check of the host key: by the rules, or only recorded (for `aegis host approve`).
#[derive(Debug, Clone)]
pub(super) enum KeyCheck {
    Rules(Arc<HostKeyRules>),
    LookOnly,
}

/// Result of the key exchange, read by the opener of the connection.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub key: Option<PublicKey>,
    pub accepted: Option<Accepted>,
    pub refusal: Option<Error>,
}

pub(super) struct ClientHandler {
    pub host: Endpoint,
    pub check: KeyCheck,
    pub seen: Arc<Mutex<Seen>>,
    pub forwards: Forwards,
    /// Dropped with the session's task, so that its end is always noticed.
    pub closed: watch::Sender<Option<String>>,
}

impl ClientHandler {
    /// Never blocks: this runs on the session's own loop.
    async fn forwarded(
        &self,
        end: ForwardEndpoint,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
    ) -> Result<(), russh::Error> {
        let taker = self.forwards.lock().ok().and_then(|forwards| forwards.get(&end).cloned());
        match taker.as_ref().map(mpsc::Sender::try_reserve) {
            Some(Ok(slot)) => {
                reply.accept().await;
                slot.send(channel.into_stream());
            }
            Some(Err(_)) => reply.reject(ChannelOpenFailure::ResourceShortage).await,
            None => reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await,
        }
        Ok(())
    }
}

impl Handler for ClientHandler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let key = offered.public_key();
        let Ok(mut seen) = self.seen.lock() else { return Ok(false) };
        let decision = match &self.check {
            KeyCheck::LookOnly => None,
            KeyCheck::Rules(rules) => Some(match offered.certificate() {
                Some(certificate) => rules.decide_certificate(&self.host, certificate),
                None => rules.decide(&self.host, &key),
            }),
        };
        seen.key = Some(key);
        match decision {
            None => Ok(false),
            Some(Ok(accepted)) => {
                seen.accepted = Some(accepted);
                Ok(true)
            }
            Some(Err(refusal)) => {
                seen.refusal = Some(refusal);
                Ok(false)
            }
        }
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.forwarded(ForwardEndpoint::Socket(socket_path.to_owned()), channel, reply).await
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        match u16::try_from(connected_port) {
            Ok(port) if connected_address == LOOPBACK => {
                self.forwarded(ForwardEndpoint::Port(port), channel, reply).await
            }
            _ => refuse(reply).await,
        }
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Self::Error>) -> Result<(), Self::Error> {
        let text = match &reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                format!("the host ended it: {}", aegis_types::text::shown(&info.message))
            }
            DisconnectReason::Error(error) => error.to_string(),
        };
        self.closed.send_replace(Some(text));
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }
}

async fn refuse(reply: ChannelOpenHandle) -> Result<(), russh::Error> {
    reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}
