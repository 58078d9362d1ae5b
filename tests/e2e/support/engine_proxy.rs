//! An engine's socket behind which the real engine refuses to create containers.

use std::path::{Path, PathBuf};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{UnixListener, UnixStream},
};

const ENGINE: &str = "/var/run/docker.sock";

/// Listens in `directory` until the test ends, and returns the socket. The client of a worker opens a connection for
/// each call.
pub fn broken_engine(directory: &Path) -> PathBuf {
    let path = directory.join("broken-engine.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(pass(stream));
        }
    });
    path
}

async fn pass(mut client: UnixStream) -> std::io::Result<()> {
    let mut head = vec![0; 4096];
    let read = client.read(&mut head).await?;
    head.truncate(read);
    if String::from_utf8_lossy(&head).lines().next().is_some_and(|line| line.contains("/containers/create")) {
        let body = r#"{"message":"hook failed"}"#;
        let answer = format!(
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        return client.write_all(answer.as_bytes()).await;
    }
    let mut engine = UnixStream::connect(ENGINE).await?;
    engine.write_all(&head).await?;
    copy_bidirectional(&mut client, &mut engine).await.map(drop)
}
