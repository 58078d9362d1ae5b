//! Simulated Ollama for hosts that cannot pull it. It has the parts of the HTTP API and of the command that a
//! deployment uses, as documented (`/api/tags`, `/api/pull`, `ollama serve|list|pull`). All other requests are errors.
//! The tests compile it as a static program and put it into an image with Ollama's name.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::exit,
    thread,
    time::Duration,
};

const DIR: &str = "/root/.ollama";
/// Models of the registry: name with tag, and bytes.
const REGISTRY: [(&str, u64); 2] = [("tiny:latest", 4_000_000), ("big:1b", 2_000_000_000)];
const UNKNOWN: &str = "pull model manifest: file does not exist";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve"] => serve(),
        ["list"] => {
            println!("NAME    ID    SIZE    MODIFIED");
            let (status, body) = request("GET /api/tags", "");
            assert_eq!(status, 200);
            for name in body.split("\"name\":\"").skip(1) {
                println!("{}    0123456789ab    4 MB    1 second ago", name.split('"').next().unwrap());
            }
        }
        ["pull", model] => {
            let (_, body) = request("POST /api/pull", &format!("{{\"model\":\"{model}\"}}"));
            if let Some((_, error)) = body.split_once("\"error\":\"") {
                eprintln!("Error: {}", error.split('"').next().unwrap());
                exit(1);
            }
            println!("success");
        }
        other => {
            eprintln!("Error: unknown command {other:?}");
            exit(1);
        }
    }
}

/// Sends a request to the command's own server.
fn request(what: &str, body: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect("127.0.0.1:11434") else {
        eprintln!("Error: could not connect to ollama app, is it running?");
        exit(1);
    };
    write!(stream, "{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn serve() {
    fs::create_dir_all(DIR).unwrap();
    for stream in TcpListener::bind("0.0.0.0:11434").unwrap().incoming() {
        let stream = stream.unwrap();
        // Who goes away ends the work for him, and nothing else.
        thread::spawn(move || answer(stream));
    }
}

fn answer(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let [method, path, version] = line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
    let (mut length, mut header) = (0, String::from("x"));
    while !header.trim().is_empty() {
        header.clear();
        reader.read_line(&mut header).ok()?;
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut out = Out { stream, chunked: version == "HTTP/1.1" };
    match (method, path) {
        ("GET", "/api/tags") => {
            let mut models = Vec::new();
            for (name, size) in REGISTRY.iter().filter(|(name, _)| fs::metadata(file(name)).is_ok()) {
                models.push(format!("{{\"name\":\"{name}\",\"model\":\"{name}\",\"size\":{size}}}"));
            }
            out.head(200, "application/json")?;
            out.put(&format!("{{\"models\":[{}]}}", models.join(",")))?;
        }
        ("POST", "/api/pull") => pull(&mut out, std::str::from_utf8(&body).ok()?)?,
        (_, "/api/tags" | "/api/pull") => {
            out.head(405, "text/plain")?;
            out.put("405 method not allowed")?;
        }
        _ => {
            out.head(404, "text/plain")?;
            out.put("404 page not found")?;
        }
    }
    out.end()
}

fn pull(out: &mut Out, body: &str) -> Option<()> {
    let model = body.split_once("\"model\":\"").and_then(|(_, rest)| rest.split_once('"'));
    let Some((model, _)) = model.filter(|_| body.starts_with('{') && body.ends_with('}')) else {
        out.head(400, "application/json")?;
        return out.put("{\"error\":\"invalid model name\"}");
    };
    let model = if model.contains(':') { model.to_owned() } else { format!("{model}:latest") };
    out.head(200, "application/x-ndjson")?;
    out.put("{\"status\":\"pulling manifest\"}\n")?;
    let Some((name, total)) = REGISTRY.iter().find(|(name, _)| *name == model) else {
        return out.put(&format!("{{\"error\":\"{UNKNOWN}\"}}\n"));
    };
    let digest = "sha256:dde5aa3fc5ffc17176b5e8bdc82f587b24b2678c6c66101bf7da77af9f7ccdff";
    out.put(&format!("{{\"status\":\"pulling dde5aa3fc5ff\",\"digest\":\"{digest}\",\"total\":{total}}}\n"))?;
    for tenth in 1..=10 {
        // As a download takes its time.
        thread::sleep(Duration::from_millis(100));
        let completed = total / 10 * tenth;
        out.put(&format!(
            "{{\"status\":\"pulling dde5aa3fc5ff\",\"digest\":\"{digest}\",\"total\":{total},\"completed\":{completed}}}\n"
        ))?;
    }
    out.put("{\"status\":\"verifying sha256 digest\"}\n{\"status\":\"writing manifest\"}\n")?;
    fs::write(file(name), "").ok()?;
    out.put("{\"status\":\"success\"}\n")
}

fn file(name: &str) -> String {
    format!("{DIR}/{}", name.replace(':', "="))
}

/// Response in the version of its request: in chunks, or up to the end of the connection.
struct Out {
    stream: TcpStream,
    chunked: bool,
}

impl Out {
    fn head(&mut self, status: u16, kind: &str) -> Option<()> {
        let framing = if self.chunked { "Transfer-Encoding: chunked" } else { "Connection: close" };
        write!(self.stream, "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n").ok()
    }

    fn put(&mut self, text: &str) -> Option<()> {
        match self.chunked {
            true => write!(self.stream, "{:x}\r\n{text}\r\n", text.len()).ok(),
            false => write!(self.stream, "{text}").ok(),
        }
    }

    fn end(&mut self) -> Option<()> {
        if self.chunked { write!(self.stream, "0\r\n\r\n").ok() } else { Some(()) }
    }
}
