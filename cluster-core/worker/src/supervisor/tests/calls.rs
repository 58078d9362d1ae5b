//! Calls of the engine that an execution takes.

use aegis_engine::SOCKET_DEFAULT;
use std::path::Path;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{UnixListener, UnixStream},
};

use super::*;

type Calls = Arc<Mutex<Vec<String>>>;

/// Listens in front of the engine, and notes method and last part of the path of each call. The client opens a
/// connection for each.
fn listen(path: &Path) -> Calls {
    let listener = UnixListener::bind(path).unwrap();
    let calls = Calls::default();
    let noted = calls.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let noted = noted.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = client.read(&mut head).await?;
                let line =
                    String::from_utf8_lossy(&head[..read]).lines().next().unwrap_or_default().to_owned();
                let mut words = line.split(' ');
                let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let action =
                    path.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
                noted.lock().unwrap().push(format!("{method} {action}"));
                let mut engine = UnixStream::connect(SOCKET_DEFAULT).await?;
                engine.write_all(&head[..read]).await?;
                copy_bidirectional(&mut client, &mut engine).await
            });
        }
    });
    calls
}

#[tokio::test]
#[ignore = "needs Docker and busybox:testbed; run by tests/run"]
async fn execution_takes_few_calls_of_the_engine() {
    let setting = Setting::new();
    let socket = setting.directory.path().join("engine.sock");
    let calls = listen(&socket);
    let engine = Engine::new(Some(&socket)).unwrap();
    engine.info().await.unwrap();
    let supervisor = Supervisor::recover(
        &setting.data,
        setting.node_id.clone(),
        engine,
        Policy::default(),
        "n".into(),
        vec![],
    )
    .unwrap();
    // The first one asks what the engine can do, too.
    events(&supervisor, &order("true", "", |_| {}), 0).await;
    let taken = async |input: &str| {
        let order = order("true", input, |_| {});
        calls.lock().unwrap().clear();
        events(&supervisor, &order, 0).await;
        supervisor.release(&[order.attempt()]).await.unwrap();
        calls.lock().unwrap().clone()
    };
    let calls = taken("").await;
    assert_eq!(calls[..4], ["GET json", "POST create", "POST start", "GET logs"], "{calls:?}");
    assert_eq!(calls.len(), 7, "its state, the rest of its output and its removal: {calls:?}");
    let calls = taken("input").await;
    assert_eq!(calls[..4], ["GET json", "POST create", "POST attach", "POST start"], "{calls:?}");
    assert_eq!(calls.len(), 8, "{calls:?}");
}
