//! An execution's workspace and home directory on its worker: volumes of their own, filled before the first container.
//!
//! The files belong to the user that the image runs as, since containers have no capability to write files of other
//! users. A volume that was half filled when the worker died is emptied and filled again.

use std::{io, path::Path};

use aegis_content::{
    BOUNDS,
    blob_store::BlobStore,
    rewrite::{Counts, Owner, ROOT, rewrite},
};
use aegis_engine::{Engine, VolumeOf};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::manifest::Manifest,
    text::shown,
};
use flate2::read::GzDecoder;
use tokio_util::io::SyncIoBridge;

/// Between the thread that unpacks and the engine.
const PIPE_BYTES: usize = 256 * 1024;
const USERS_BYTES_MAX: usize = 1024 * 1024;
/// The volume's place, below the root that the engine unpacks into.
const PREFIX: &str = "workspace";
/// Directories of the home volume, with their modes: a home directory, and `TMPDIR`.
const HOME_DIRECTORIES: [(&str, u32); 2] = [("scratch", 0o755), ("scratch/tmp", 0o1777)];

/// Makes the volumes and fills them, for the user of the image. The image is there.
pub(super) async fn place(
    engine: &Engine,
    kept: &BlobStore,
    of: VolumeOf<'_>,
    manifest: &Manifest,
    user: &str,
) -> Result<()> {
    let content = manifest.workspace.as_ref().map(|note| kept.read(&note.digest)).transpose()?;
    engine.create_workspace(of, &manifest.image).await?;
    let holder = of.holder();
    let owner = owner(engine, user, &holder).await?;
    let (reader, writer) = tokio::io::duplex(PIPE_BYTES);
    let writer = SyncIoBridge::new(writer);
    let filling = tokio::task::spawn_blocking(move || fill(writer, content, owner));
    let put = engine.put_archive(&holder, "/", reader).await;
    let filled = filling.await.map_err(|e| Error::internal("unpacking a workspace ended").source(e))?;
    match (put, filled) {
        (Err(refused), Err(cut)) if cut.kind() == io::ErrorKind::BrokenPipe => return Err(refused),
        (_, Err(error)) => {
            return Err(Error::new(
                ErrorCode::ContainerFailed,
                format!("the workspace cannot be unpacked: {}", shown(&error.to_string())),
            )
            .source(error));
        }
        (Err(refused), Ok(())) => return Err(refused),
        (Ok(()), Ok(())) => {}
    }
    engine.remove(&holder).await
}

fn fill(writer: impl io::Write, content: Option<std::fs::File>, owner: Owner) -> io::Result<()> {
    let mut tar = tar::Builder::new(writer);
    for (path, mode) in [(PREFIX, 0o755)].into_iter().chain(HOME_DIRECTORIES) {
        let mut directory = tar::Header::new_gnu();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_mode(mode);
        directory.set_uid(owner.uid);
        directory.set_gid(owner.gid);
        directory.set_size(0);
        tar.append_data(&mut directory, path, io::empty())?;
    }
    if let Some(content) = content {
        let beneath = |name: &Path| match name.as_os_str().is_empty() {
            true => name.to_owned(),
            false => Path::new(PREFIX).join(name),
        };
        rewrite(GzDecoder::new(content), &mut tar, beneath, owner, &BOUNDS, &mut Counts::default())?;
    }
    tar.into_inner()?.flush()
}

/// Whom the image runs as, by its own lists of users and groups.
async fn owner(engine: &Engine, user: &str, holder: &str) -> Result<Owner> {
    if user.is_empty() {
        return Ok(ROOT);
    }
    let list = async |path| {
        let bytes = engine.read_file(holder, path, USERS_BYTES_MAX).await?.unwrap_or_default();
        Ok::<_, Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let users = list("/etc/passwd").await?;
    let groups = if user.contains(':') { list("/etc/group").await? } else { String::new() };
    find_owner(user, &users, &groups).ok_or_else(|| {
        Error::new(
            ErrorCode::ContainerFailed,
            format!("the image's user \"{}\" is not in its /etc/passwd or /etc/group", shown(user)),
        )
        .remedy("give the image a USER of numbers, like 1000:1000: the workspace must belong to somebody")
    })
}

/// `user[:group]`, each a name or a number. As engines read it: a number needs no entry, and a user
/// without one is in the root group.
fn find_owner(user: &str, users: &str, groups: &str) -> Option<Owner> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let row = |list: &str, wanted: &str| {
        let fields = list.lines().map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>());
        let found = fields.filter(|fields| fields.len() > 2);
        let mut found = found.filter(|fields| fields[0] == wanted || fields[2] == wanted);
        found.next()
    };
    let known = row(users, user);
    let uid = match (&known, user.parse()) {
        (Some(known), _) => known[2].parse().ok()?,
        (None, Ok(number)) => number,
        (None, Err(_)) => return None,
    };
    let gid = match group {
        Some(group) => match (row(groups, group), group.parse()) {
            (Some(known), _) => known[2].parse().ok()?,
            (None, Ok(number)) => number,
            (None, Err(_)) => return None,
        },
        None => known.and_then(|known| known.get(3)?.parse().ok()).unwrap_or(0),
    };
    Some(Owner { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_user_is_found_as_the_engine_finds_it() {
        let users = "root:x:0:0:root:/:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nbad\n";
        let groups = "root:x:0:\nstaff:x:50:node\n";
        let find = |user: &str| find_owner(user, users, groups).map(|owner| (owner.uid, owner.gid));
        for (user, expected) in [
            ("root", Some((0, 0))),
            ("node", Some((1000, 1001))),
            ("1000", Some((1000, 1001))),
            ("7", Some((7, 0))),
            ("node:staff", Some((1000, 50))),
            ("7:8", Some((7, 8))),
            ("nobody", None),
            ("node:nobody", None),
        ] {
            assert_eq!(find(user), expected, "{user}");
        }
    }
}
