//! File descriptors: how many this process may open, and how many of them connections may take.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Limit that is wanted: more than this process can use. Some systems set a hard limit of a billion.
const WANTED: u64 = 65_536;
/// Connections of one server take at most this part: the database, links and HTTP need descriptors, too.
const SHARE: u64 = 4;
/// Limit that is assumed where the system does not tell.
const UNKNOWN: u64 = 1_024;

/// Raises the soft limit as far as the hard one allows, and returns it.
pub fn raise_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return UNKNOWN };
    let wanted = hard.min(WANTED);
    if soft >= wanted {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files was not raised");
            soft
        }
    }
}

/// How many connections a server may hold, of `wanted`.
pub fn connections(wanted: usize) -> usize {
    wanted.min(usize::try_from(raise_limit() / SHARE).unwrap_or(usize::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_raised_and_shared_out() {
        let limit = raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, limit), (hard.min(WANTED).max(soft), soft));
        assert_eq!(connections(1), 1);
        assert!(connections(usize::MAX) as u64 <= limit / SHARE);
    }
}
