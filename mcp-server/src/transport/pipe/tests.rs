//! Tests the loop with real sockets. The daemon is simulated here, and real in `tests/e2e`.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf},
    net::UnixListener,
    task::{JoinHandle, LocalSet},
};

use super::*;

/// An assistant at one end of a pipe whose daemon listens in its own directory.
struct Bench {
    input: WriteHalf<DuplexStream>,
    output: tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>,
    stop: CancellationToken,
    pipe: JoinHandle<()>,
    listener: UnixListener,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("mcp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let stop = CancellationToken::new();
        // Like `aegis mcp` itself, the pipe stays on its thread.
        let pipe = tokio::task::spawn_local({
            let stop = stop.clone();
            async move {
                let (input, output) = tokio::io::split(theirs);
                let dial = async |_| connect(&socket, &ToolFilter::default()).await.map_err(Unreached::of);
                run(input, output, dial, stop).await;
            }
        });
        let (output, input) = tokio::io::split(ours);
        let output = BufReader::new(output).lines();
        Self { input, output, stop, pipe, listener, _directory: directory }
    }

    async fn send(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(20), self.output.next_line());
        serde_json::from_str(&line.await.expect("a line in time").unwrap().unwrap()).unwrap()
    }

    /// Accepts the next connection, after a greeting with this protocol.
    async fn accept(&self, protocol: u32) -> BufReader<UnixStream> {
        let dialled = tokio::time::timeout(Duration::from_secs(20), self.listener.accept());
        let (mut stream, _) = dialled.await.expect("a connection in time").unwrap();
        let hello = format!("{}\n", json!({ "aegis": "99.0.0", "protocol": protocol }));
        stream.write_all(hello.as_bytes()).await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut theirs = String::new();
        stream.read_line(&mut theirs).await.unwrap();
        assert!(theirs.contains("protocol"), "{theirs}");
        stream
    }
}

const PING: &str = "{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}\n";

#[tokio::test]
async fn newer_daemon_fails_every_request_and_pipe_stays() {
    let test = async {
        let mut bench = Bench::start();
        // The first request is there before the pipe looks; the others come after the previous rejection.
        for _ in 0..2 {
            bench.send(PING).await;
            bench.accept(handshake::PROTOCOL + 1).await;
            let told = bench.read().await;
            let words = told["error"]["message"].as_str().unwrap();
            assert!(
                words.contains("99.0.0") && words.contains("restart the assistant's connection"),
                "{told}"
            );
            assert_eq!(told["id"], "p");
        }
        // The older daemon is back.
        bench.send(PING).await;
        let mut daemon = bench.accept(handshake::PROTOCOL).await;
        let mut asked = String::new();
        daemon.read_line(&mut asked).await.unwrap();
        assert_eq!(asked, PING);
        daemon.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"p\",\"result\":{}}\n").await.unwrap();
        assert_eq!(bench.read().await["result"], json!({}));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn lines_pass_unchanged_and_last_line_arrives() {
    let test = async {
        let mut bench = Bench::start();
        let mut daemon = bench.accept(handshake::PROTOCOL).await;
        let odd = "{ \"method\":\"ping\", \"id\" : -7,\"jsonrpc\":\"2.0\",\"params\":{\"x\":1.50,\"y\":\"\\u00e9\"} }\r\n";
        bench.send(odd).await;
        let mut asked = String::new();
        daemon.read_line(&mut asked).await.unwrap();
        assert_eq!(asked, odd);
        let answer = "{\"id\":-7,  \"jsonrpc\":\"2.0\",\"result\":{\"y\":2.50}}";
        daemon.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        assert_eq!(bench.output.next_line().await.unwrap().unwrap(), answer);
        bench.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\nnonsense\n").await;
        assert_eq!(bench.read().await["error"]["code"], -32700);
        bench.stop.cancel();
        bench.pipe.await.unwrap();
    };
    LocalSet::new().run_until(test).await;
}

/// Both directions are full at once, without a deadlock.
#[tokio::test]
async fn an_assistant_that_writes_much_before_it_reads_is_served() {
    let test = async {
        let mut bench = Bench::start();
        let mut daemon = bench.accept(handshake::PROTOCOL).await;
        let echo = tokio::spawn(async move {
            let mut asked = String::new();
            while daemon.read_line(&mut asked).await.unwrap() > 0 {
                let message: Value = serde_json::from_str(&asked).unwrap();
                let padding = "y".repeat(20_000);
                let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": {"padding": padding}});
                if daemon.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                    return;
                }
                asked.clear();
            }
        });
        const COUNT: usize = 100;
        let padding = "x".repeat(20_000);
        for id in 0..COUNT {
            let asked = json!({"jsonrpc": "2.0", "id": id, "method": "ping", "params": {"padding": padding}});
            bench.send(&format!("{asked}\n")).await;
        }
        for id in 0..COUNT {
            assert_eq!(bench.read().await["id"], id);
        }
        bench.stop.cancel();
        bench.pipe.await.unwrap();
        echo.abort();
    };
    LocalSet::new().run_until(test).await;
}
