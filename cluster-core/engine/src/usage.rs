//! Space that containers and volumes take on the engine's disk.
//!
//! The client library reads the answer of the newest engines alone, so that the request is made here, in a version of
//! the API whose answer all engines share. In HTTP/1.0 an answer ends with its connection.

use std::{collections::HashMap, time::Duration};

use aegis_types::error::{Error, ErrorCode, Result};
use bollard::ClientVersion;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::Engine;

/// The engine walks all files of volumes and writable layers.
const USAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Thousands of containers and volumes.
const ANSWER_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Newer versions answer in another form.
const VERSION_MAX: ClientVersion = ClientVersion { major_version: 1, minor_version: 44 };

/// Bytes by name.
#[derive(Debug, Default)]
pub struct DiskUsage {
    /// Writable layers of containers.
    pub containers: HashMap<String, u64>,
    pub volumes: HashMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    names: Option<Vec<String>>,
    size_rw: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volume {
    name: String,
    usage_data: Option<UsageData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UsageData {
    size: i64,
}

impl Engine {
    /// Measures writable layers and volumes. The engine takes seconds where they hold many files.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.agree().await?;
        let version = self.docker.client_version();
        let is_newer = (version.major_version, version.minor_version)
            > (VERSION_MAX.major_version, VERSION_MAX.minor_version);
        let version = if is_newer { VERSION_MAX } else { version };
        let path = format!("/v{version}/system/df?type=container&type=volume");
        let failed = |why: &str| {
            Error::new(ErrorCode::Engine, format!("the container engine did not tell its disk usage: {why}"))
                .remedy("see the engine's own log on the node")
        };
        let asking = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(USAGE_TIMEOUT, asking).await;
        let answer = answer.map_err(|_| failed("it took too long"))?;
        let answer = answer.map_err(|e| failed("its socket cannot be used").source(e))?;
        parse(&answer).ok_or_else(|| failed("its answer cannot be read"))
    }
}

fn parse(answer: &[u8]) -> Option<DiskUsage> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    if head.split_whitespace().nth(1) != Some("200") {
        return None;
    }
    let answer: Answer = serde_json::from_slice(&answer[end + 4..]).ok()?;
    let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    let containers = answer.containers.unwrap_or_default().into_iter().filter_map(|container| {
        let name = container.names?.into_iter().next()?;
        Some((name.trim_start_matches('/').to_owned(), bytes(container.size_rw.unwrap_or(0))))
    });
    let volumes = answer.volumes.unwrap_or_default().into_iter();
    Some(DiskUsage {
        containers: containers.collect(),
        volumes: volumes.filter_map(|volume| Some((volume.name, bytes(volume.usage_data?.size)))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_by_name() {
        let body = r#"{"LayersSize":1,"Images":[],"Containers":[{"Names":["/a"],"SizeRw":7},{"Names":["/b"]}],
            "Volumes":[{"Name":"v","UsageData":{"RefCount":1,"Size":9}},{"Name":"n","UsageData":null}]}"#;
        let usage = parse(format!("HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{body}").as_bytes()).unwrap();
        assert_eq!((usage.containers["a"], usage.containers["b"], usage.volumes["v"]), (7, 0, 9));
        assert!(!usage.volumes.contains_key("n"));
        let none = parse(b"HTTP/1.0 200 OK\r\n\r\n{\"Containers\":null,\"Volumes\":null}").unwrap();
        assert!(none.containers.is_empty() && none.volumes.is_empty());
        for bad in [&b"HTTP/1.0 500 E\r\n\r\n{}"[..], b"HTTP/1.0 200 OK\r\n\r\n{", b""] {
            assert!(parse(bad).is_none());
        }
    }
}
