//! Orders on a worker's disk: a folder an execution, with `order.json`, `secrets.json`, `login.json` and the event log.
//!
//! An order counts once its folder has its final name. The folder is written under another name first, and renamed
//! away before it is removed, so that an order that was refused, half-written or released never runs later. Values
//! of secrets lie in a file of their own, which is removed as soon as the execution has ended, and so does the login at
//! the image's registry, which is removed once the image is there.
//!
//! Threads: one, which writes and removes folders. Requests that wait for it share its syncs.

mod folders;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use aegis_fs::{private_directory, write_error};
use aegis_types::{
    error::Result,
    execution::order::SecretEnv,
    registry::{PullLogin, Registry},
    secret::Secret,
};
use folders::{Change, carry_out};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::journaled::JournaledAssignment;

const ORDER_FILE: &str = "order.json";
const SECRETS_FILE: &str = "secrets.json";
const LOGIN_FILE: &str = "login.json";
/// Suffix of a folder that is being written.
const NEW: &str = "new";
/// Suffix of a folder that is being removed.
const GONE: &str = "gone";

/// Requests that wait for the thread. A full queue makes callers wait.
const WAITING_MAX: usize = 256;
/// Requests that share their syncs: each may hold a few descriptors.
const GROUP_MAX: usize = 64;

/// A change, and who waits for it.
type Request = (Change, oneshot::Sender<io::Result<()>>);

/// The orders of one worker.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    /// Taken when the journal is closed.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Journal {
    /// Waits until the requests in hand are carried out: another journal of the same directory may follow.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An order with its folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub journaled: JournaledAssignment,
    pub directory: PathBuf,
}

impl Journal {
    /// Opens the journal in `directory` and removes what an earlier process left half-written or half-removed.
    pub fn open(directory: PathBuf) -> Result<Self> {
        private_directory(&directory).map_err(|e| write_error(&directory, e))?;
        let (requests, waiting) = mpsc::channel(WAITING_MAX);
        let parent = directory.clone();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || serve(&parent, waiting))
            .map_err(|e| write_error(&directory, e))?;
        let journal = Self { directory, requests: Some(requests), thread: Some(thread) };
        for path in journal.folders()? {
            if path.extension().is_some_and(|suffix| suffix == NEW || suffix == GONE) {
                fs::remove_dir_all(&path).map_err(|e| write_error(&path, e))?;
            }
        }
        Ok(journal)
    }

    pub fn path(&self) -> &Path {
        &self.directory
    }

    fn folders(&self) -> Result<Vec<PathBuf>> {
        let failed = |e| write_error(&self.directory, e);
        let entries = fs::read_dir(&self.directory).map_err(failed)?;
        entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
    }

    /// Reads all orders. An order that cannot be read is left as it is, since its container may be running.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for directory in self.folders()? {
            match read(&directory) {
                Ok(Some(journaled)) => entries.push(Entry { journaled, directory }),
                // Without an order nothing was started.
                Ok(None) => {
                    let _ = fs::remove_dir_all(&directory);
                }
                Err(error) => {
                    tracing::error!(%error, path = %directory.display(), "order cannot be read; left as it is");
                }
            }
        }
        Ok(entries)
    }

    /// Writes an order and returns its folder. After an error there is no such order.
    ///
    /// # Cancel safety
    /// The order may be written though the caller has gone.
    pub async fn put(&self, journaled: &mut JournaledAssignment) -> Result<PathBuf> {
        let folder = self.directory.join(journaled.order.execution_id.as_str());
        let files = files(journaled).map_err(|e| write_error(&folder, e))?;
        let change = Change::Put { folder: folder.clone(), files };
        self.ask(change).await.map_err(|e| write_error(&folder, e))?;
        Ok(folder)
    }

    /// Removes an order with its log.
    pub async fn remove(&self, folder: &Path) -> Result<()> {
        let change = Change::Remove { folder: folder.to_owned() };
        self.ask(change).await.map_err(|e| write_error(folder, e))
    }

    async fn ask(&self, change: Change) -> io::Result<()> {
        let closed = || io::Error::other("the journal is closed");
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(closed)?;
        requests.send((change, answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

/// Carries out requests until the journal is closed, all that wait at a time.
fn serve(parent: &Path, mut waiting: mpsc::Receiver<Request>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        let (changes, answers): (Vec<_>, Vec<_>) = group.drain(..).unzip();
        for (answer, result) in answers.into_iter().zip(carry_out(parent, &changes)) {
            // Who asked may have gone.
            let _ = answer.send(result);
        }
    }
}

/// Login at the registry of an order's image.
#[derive(Serialize, Deserialize)]
struct Login {
    username: String,
    password: String,
}

/// Removes the values of an execution's secrets from disk, once no container of it is created any more.
pub(super) fn drop_secrets(folder: &Path) -> Result<()> {
    remove(&folder.join(SECRETS_FILE))?;
    drop_login(folder)
}

/// Removes the login at the image's registry from disk, once the image is there.
pub(super) fn drop_login(folder: &Path) -> Result<()> {
    remove(&folder.join(LOGIN_FILE))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(write_error(path, e)),
        _ => Ok(()),
    }
}

/// Returns names and contents of an order's files.
fn files(journaled: &mut JournaledAssignment) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let secrets = std::mem::take(&mut journaled.order.secrets);
    let order = serde_json::to_vec(journaled);
    journaled.order.secrets = secrets;
    let mut files = vec![(ORDER_FILE, order?)];
    if !journaled.order.secrets.is_empty() {
        files.push((SECRETS_FILE, serde_json::to_vec(&journaled.order.secrets)?));
    }
    if let Some(login) = &journaled.order.login {
        let (username, password) = (login.username.clone(), login.password.reveal().to_owned());
        files.push((LOGIN_FILE, serde_json::to_vec(&Login { username, password })?));
    }
    Ok(files)
}

/// Returns `None` where there is no order.
fn read(folder: &Path) -> io::Result<Option<JournaledAssignment>> {
    let Some(order) = read_if_there(&folder.join(ORDER_FILE))? else { return Ok(None) };
    let mut journaled: JournaledAssignment = serde_json::from_slice(&order)?;
    if let Some(bytes) = read_if_there(&folder.join(SECRETS_FILE))? {
        journaled.order.secrets = serde_json::from_slice::<SecretEnv>(&bytes)?;
    }
    if let Some(bytes) = read_if_there(&folder.join(LOGIN_FILE))? {
        let Login { username, password } = serde_json::from_slice(&bytes)?;
        let (registry, password) = (Registry::of(&journaled.order.manifest.image), Secret::new(password));
        journaled.order.login = Some(PullLogin { registry, username, password });
    }
    Ok(Some(journaled))
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

    use super::*;
    use aegis_types::{
        execution::{
            order::Order,
            request::{ExecutionRequest, Submission},
        },
        ids::ExecutionId,
    };

    const SECRET: &str = "hunter22-hunter22";

    fn journaled(id: &str) -> JournaledAssignment {
        let request = ExecutionRequest { image: Some("busybox".into()), ..Default::default() };
        let order = Order {
            execution_id: ExecutionId::parse(id).unwrap(),
            attempt: 1,
            manifest: Submission::check(request).unwrap().manifest,
            input: String::new(),
            secrets: SecretEnv(BTreeMap::from([("KEY".to_owned(), SECRET.to_owned())])),
            login: None,
        };
        JournaledAssignment { order, accepted_at_ms: 1, deadline_ms: 2, gpus: Vec::new() }
    }

    fn journal(directory: &Path) -> Journal {
        Journal::open(directory.join("executions")).unwrap()
    }

    fn written_below(directory: &Path) -> String {
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    #[tokio::test]
    async fn order_is_read_back_with_its_secrets_until_they_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let mut order = journaled("exec-1");
        let folder = journal(directory.path()).put(&mut order).await.unwrap();
        assert!(!order.order.secrets.is_empty(), "the caller keeps its order");
        assert!(!fs::read_to_string(folder.join(ORDER_FILE)).unwrap().contains(SECRET));
        let mode = fs::metadata(folder.join(SECRETS_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let entries = journal(directory.path()).entries().unwrap();
        assert_eq!(entries[0].journaled.order, order.order);
        drop_secrets(&folder).unwrap();
        drop_secrets(&folder).unwrap();
        assert!(!written_below(&folder).contains(SECRET));
        assert!(journal(directory.path()).entries().unwrap()[0].journaled.order.secrets.is_empty());
    }

    #[tokio::test]
    async fn registry_login_is_kept_apart_until_the_image_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut order = journaled("exec-1");
        order.order.secrets = SecretEnv::default();
        let (registry, username) = (Registry::of("busybox"), "me".to_owned());
        order.order.login = Some(PullLogin { registry, username, password: Secret::new(SECRET) });
        let folder = journal(directory.path()).put(&mut order).await.unwrap();
        assert!(!fs::read_to_string(folder.join(ORDER_FILE)).unwrap().contains(SECRET));
        let mode = fs::metadata(folder.join(LOGIN_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let read = || journal(directory.path()).entries().unwrap().remove(0).journaled.order;
        assert_eq!(read(), order.order);
        assert!(!format!("{:?}", read()).contains(SECRET));
        drop_login(&folder).unwrap();
        assert!(!written_below(&folder).contains(SECRET) && read().login.is_none());
    }

    #[tokio::test]
    async fn order_of_an_older_version_keeps_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let opened = journal(directory.path());
        let folder = opened.path().join("exec-1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(ORDER_FILE), serde_json::to_vec(&journaled("exec-1")).unwrap()).unwrap();
        assert!(!opened.entries().unwrap()[0].journaled.order.secrets.is_empty());
    }

    #[tokio::test]
    async fn half_written_and_half_removed_orders_never_run() {
        let directory = tempfile::tempdir().unwrap();
        let opened = journal(directory.path());
        let folder = opened.put(&mut journaled("exec-1")).await.unwrap();
        for suffix in [NEW, GONE] {
            fs::rename(&folder, folder.with_extension(suffix)).unwrap();
            assert!(journal(directory.path()).entries().unwrap().is_empty(), "{suffix}");
            assert!(!folder.with_extension(suffix).exists());
            opened.put(&mut journaled("exec-1")).await.unwrap();
        }
        opened.remove(&folder).await.unwrap();
        opened.remove(&folder).await.unwrap();
        assert!(opened.entries().unwrap().is_empty());
        assert!(fs::read_dir(opened.path()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn orders_put_together_are_each_there_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let opened = journal(directory.path());
        let damaged = opened.path().join("exec-7");
        fs::create_dir(&damaged).unwrap();
        fs::write(damaged.join(ORDER_FILE), b"{").unwrap();
        let put = |number: usize| {
            let opened = &opened;
            async move { (number, opened.put(&mut journaled(&format!("exec-{number}"))).await) }
        };
        let results = futures::future::join_all((0..40).map(put)).await;
        let refused = results.iter().filter(|(_, result)| result.is_err()).map(|(number, _)| *number);
        assert_eq!(refused.collect::<Vec<_>>(), [7]);
        assert_eq!(fs::read(damaged.join(ORDER_FILE)).unwrap(), b"{", "what is there is not touched");
        assert_eq!(opened.entries().unwrap().len(), 39);
        let folders: Vec<_> = results.into_iter().filter_map(|(_, result)| result.ok()).collect();
        let removed = futures::future::join_all(folders.iter().map(|folder| opened.remove(folder))).await;
        assert!(removed.iter().all(Result::is_ok), "{removed:?}");
        let left = fs::read_dir(opened.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["exec-7"]);
    }

    #[tokio::test]
    async fn refused_put_leaves_no_order_and_a_damaged_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let opened = journal(directory.path());
        let folder = opened.path().join("exec-1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(ORDER_FILE), b"{").unwrap();
        assert!(opened.entries().unwrap().is_empty());
        assert!(folder.exists(), "its container may be running");
        fs::remove_dir_all(&folder).unwrap();
        // A file in the way of the rename.
        fs::write(&folder, b"").unwrap();
        assert!(opened.put(&mut journaled("exec-1")).await.is_err());
        fs::remove_file(&folder).unwrap();
        assert!(journal(directory.path()).entries().unwrap().is_empty());
        // A damaged order in the way keeps its place.
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(ORDER_FILE), b"{").unwrap();
        assert!(opened.put(&mut journaled("exec-1")).await.is_err());
        assert_eq!(fs::read(folder.join(ORDER_FILE)).unwrap(), b"{");
    }
}
