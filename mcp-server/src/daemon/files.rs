//! The files in the data directory that tell clients how to reach us over HTTP, and with which
//! configuration we run.

use std::{
    ffi::OsStr,
    io::Write as _,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use cluster_core::{
    fs::DataDirectory,
    types::error::{Error, ErrorCode, Result},
};

/// Where HTTP is served; there while the daemon runs.
pub const HTTP_ADDRESS: &str = "http.addr";
/// The bearer token for HTTP.
pub const HTTP_TOKEN: &str = "http.token";
/// The configuration file that the last daemon ran with; absent when there was none.
const CONFIG_PATH: &str = "config.path";
/// A shorter one was not made by us.
const TOKEN_LENGTH_MIN: usize = 32;

/// The token, made at the first start and kept.
pub fn http_token(data: &DataDirectory) -> Result<String> {
    let path = data.path().join(HTTP_TOKEN);
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= TOKEN_LENGTH_MIN => {
            data.protect(&path)?;
            return Ok(text.trim().to_owned());
        }
        // Empty: we were ended between creating and writing it.
        Ok(text) if text.trim().is_empty() => {}
        Ok(_) => {
            return Err(Error::new(
                ErrorCode::Storage,
                format!("{} is too short to be a token", path.display()),
            )
            .remedy("remove the file: a new one is made at the next start"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(&path, e)),
    }
    // 244 random bits from the operating system.
    let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    write(&path, token.as_bytes())?;
    Ok(token)
}

/// `HOST:PORT`, with `https://` before it where it is that.
pub fn write_address(data: &DataDirectory, address: SocketAddr, tls: bool) -> Result<()> {
    let scheme = if tls { "https://" } else { "" };
    write(&data.path().join(HTTP_ADDRESS), format!("{scheme}{address}").as_bytes())
}

/// Returns the URL under which the running daemon serves HTTP.
pub fn http_url(data_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join(HTTP_ADDRESS)).ok()?;
    let text = text.trim();
    Some(if text.starts_with("https://") { text.to_owned() } else { format!("http://{text}") })
}

pub fn remove_address(data: &DataDirectory) {
    // Left behind, it is written anew at the next start.
    let _ = std::fs::remove_file(data.path().join(HTTP_ADDRESS));
}

/// For whoever starts the daemon again after it went away.
pub fn write_config_path(data: &DataDirectory, path: Option<&Path>) -> Result<()> {
    let file = data.path().join(CONFIG_PATH);
    let Some(path) = path else {
        return match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&file, e)),
            _ => Ok(()),
        };
    };
    let path = std::path::absolute(path).map_err(|e| failed(path, e))?;
    write(&file, path.as_os_str().as_bytes())
}

/// What [`write_config_path`] left in this data directory.
pub fn config_path(data_dir: &Path) -> Option<PathBuf> {
    let bytes = std::fs::read(data_dir.join(CONFIG_PATH)).ok()?;
    Some(PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b"\n")?)))
}

/// Whole or not at all, readable by its owner alone.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().map_err(|e| failed(path, e))
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::new(ErrorCode::Storage, format!("{} cannot be used", path.display()))
        .remedy("check the data directory's permissions and free space")
        .source(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_token_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDirectory::own(dir.path()).unwrap();
        let token = http_token(&data).unwrap();
        assert!(token.len() >= TOKEN_LENGTH_MIN);
        assert_eq!(http_token(&data).unwrap(), token);
        let mode = std::fs::metadata(data.path().join(HTTP_TOKEN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(data.path().join(HTTP_TOKEN), "short").unwrap();
        assert!(http_token(&data).is_err());
    }
}
