//! Files on the host. A file is written under a new name with its mode from the first byte on, synced, then renamed
//! over the old file.

use aegis_types::error::{Error, ErrorCode, Result};
use russh::{Channel, client::Msg};
use russh_sftp::{
    client::{Config, RawSftpSession, error::Error as SftpError},
    protocol::{FileAttributes, OpenFlags, Packet, StatusCode},
};
use tokio::sync::OwnedSemaphorePermit;

use super::target::HostAddress;

/// Every server takes packets of 32 KiB.
const WRITE_BYTES: usize = 32 * 1024;
const READ_BYTES: u32 = 32 * 1024;
const REQUEST_TIMEOUT_SECONDS: u64 = 20;

/// SFTP session, which ends when dropped.
pub struct Sftp {
    session: RawSftpSession,
    host: HostAddress,
    _slot: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Sftp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sftp({})", self.host)
    }
}

impl Sftp {
    pub(super) async fn start(
        channel: Channel<Msg>,
        slot: OwnedSemaphorePermit,
        host: &HostAddress,
    ) -> Result<Self> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorCode::HostCheckFailed, format!("{host} offers no SFTP"))
                .remedy("enable it on the host: Subsystem sftp internal-sftp in sshd_config")
                .source(error)
        };
        channel.request_subsystem(true, "sftp").await.map_err(|error| failed(error.into()))?;
        let config = Config { request_timeout_secs: REQUEST_TIMEOUT_SECONDS, ..Config::default() };
        let session = RawSftpSession::new_with_config(channel.into_stream(), config);
        session.init().await.map_err(|error| failed(error.into()))?;
        Ok(Self { session, host: host.clone(), _slot: slot })
    }

    /// Replaces a file atomically: readers see the old content or the new.
    pub async fn write_file(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let fresh = format!("{path}.new-{}", uuid::Uuid::new_v4().simple());
        let outcome = self.write_fresh(&fresh, content, mode).await;
        let outcome = match outcome {
            Ok(()) => self.rename_over(&fresh, path).await,
            failed => failed,
        };
        if let Err(error) = outcome {
            let _ = self.session.remove(fresh).await;
            return Err(self.failed("write", path, error));
        }
        Ok(())
    }

    async fn write_fresh(&self, path: &str, content: &[u8], mode: u32) -> Result<(), SftpError> {
        let flags = OpenFlags::CREATE | OpenFlags::WRITE | OpenFlags::EXCLUDE;
        let attributes = FileAttributes { permissions: Some(mode), ..FileAttributes::empty() };
        let handle = self.session.open(path, flags, attributes).await?.handle;
        let mut offset = 0;
        for chunk in content.chunks(WRITE_BYTES) {
            self.session.write(handle.as_str(), offset, chunk.to_vec()).await?;
            offset += chunk.len() as u64;
        }
        match self.session.fsync(handle.as_str()).await {
            Ok(_) => {}
            Err(SftpError::Status(status)) if status.status_code == StatusCode::OpUnsupported => {}
            Err(error) => return Err(error),
        }
        self.session.close(handle).await?;
        Ok(())
    }

    /// Renames over an existing file, which a plain SFTP rename refuses.
    async fn rename_over(&self, from: &str, to: &str) -> Result<(), SftpError> {
        let mut data = Vec::new();
        for path in [from, to] {
            let length = u32::try_from(path.len()).map_err(|_| SftpError::Limited("path".into()))?;
            data.extend_from_slice(&length.to_be_bytes());
            data.extend_from_slice(path.as_bytes());
        }
        match self.session.extended("posix-rename@openssh.com", data).await? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(SftpError::Status(status)),
            _ => Err(SftpError::UnexpectedPacket),
        }
    }

    /// Reads a file; `None` if the file does not exist. A file above `bytes_max` is an error.
    pub async fn read_file(&self, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>> {
        let handle = match self.session.open(path, OpenFlags::READ, FileAttributes::empty()).await {
            Ok(handle) => handle.handle,
            Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                return Ok(None);
            }
            Err(error) => return Err(self.failed("read", path, error)),
        };
        let mut content = Vec::new();
        let outcome = loop {
            match self.session.read(handle.as_str(), content.len() as u64, READ_BYTES).await {
                Ok(data) if data.data.is_empty() => break Ok(()),
                Ok(data) => content.extend_from_slice(&data.data),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => break Ok(()),
                Err(error) => break Err(self.failed("read", path, error)),
            }
            if content.len() > bytes_max {
                break Err(Error::new(
                    ErrorCode::ResourceExhausted,
                    format!("{path} on {} is too large", self.host),
                ));
            }
        };
        let _ = self.session.close(handle).await;
        outcome.map(|()| Some(content))
    }

    fn failed(&self, verb: &str, path: &str, error: SftpError) -> Error {
        let (code, why) = match &error {
            SftpError::Status(status) => (
                ErrorCode::DeploymentFailed,
                format!("{:?} {}", status.status_code, aegis_types::text::shown(&status.error_message)),
            ),
            SftpError::Timeout => (ErrorCode::HostUnreachable, "no answer".to_owned()),
            _ => (ErrorCode::HostUnreachable, "the connection was lost".to_owned()),
        };
        Error::new(code, format!("cannot {verb} {path} on {}: {why}", self.host)).source(error)
    }
}
