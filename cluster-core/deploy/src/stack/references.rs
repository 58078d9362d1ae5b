//! Files that Compose itself opens to read a project: env files, label files, included and extended compose files.
//!
//! This reading may find more than Compose opens, since Compose alone decides what a compose file means. What it
//! finds is sent along when the host's Compose reads the project.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aegis_types::error::{Error, ErrorCode};
use serde_json::Value;

use super::{
    bundle::Named,
    source::{Kind, Source, is_dotenv, joined, local_path, refuse},
};
use crate::env_file::interpolate::interpolate;

/// An included file that includes another one, and so on.
const DEPTH_MAX: usize = 16;
const FILES_MAX: usize = 200;
const TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// Files that Compose may open.
#[derive(Debug, Default)]
pub(super) struct References {
    /// Files by their path below the directory of the compose file.
    pub named: Named,
    /// Problems of files that may not count: a later file can take the reference back.
    pub problems: Vec<Problem>,
    /// A file that the host would fetch from elsewhere.
    pub refused: Option<Error>,
}

/// Why a file that Compose may open does not travel.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    path: String,
    why: String,
    remedy: Option<String>,
}

impl Problem {
    fn new(path: &str, error: &Error) -> Self {
        let remedy = error.remedy_text().map(str::to_owned);
        Self { path: path.to_owned(), why: error.message().to_owned(), remedy }
    }

    /// Whether a message of Compose is about the same file.
    pub fn explains(&self, message: &str) -> bool {
        self.path.rsplit('/').next().is_some_and(|name| message.contains(name))
    }

    pub fn error(&self) -> Error {
        let error = Error::new(ErrorCode::ConfigInvalid, &self.why);
        self.remedy.iter().fold(error, |error, remedy| error.remedy(remedy.as_str()))
    }
}

/// Reads a project's compose files for the files that they name.
pub(super) struct Finder<'a> {
    pub directory: &'a Path,
    pub has_dotenv: bool,
    pub lookup: &'a dyn Fn(&str) -> Option<String>,
    pub found: References,
}

impl Finder<'_> {
    /// Adds the files that one compose file names. Its paths are relative to `base`, a directory below the project's.
    pub fn add(&mut self, text: &str, base: &str) {
        self.add_at_depth(text, base, 0);
    }

    fn add_at_depth(&mut self, text: &str, base: &str, depth: usize) {
        // Compose says what is wrong with a text that is not YAML.
        let Ok(document) = serde_saphyr::from_str::<Value>(text) else { return };
        for include in list(document.get("include")) {
            self.add_include(include, base, depth);
        }
        for (name, service) in document.get("services").and_then(Value::as_object).into_iter().flatten() {
            let user = format!("service {name}");
            for key in ["env_file", "label_file"] {
                for (path, required) in paths(service.get(key)) {
                    self.add_file(&user, key, Kind::EnvFile, base, &path, required);
                }
            }
            if let Some(path) = service.get("extends").and_then(|extends| extends.get("file")?.as_str()) {
                self.add_compose_file(&user, "extends.file", base, path, None, depth);
            }
        }
    }

    fn add_include(&mut self, include: &Value, base: &str, depth: usize) {
        let long = include.as_object();
        let own = long.and_then(|long| long.get("project_directory")?.as_str());
        let directory = own.and_then(|own| self.path(own)).map(|own| joined(base, &own));
        let files = match long {
            Some(long) => paths(long.get("path")),
            None => paths(Some(include)),
        };
        for (path, _) in &files {
            self.add_compose_file("include", "path", base, path, directory.as_deref(), depth);
        }
        let env_files = long.map(|long| paths(long.get("env_file"))).unwrap_or_default();
        for (path, required) in &env_files {
            self.add_file("include", "env_file", Kind::EnvFile, base, path, *required);
        }
        if let (true, Some((first, _))) = (env_files.is_empty(), files.first()) {
            let beside = directory.or_else(|| self.path(first).map(|first| parent(&joined(base, &first))));
            if let Some(beside) = beside.filter(|beside| !beside.is_empty()) {
                self.add_file("include", "env_file", Kind::EnvFile, &beside, ".env", false);
            }
        }
    }

    /// Adds a compose file, and the files that it names in turn.
    fn add_compose_file(
        &mut self,
        user: &str,
        key: &str,
        base: &str,
        path: &str,
        directory: Option<&str>,
        depth: usize,
    ) {
        if ["http://", "https://", "git@", "ssh://", "oci://"].iter().any(|remote| path.starts_with(remote)) {
            let why = format!("{user}: {key} names {path}, which the host would fetch from elsewhere");
            let remedy = "keep the file below the compose file's directory, and name it like ./x";
            self.found.refused.get_or_insert(refuse(why).remedy(remedy));
            return;
        }
        let Some(path) = self.add_file(user, key, Kind::Config, base, path, true) else { return };
        if depth >= DEPTH_MAX {
            return;
        }
        let full = self.directory.join(&path);
        let fits = fs::metadata(&full).is_ok_and(|metadata| metadata.len() <= TEXT_BYTES_MAX);
        if let (true, Ok(text)) = (fits, fs::read_to_string(&full)) {
            let directory = directory.map_or_else(|| parent(&path), str::to_owned);
            self.add_at_depth(&text, &directory, depth + 1);
        }
    }

    /// Adds one file; the answer is its path below the project's directory, unless it is known already.
    fn add_file(
        &mut self,
        user: &str,
        key: &str,
        kind: Kind,
        base: &str,
        path: &str,
        required: bool,
    ) -> Option<String> {
        let path = self.path(path)?;
        let path = if path.starts_with('/') { path } else { joined(base, &path) };
        let path = normal(&path);
        let source = Source { kind, path: path.clone(), key: key.to_owned(), required: false };
        if is_dotenv(&source) {
            if required && !self.has_dotenv {
                self.found.problems.push(missing(user, key, &path));
            }
            return None;
        }
        let path = match local_path(user, &source, self.directory) {
            Ok(path) => path?,
            Err(error) => {
                self.found.problems.push(Problem::new(&source.path, &error));
                return None;
            }
        };
        if self.found.named.contains_key(&path) || self.found.named.len() >= FILES_MAX {
            return None;
        }
        if !self.directory.join(&path).exists() {
            if required {
                self.found.problems.push(missing(user, key, &path));
            }
            return None;
        }
        self.found.named.insert(path.clone(), (user.to_owned(), source));
        Some(path)
    }

    /// Replaces the variables of a path; `None` for one that cannot be known here.
    fn path(&self, path: &str) -> Option<String> {
        interpolate(path, self.lookup).ok().filter(|path| !path.is_empty())
    }
}

fn missing(user: &str, key: &str, path: &str) -> Problem {
    let error = refuse(format!("{user}: {key}: {path} is not there"))
        .remedy("put it there, or take it out of the compose file");
    Problem::new(path, &error)
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

/// One path, or a list of paths and of `{path, required}`.
fn paths(value: Option<&Value>) -> Vec<(String, bool)> {
    let one = |value: &Value| {
        let path = value.as_str().or_else(|| value.get("path")?.as_str())?;
        let required = value.get("required").and_then(Value::as_bool).unwrap_or(true);
        Some((path.to_owned(), required))
    };
    match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
    }
}

/// Directory of a path, `""` at the top.
fn parent(path: &str) -> String {
    path.rsplit_once('/').map(|(directory, _)| directory.to_owned()).unwrap_or_default()
}

/// Resolves `.` and `..` by name. What leads out of the directory keeps its leading `..`.
fn normal(path: &str) -> String {
    let mut normal = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal.to_string_lossy().into_owned()
}

/// Returns kinds by path.
#[cfg(test)]
pub(super) fn kinds(named: &Named) -> std::collections::BTreeMap<&str, Kind> {
    named.iter().map(|(path, (_, source))| (path.as_str(), source.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(dir: &Path, text: &str) -> References {
        let lookup = |name: &str| (name == "STAGE").then(|| "dev".to_owned());
        let mut finder =
            Finder { directory: dir, has_dotenv: false, lookup: &lookup, found: References::default() };
        finder.add(text, "");
        finder.found
    }

    fn write(dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn files_that_compose_opens_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.env", "dev.env", "web/own.env", "web/.env", "db/db.env", "labels"] {
            write(dir.path(), name, "A=1\n");
        }
        write(dir.path(), "web/compose.yml", "services: {web: {env_file: own.env}}");
        write(dir.path(), "base.yml", "services: {base: {env_file: [db/db.env]}}");
        let text = "include: [./web/compose.yml]\n\
            services:\n  a: {extends: {file: base.yml, service: base}, env_file: [a.env, '${STAGE}.env', {path: no.env, required: false}]}\n  \
            b: {label_file: ./labels, env_file: '${NONE:?}'}\n";
        let found = find(dir.path(), text);
        assert_eq!(
            Vec::from_iter(kinds(&found.named)),
            [
                ("a.env", Kind::EnvFile),
                ("base.yml", Kind::Config),
                ("db/db.env", Kind::EnvFile),
                ("dev.env", Kind::EnvFile),
                ("labels", Kind::EnvFile),
                ("web/.env", Kind::EnvFile),
                ("web/compose.yml", Kind::Config),
                ("web/own.env", Kind::EnvFile),
            ]
        );
        assert!(found.problems.is_empty(), "{:?}", found.problems);
    }

    #[test]
    fn what_cannot_travel_is_a_problem_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("services: {a: {env_file: ../x.env}}", "service a: env_file names ../x.env, which leads out"),
            ("services: {a: {env_file: gone.env}}", "service a: env_file: gone.env is not there"),
            ("services: {a: {env_file: .env}}", "service a: env_file: .env is not there"),
            ("services: {a: {extends: {file: /etc/x.yml, service: y}}}", "an absolute path"),
        ] {
            let found = find(dir.path(), text);
            assert!(found.named.is_empty(), "{text}");
            assert!(found.problems[0].why.contains(says), "{:?}", found.problems);
        }
        let remote = find(dir.path(), "include: ['https://example.com/compose.yml']").refused.unwrap();
        assert!(remote.message().contains("the host would fetch"), "{remote}");
        assert!(find(dir.path(), "a: [").problems.is_empty(), "Compose says what is wrong");
    }

    #[test]
    fn included_files_that_include_each_other_end() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.yml", "include: [b.yml]");
        write(dir.path(), "b.yml", "include: [a.yml]");
        assert_eq!(find(dir.path(), "include: [a.yml]").named.len(), 2);
    }
}
