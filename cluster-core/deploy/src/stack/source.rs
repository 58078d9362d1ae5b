//! A file or directory that a compose file names, and where it lies below the directory of the compose file.

use std::path::{Component, Path};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    text::shown,
};

pub(super) const PATH_BYTES_MAX: usize = 512;
/// Names at the top of the base directory that belong to the deployment and not to the stack.
const RESERVED: [&str; 14] = [
    ".data",
    "private.list",
    ".work",
    "releases",
    "run",
    "current",
    "current.new",
    "release.json",
    "previous",
    ".env",
    "aegis-config.yaml",
    "docker-compose.yml",
    "docker-compose.operator.yml",
    "docker-compose.override.yml",
];

/// Why a file travels: it decides its mode, and what may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    EnvFile,
    Config,
    Secret,
    /// A bind that containers read only.
    BindReadOnly,
    /// A bind that containers may write to: from its first deployment on, its content belongs to the containers.
    Bind,
}

/// A file or directory that a service names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub kind: Kind,
    /// Without variables.
    pub path: String,
    /// The key that names it, as people write it.
    pub key: String,
    pub required: bool,
}

pub(super) fn refuse(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("the compose file cannot be used: {why}"))
}

/// Whether a path below a root is another one, or lies in it.
pub(super) fn is_within(path: &str, directory: &str) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn joined(directory: &str, name: &str) -> String {
    match (directory.is_empty(), name.is_empty()) {
        (_, true) => directory.to_owned(),
        (true, _) => name.to_owned(),
        _ => format!("{directory}/{name}"),
    }
}

/// Whether a source is the `.env` of the stack, which the host has at the same place.
pub(super) fn is_dotenv(source: &Source) -> bool {
    let mut parts = Path::new(&source.path).components().filter(|part| *part != Component::CurDir);
    let is_named = parts.next() == Some(Component::Normal(".env".as_ref())) && parts.next().is_none();
    is_named && matches!(source.kind, Kind::EnvFile | Kind::Bind | Kind::BindReadOnly)
}

/// Returns where a source lies below the compose file's directory; `None` for a path of the host.
pub(super) fn local_path(user: &str, source: &Source, directory: &Path) -> Result<Option<String>> {
    let Source { kind, path, key, .. } = source;
    let wrong = |why: &str| {
        refuse(format!("{user}: {key} names {}, {why}", shown(path)))
            .remedy("keep the files of a stack beside or below its compose file, and name them like ./x")
    };
    if path.starts_with('/') {
        return match kind {
            Kind::Bind | Kind::BindReadOnly if !Path::new(path).starts_with(directory) => Ok(None),
            Kind::Bind | Kind::BindReadOnly => {
                Err(wrong("which is a path of this machine and not of the host"))
            }
            Kind::EnvFile | Kind::Config | Kind::Secret => Err(wrong("an absolute path")),
        };
    }
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(|| wrong("which is not UTF-8"))?),
            _ => return Err(wrong("which leads out of the compose file's directory")),
        }
    }
    let Some(first) = parts.first() else {
        return Err(wrong("the whole directory of the compose file"));
    };
    if RESERVED.contains(first)
        || first.starts_with(".lock")
        || first.starts_with(".aegis-")
        || first.ends_with(".before-aegis")
    {
        return Err(wrong("a name that a deployment has for itself"));
    }
    let path = parts.join("/");
    if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        return Err(wrong("which is too long or holds control characters"));
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_the_compose_file_is_named() {
        let local = |kind, path: &str| {
            let source = Source { kind, path: path.to_owned(), key: "volumes".to_owned(), required: true };
            local_path("service web", &source, Path::new("/project"))
        };
        assert_eq!(local(Kind::Bind, "./a/./b/").unwrap().as_deref(), Some("a/b"));
        assert_eq!(local(Kind::Bind, "/dev/dri").unwrap(), None);
        for (kind, bad) in [
            (Kind::Bind, "../x"),
            (Kind::Bind, "a/../../x"),
            (Kind::Bind, "."),
            (Kind::Bind, "./"),
            (Kind::Bind, "./releases/x"),
            (Kind::Bind, ".env"),
            (Kind::Bind, "run"),
            (Kind::Bind, "a\nb"),
            (Kind::Bind, "/project/conf"),
            (Kind::Secret, "/etc/shadow"),
            (Kind::EnvFile, "/etc/environment"),
        ] {
            let error = local(kind, bad).unwrap_err();
            assert!(error.to_string().contains("service web: volumes names"), "{bad}: {error}");
        }
    }
}
