//! The server's side of `aegis mcp`: a handshake, then JSON-RPC lines, one task a connection.

use std::sync::Arc;

use cluster_core::types::caller::Door;
use rmcp::{service::serve_server_with_ct, transport::async_rw::AsyncRwTransport};
use tokio::{net::UnixStream, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{end_of_input::EndOfInput, handshake, unix::Socket};
use crate::{caller::Caller, rest::body::BODY_BYTES_MAX, server::AegisServer};

/// Assistants of one user on one machine.
const CONNECTIONS_MAX: usize = 64;

/// Serves assistants until `stop`; returns when all connections have ended.
pub async fn serve(socket: Socket, server: AegisServer, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(permit) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(connections = CONNECTIONS_MAX, "too many assistants; one was turned away");
            continue;
        };
        let (server, stop) = (server.for_connection(), stop.clone());
        tasks.spawn(async move {
            converse(stream, server, stop).await;
            drop(permit);
        });
    }
    // Before the connections end: whoever loses one sees by the socket's absence that this was meant.
    drop(socket);
    tasks.close();
    tasks.wait().await;
}

async fn converse(mut stream: UnixStream, server: AegisServer, stop: CancellationToken) {
    let (mut read, mut write) = stream.split();
    let narrowing = match handshake::answer(&mut read, &mut write).await {
        Ok(hello) => {
            if let Some(socket) = hello.ssh_agent.filter(|socket| socket.is_absolute()) {
                server.core().offer_ssh_agent(socket);
            }
            hello.narrowing
        }
        Err(error) => {
            tracing::warn!(error = %error.chain(), "an assistant's connection was refused");
            return;
        }
    };
    let server = server.entered_by(Caller::local(Door::McpSocket).narrowed(narrowing));
    let (read, write) = stream.into_split();
    let read = EndOfInput::new(read, server.end_of_input());
    let transport = AsyncRwTransport::new_server(read, write).with_max_line_length(BODY_BYTES_MAX);
    match serve_server_with_ct(server, transport, stop.child_token()).await {
        Ok(running) => {
            if let Err(error) = running.waiting().await {
                tracing::error!(%error, "an assistant's connection ended badly");
            }
        }
        // Also what a client gives that leaves before its first request.
        Err(error) => tracing::debug!(%error, "an assistant left before it began"),
    }
}
