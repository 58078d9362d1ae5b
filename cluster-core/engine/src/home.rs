//! Conventional writable paths of programs: home directory, temporary files, caches. The root file system is read-only,
//! and build tools fail without these paths.

use super::volume::HOME;

/// Directories in the volume at [`HOME`], by the variables that programs read. Caches that follow `HOME` or
/// `XDG_CACHE_HOME` need no entry, unless images commonly set them to a read-only path.
const DIRECTORIES: [(&str, &str); 6] = [
    ("HOME", ""),
    ("TMPDIR", "/tmp"),
    ("XDG_CACHE_HOME", "/.cache"),
    ("CARGO_HOME", "/.cargo"),
    ("GOMODCACHE", "/.cache/go-mod"),
    ("npm_config_cache", "/.npm"),
];
/// Without a volume, only memory is available.
const TMP: &str = "/tmp";

/// Returns the variables of a container with a read-only root, `NAME=value`. Variables set by the caller are kept. So
/// is a home directory named by the image, since it may hold required files.
pub fn variables(has_volume: bool, given: &[String], image: &[String]) -> Vec<String> {
    let has = |list: &[String], name: &str| {
        list.iter().any(|variable| variable.split_once('=').is_some_and(|(known, _)| known == name))
    };
    let directories: &[(&str, &str)] = if has_volume { &DIRECTORIES } else { &DIRECTORIES[..1] };
    let place = if has_volume { HOME } else { TMP };
    directories
        .iter()
        .filter(|(name, _)| !(has(given, name) || *name == "HOME" && has(image, name)))
        .map(|(name, directory)| format!("{name}={place}{directory}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_and_caches_are_writable_unless_named() {
        let all = variables(true, &[], &[]);
        assert_eq!(&all[..2], ["HOME=/scratch", "TMPDIR=/scratch/tmp"]);
        assert_eq!(all.len(), DIRECTORIES.len());
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let some =
            variables(true, &words("TMPDIR=/workspace/t A=1"), &words("HOME=/home/app CARGO_HOME=/usr/c"));
        assert!(
            !some.iter().any(|variable| variable.starts_with("HOME=") || variable.starts_with("TMPDIR="))
        );
        assert!(some.contains(&"CARGO_HOME=/scratch/.cargo".to_owned()), "{some:?}");
        assert_eq!(variables(false, &[], &[]), ["HOME=/tmp"]);
    }
}
