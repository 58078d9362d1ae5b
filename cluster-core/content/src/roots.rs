//! Directories that may be sent to a node, depending on the requester.
//!
//! A person may name any directory that the controller's user can read. An assistant may name directories inside the
//! operator's roots, with links resolved, and learns nothing about other paths. The directory with the controller's own
//! keys is always rejected.

use std::{
    io,
    path::{Path, PathBuf},
};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    principal::Origin,
    text::shown,
};
use cap_std::{ambient_authority, fs::Dir};

/// Opened directory. All reads are relative to it, whatever happens to the path.
#[derive(Debug)]
pub struct Source {
    pub directory: Dir,
    /// Path for lookups and messages, with links resolved.
    pub path: PathBuf,
}

/// Opens a directory. `own` is the controller's data directory.
pub fn open(path: &Path, origin: Origin, roots: &[PathBuf], own: &Path) -> Result<Source> {
    if !path.is_absolute() {
        return Err(Error::invalid(format!("workspace: \"{}\" is not absolute", name(path)))
            .remedy("write the whole path; the command line does it by itself"));
    }
    let source = match origin {
        Origin::Person => open_any(path)?,
        Origin::Assistant => open_beneath(path, roots)?,
    };
    let own = own.canonicalize().unwrap_or_else(|_| own.to_owned());
    if own.starts_with(&source.path) || source.path.starts_with(&own) {
        return Err(Error::new(
            ErrorCode::Forbidden,
            format!("workspace: {} has to do with {}, where keys are", name(&source.path), name(&own)),
        )
        .remedy("name a directory further down, or beside it"));
    }
    Ok(source)
}

fn open_any(path: &Path) -> Result<Source> {
    let resolved = path.canonicalize().map_err(|e| unreadable(path, e))?;
    let directory = Dir::open_ambient_dir(&resolved, ambient_authority()).map_err(|e| unreadable(path, e))?;
    Ok(Source { directory, path: resolved })
}

/// Opens a directory inside the roots. The error is the same whether the path exists or not.
fn open_beneath(path: &Path, roots: &[PathBuf]) -> Result<Source> {
    let outside = || {
        let remedy = match roots.is_empty() {
            true => "the operator lists directories in spec.deploy.workspace_roots; none is listed",
            false => "use a directory beneath one of spec.deploy.workspace_roots",
        };
        Error::new(
            ErrorCode::Forbidden,
            format!("workspace: {} is beneath none of the configured roots", name(path)),
        )
        .remedy(remedy)
    };
    let resolved = path.canonicalize().map_err(|e| outside().source(e))?;
    for root in roots {
        let Ok(root) = root.canonicalize() else { continue };
        let Ok(inner) = resolved.strip_prefix(&root) else { continue };
        // Opened from the root on, so that nothing leads outside between the check and the read.
        let opened = Dir::open_ambient_dir(&root, ambient_authority()).and_then(|opened| {
            if inner.as_os_str().is_empty() { Ok(opened) } else { opened.open_dir(inner) }
        });
        let directory = opened.map_err(|e| unreadable(&resolved, e))?;
        return Ok(Source { directory, path: resolved });
    }
    Err(outside())
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such directory",
        io::ErrorKind::NotADirectory => "it is not a directory",
        io::ErrorKind::PermissionDenied => "the controller's user may not read it",
        _ => "it cannot be read",
    };
    Error::invalid(format!("workspace: {}: {why}", name(path))).source(error)
}

fn name(path: &Path) -> String {
    shown(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn assistant_is_confined_to_roots_and_person_is_not() {
        let world = tempfile::tempdir().unwrap();
        let at = |name: &str| world.path().join(name);
        for directory in ["root/project", "other", "root-not"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        std::fs::write(at("root/file"), "").unwrap();
        symlink(at("other"), at("root/out")).unwrap();
        symlink(at("root"), at("alias")).unwrap();
        let own = at("data");
        let assistant = |name: &str, roots: &[PathBuf]| open(&at(name), Origin::Assistant, roots, &own);
        let roots = [at("alias")];
        for good in ["root/project", "root", "alias/project", "root/../root/project"] {
            assert!(assistant(good, &roots).is_ok(), "{good}");
        }
        for bad in ["other", "root/out", "root-not", "root/..", "nowhere", "root/nowhere"] {
            let error = assistant(bad, &roots).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Forbidden, "{bad}");
            assert!(error.to_string().contains("spec.deploy.workspace_roots"), "{error}");
        }
        assert_eq!(assistant("root/file", &roots).unwrap_err().code(), ErrorCode::InvalidArgument);
        assert!(assistant("root", &[]).unwrap_err().to_string().contains("none is listed"));
        assert!(open(&at("other"), Origin::Person, &[], &own).is_ok());
        assert!(open(Path::new("."), Origin::Person, &[], &own).is_err());
        assert!(open(&at("root/file"), Origin::Person, &[], &own).is_err());
    }

    #[test]
    fn the_controllers_own_directory_is_never_sent() {
        let world = tempfile::tempdir().unwrap();
        let own = world.path().join("home/.aegis");
        std::fs::create_dir_all(own.join("executions")).unwrap();
        std::fs::create_dir_all(world.path().join("home/project")).unwrap();
        for (bad, good) in [("home", "home/project"), ("home/.aegis", "home/project")] {
            let asked = |name: &str| open(&world.path().join(name), Origin::Person, &[], &own);
            assert_eq!(asked(bad).unwrap_err().code(), ErrorCode::Forbidden, "{bad}");
            asked(good).unwrap();
        }
        assert!(open(&own.join("executions"), Origin::Person, &[], &own).is_err());
    }
}
