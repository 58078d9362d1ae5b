//! The operator's secrets, which are used by name and never shown.
//!
//! A person sets a value (`aegis secret set`). From then on it is only used: as a tunnel token, a registry's password, a
//! key's passphrase or a variable of an execution. No call returns it; a list has names and times.
//!
//! The database has values under AES-256-GCM, with a fresh nonce and the name as associated data, so that rows cannot be
//! exchanged. The key is `secrets.key` (0600) next to the database. A stolen database, or a backup without that file,
//! reveals nothing. The owner of the machine, and the user that the controller runs as, can read both, since a
//! controller must start without a person. An operator who needs more keeps secrets in OpenBao and gives the controller
//! a file of its agent.
//!
//! The key is created with the first secret, and never again while there are secrets: with a new key, a lost key would
//! look like a wrong value. A lost key is an error.
//!
//! No tasks. [`Secrets`] is a cheap handle, which reads the key for each use and forgets it.
//!
//! Absent on purpose: reading a value back, and versions.

mod seal;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_store::{SecretRow, SecretWrite, Store, Write};
use aegis_types::{
    clock::{now_ms, rfc3339},
    error::{Error, ErrorCode, Result},
    secret::{Secret, SecretName},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

const KEY_FILE: &str = "secrets.key";
/// A key, a token, a chain of certificates; what is larger is a file.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// A secret as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretView {
    pub name: SecretName,
    /// RFC 3339, as all times here.
    pub created_at: String,
    pub changed_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
    /// Latest use, like `tunnel token of edge1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_for: Option<String>,
}

impl From<SecretRow> for SecretView {
    fn from(row: SecretRow) -> Self {
        Self {
            name: row.name,
            created_at: rfc3339(row.created_at_ms),
            changed_at: rfc3339(row.changed_at_ms),
            used_at: row.used_at_ms.map(rfc3339),
            used_for: row.used_for,
        }
    }
}

/// A cheap handle.
#[derive(Debug, Clone)]
pub struct Secrets {
    store: Store,
    key_path: PathBuf,
    /// Making the key and storing the first secret under it are one act.
    setting: Arc<Mutex<()>>,
}

impl Secrets {
    pub fn new(store: Store, data_dir: &Path) -> Self {
        Self { store, key_path: data_dir.join(KEY_FILE), setting: Arc::default() }
    }

    /// Sets a secret, new or not.
    pub async fn set(&self, name: SecretName, value: &Secret) -> Result<SecretView> {
        check_value(value)?;
        let _one_at_a_time = self.setting.lock().await;
        let key = match seal::Key::read(&self.key_path)? {
            Some(key) => key,
            None if self.store.secrets().await?.is_empty() => seal::Key::create(&self.key_path)?,
            None => return Err(self.key_is_lost()),
        };
        let sealed = key.seal(&name, value)?;
        let write = SecretWrite::Put { name: name.clone(), sealed, now_ms: now_ms() };
        self.store.write(Write::Secret(write)).await?;
        let row = self.store.secret(&name).await?;
        row.map(|(row, _)| row.into()).ok_or_else(|| Error::not_found("secret", name.as_str()))
    }

    /// Returns all secrets by name, without their values.
    pub async fn list(&self) -> Result<Vec<SecretView>> {
        Ok(self.store.secrets().await?.into_iter().map(SecretView::from).collect())
    }

    /// Needs no key: so a lost one can be answered.
    pub async fn delete(&self, name: &SecretName) -> Result<()> {
        match self.store.write(Write::Secret(SecretWrite::Delete { name: name.clone() })).await? {
            0 => Err(Error::not_found("secret", name.as_str())),
            _ => Ok(()),
        }
    }

    /// Checks that there is such a secret, without opening it. Returns its sealed size, which its value does not
    /// exceed.
    pub async fn check(&self, name: &SecretName) -> Result<usize> {
        self.store.secret(name).await?.map(|(_, sealed)| sealed.len()).ok_or_else(|| unknown(name))
    }

    /// Opens a secret for a purpose, which the list tells from then on. It goes to whatever needs it and
    /// to no caller.
    pub async fn use_for(&self, name: &SecretName, purpose: &str) -> Result<Secret> {
        let Some((_, sealed)) = self.store.secret(name).await? else { return Err(unknown(name)) };
        let key = seal::Key::read(&self.key_path)?.ok_or_else(|| self.key_is_lost())?;
        let secret = key.open(name, &sealed)?;
        let purpose = purpose.to_owned();
        let write = SecretWrite::Used { name: name.clone(), purpose, now_ms: now_ms() };
        self.store.write(Write::Secret(write)).await?;
        Ok(secret)
    }

    fn key_is_lost(&self) -> Error {
        Error::new(
            ErrorCode::Storage,
            format!("there are secrets, and their key {} is gone", self.key_path.display()),
        )
        .remedy(
            "restore that file from where it was kept; without it the values are lost: delete each with \
             `aegis secret delete NAME`, then set them again",
        )
    }
}

/// Returns the error for an unknown name. It names no other secrets, since an assistant could try them.
pub fn unknown(name: &SecretName) -> Error {
    Error::new(ErrorCode::NotFound, format!("there is no secret {name}"))
        .remedy(format!("a person sets it with: aegis secret set {name}"))
}

fn check_value(value: &Secret) -> Result<()> {
    let bytes = value.reveal().len();
    if (1..=VALUE_BYTES_MAX).contains(&bytes) {
        return Ok(());
    }
    Err(Error::invalid(format!("the value has {bytes} bytes")).remedy("a secret has 1 byte to 64 KiB"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use aegis_fs::DataDirectory;

    async fn opened(dir: &Path) -> Secrets {
        let data = Arc::new(DataDirectory::own(dir).unwrap());
        Secrets::new(Store::open(data).await.unwrap(), dir)
    }

    fn name(text: &str) -> SecretName {
        SecretName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn a_secret_is_used_by_name_and_lies_nowhere_in_the_clear() {
        const MARKER: &str = "marker-4711-of-a-secret";
        let dir = tempfile::tempdir().unwrap();
        let secrets = opened(dir.path()).await;
        let view = secrets.set(name("tunnel"), &Secret::new(MARKER)).await.unwrap();
        assert_eq!(view.used_at, None);
        secrets.set(name("other"), &Secret::new("x")).await.unwrap();
        assert_eq!(secrets.use_for(&name("tunnel"), "a test").await.unwrap().reveal(), MARKER);
        let listed = secrets.list().await.unwrap();
        let names: Vec<&str> = listed.iter().map(|view| view.name.as_str()).collect();
        assert_eq!(names, ["other", "tunnel"]);
        assert!(listed[1].used_at.is_some() && listed[1].used_for.as_deref() == Some("a test"));
        assert!(!serde_json::to_string(&listed).unwrap().contains(MARKER));
        for entry in fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert!(!bytes.windows(MARKER.len()).any(|part| part == MARKER.as_bytes()), "{path:?}");
        }
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        secrets.set(name("tunnel"), &Secret::new("second")).await.unwrap();
        assert_eq!(secrets.use_for(&name("tunnel"), "a test").await.unwrap().reveal(), "second");
        secrets.delete(&name("tunnel")).await.unwrap();
        let gone = secrets.use_for(&name("tunnel"), "a test").await.unwrap_err();
        assert_eq!(gone.code(), ErrorCode::NotFound);
        assert!(!gone.to_string().contains("other"), "{gone}");
        assert_eq!(secrets.delete(&name("tunnel")).await.unwrap_err().code(), ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn a_lost_key_is_an_error_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = opened(dir.path()).await;
        secrets.set(name("a"), &Secret::new("x")).await.unwrap();
        let key = dir.path().join(KEY_FILE);
        let kept = dir.path().join("kept");
        fs::rename(&key, &kept).unwrap();
        for error in [
            secrets.set(name("b"), &Secret::new("y")).await.unwrap_err(),
            secrets.use_for(&name("a"), "a test").await.unwrap_err(),
        ] {
            assert!(error.code() == ErrorCode::Storage && error.message().contains("secrets.key"), "{error}");
        }
        assert!(!key.exists());
        // Back again, all is well; and with the last secret gone, a new key is no loss.
        fs::rename(&kept, &key).unwrap();
        assert_eq!(secrets.use_for(&name("a"), "a test").await.unwrap().reveal(), "x");
        fs::remove_file(&key).unwrap();
        secrets.delete(&name("a")).await.unwrap();
        secrets.set(name("b"), &Secret::new("y")).await.unwrap();
        assert_eq!(secrets.use_for(&name("b"), "a test").await.unwrap().reveal(), "y");
    }

    #[tokio::test]
    async fn values_have_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = opened(dir.path()).await;
        for bad in [String::new(), "x".repeat(VALUE_BYTES_MAX + 1)] {
            let error = secrets.set(name("a"), &Secret::new(bad)).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
        }
        secrets.set(name("a"), &Secret::new("x".repeat(VALUE_BYTES_MAX))).await.unwrap();
    }
}
