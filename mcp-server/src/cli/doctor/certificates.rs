//! Checks whether the operator's certificates can be used, and for how long. Those of the built-in CA renew themselves,
//! and the daemon's health reports them.

use std::path::PathBuf;

use cluster_core::{
    config::{Settings, cluster_port::ClusterTls},
    rpc::tls::Identity,
    types::{
        clock::now_ms,
        error::{Error, Result},
    },
};

use super::{Check, Finding};

const DAY_SECS: i64 = 86_400;
/// Time for the operator to get the next certificate signed.
const DAYS_GOOD: i64 = 14;

/// A certificate and its key.
pub type Pair = (&'static str, PathBuf, PathBuf);

#[derive(Debug)]
pub struct Facts {
    what: &'static str,
    cert: PathBuf,
    /// Expiry, in seconds since 1970.
    until: Result<i64>,
    now_secs: i64,
}

pub fn pairs(settings: &Settings) -> Vec<Pair> {
    let http = settings.http_tls.clone().map(|files| ("HTTP", files.cert, files.key));
    let cluster = match settings.cluster_port.tls.clone() {
        ClusterTls::Operator(paths) => Some(("the cluster port", paths.cert, paths.key)),
        ClusterTls::Off | ClusterTls::BuiltIn => None,
    };
    http.into_iter().chain(cluster).collect()
}

pub fn look(pairs: Vec<Pair>) -> Vec<Facts> {
    let now_secs = now_ms() / 1000;
    let facts = pairs.into_iter().map(|(what, cert, key)| {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| Error::invalid(format!("{} cannot be read: {e}", path.display())))
        };
        let until = (|| Ok(Identity::of_pem(&read(&cert)?, &read(&key)?)?.facts.not_after_secs))();
        Facts { what, cert, until, now_secs }
    });
    facts.collect()
}

pub fn judge(facts: &[Facts]) -> Vec<Finding> {
    let check = Check::Certificates;
    if facts.is_empty() {
        return vec![check.ok("none of your own are configured")];
    }
    let judged = facts.iter().map(|Facts { what, cert, until, now_secs }| {
        let cert = cert.display();
        match until {
            Err(error) => check.fail(
                format!("{what}: {cert}: {}", error.message()),
                "put a certificate and its key there; the daemon looks at the files by itself",
            ),
            Ok(until) => {
                let days = (until - now_secs) / DAY_SECS;
                let left = format!("{what}: {cert} is valid for {days} days");
                if days < DAYS_GOOD { check.warn(left, "renew it") } else { check.ok(left) }
            }
        }
    });
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict::{Fail, Ok as Good, Warn};

    #[test]
    fn days_left_are_judged() {
        for (days, result) in [(90, Good), (13, Warn)] {
            let facts = Facts { what: "HTTP", cert: "/c".into(), until: Ok(days * DAY_SECS), now_secs: 0 };
            assert_eq!(judge(&[facts])[0].result, result, "{days}");
        }
        assert_eq!(judge(&[])[0].result, Good);
    }

    #[test]
    fn real_files_are_read_and_an_expired_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let pair = || vec![("HTTP", cert.clone(), key.clone())];
        assert_eq!(judge(&look(pair()))[0].result, Fail, "nothing is there");
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        assert_eq!(judge(&look(pair()))[0].result, Good);
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        std::fs::write(&cert, params.self_signed(&signing_key).unwrap().pem()).unwrap();
        std::fs::write(&key, signing_key.serialize_pem()).unwrap();
        let found = judge(&look(pair())).remove(0);
        assert!(found.result == Fail && found.detail.contains("expired"), "{found:?}");
    }
}
