//! Ports that were not asked for: the default port, or a free one where another program has it.
//!
//! The port that was bound is recorded in the data directory, so that a node that is started again keeps its
//! address. Only loopback ports move: clients of another machine rely on the port that is documented.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aegis_fs::DataDirectory;
use aegis_types::error::{Error, Result};
use tokio::net::TcpListener;

/// A port with a default, and the record of the port that replaced it.
#[derive(Debug)]
pub struct DefaultPort {
    default: u16,
    record: PathBuf,
}

impl DefaultPort {
    /// Port of the listener `name`, recorded in `data`.
    pub fn new(data: &DataDirectory, name: &str, default: u16) -> Self {
        Self { default, record: record(data.path(), name) }
    }

    /// Binds the recorded port, else the default port, else any free port, and records the port that was bound.
    ///
    /// `bind` is called with each candidate until it succeeds or fails for another reason than a taken port. It
    /// returns the listener and its port.
    ///
    /// # Errors
    ///
    /// Returns the error of `bind`, or `Storage` if the port cannot be recorded.
    pub async fn bind<T, F>(&self, mut bind: impl FnMut(u16) -> F) -> Result<T>
    where
        F: Future<Output = Result<(T, u16)>>,
    {
        for candidate in read(&self.record).into_iter().chain([self.default]) {
            match bind(candidate).await {
                Ok((listener, port)) => return self.keep(port).map(|()| listener),
                Err(error) if is_taken(&error) => {
                    tracing::info!(port = candidate, "port is taken by another program; trying another port");
                }
                Err(error) => return Err(error),
            }
        }
        let (listener, port) = bind(0).await?;
        self.keep(port).map(|()| listener)
    }

    fn keep(&self, port: u16) -> Result<()> {
        let kept = match port == self.default {
            true => fs::remove_file(&self.record).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            }),
            false => fs::write(&self.record, format!("{port}\n")),
        };
        kept.map_err(|e| {
            Error::new(
                aegis_types::error::ErrorCode::Storage,
                format!("{} cannot be written", self.record.display()),
            )
            .remedy("check the permissions and free space of the data directory")
            .source(e)
        })
    }
}

fn record(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(format!("{name}.port"))
}

fn read(record: &Path) -> Option<u16> {
    fs::read_to_string(record).ok()?.trim().parse().ok()
}

/// Returns the port that replaced the default of the listener `name`.
pub fn recorded(data_dir: &Path, name: &str) -> Option<u16> {
    read(&record(data_dir, name))
}

/// Whether a listener could not be bound because another socket has its address.
fn is_taken(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::AddrInUse)
}

/// Binds a loopback listener.
///
/// # Errors
///
/// Returns the cause from the operating system as the source of the error.
pub async fn bind_tcp(address: std::net::SocketAddr) -> Result<(TcpListener, u16)> {
    let failed = |e: io::Error| {
        Error::new(aegis_types::error::ErrorCode::Conflict, format!("{address} cannot be listened on: {e}"))
            .remedy(
                "stop the program that uses it, or choose another port with AEGIS_PORT or spec.network.port (0: any \
                 free port)",
            )
            .source(e)
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, port))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    async fn loopback(port: u16) -> Result<(TcpListener, u16)> {
        bind_tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    #[tokio::test]
    async fn taken_default_falls_back_and_the_port_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(dir.path()).unwrap();
        let (other, taken) = loopback(0).await.unwrap();
        let port = DefaultPort::new(&data, "http", taken);
        let first = port.bind(loopback).await.unwrap();
        let bound = first.local_addr().unwrap().port();
        assert_ne!(bound, taken);
        drop((first, other));
        let again = port.bind(loopback).await.unwrap();
        assert_eq!(again.local_addr().unwrap().port(), bound, "the recorded port comes before the default");
    }

    #[tokio::test]
    async fn free_default_is_bound_and_nothing_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(dir.path()).unwrap();
        let (probe, free) = loopback(0).await.unwrap();
        drop(probe);
        let port = DefaultPort::new(&data, "http", free);
        assert_eq!(port.bind(loopback).await.unwrap().local_addr().unwrap().port(), free);
        assert!(!port.record.exists());
    }

    #[tokio::test]
    async fn other_bind_errors_are_returned() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(dir.path()).unwrap();
        let port = DefaultPort::new(&data, "http", 1);
        let failed: Result<()> = port.bind(async |_| Err(Error::internal("no sockets"))).await;
        assert!(failed.is_err());
    }
}
