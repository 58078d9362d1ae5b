//! The operator's certificate files: read at start, watched, and replaced. A bad new file is reported, and the old
//! files stay in use.

use std::{fs, path::PathBuf};

use aegis_config::cluster_port::CertificatePaths;
use aegis_identity::sha256;
use aegis_types::{
    clock::now_ms,
    error::{Error, ErrorCode, Result},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Credentials, Identity, PeerRule, Trust, changes::Changes};

const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Digest of the files, to detect changes.
type Digest = [u8; 32];

/// Reads the files and updates the credentials until stopped. A problem at the start is an error.
pub fn watch(paths: CertificatePaths, rule: PeerRule, stop: CancellationToken) -> Result<Credentials> {
    // Watches before reading, so that a change in between is found.
    let changes = Changes::of(&[&paths.cert, &paths.key, &paths.ca]);
    let (digest, identity, trust) = load(&paths)?;
    let credentials = Credentials::new(rule, Some(identity), trust)?;
    let watched = credentials.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(watched, paths, digest, changes) => {}
        }
    });
    Ok(credentials)
}

async fn follow(credentials: Credentials, paths: CertificatePaths, mut used: Digest, mut changes: Changes) {
    loop {
        changes.next().await;
        credentials.review();
        match load(&paths) {
            Ok((digest, _, _)) if digest == used => credentials.note(None),
            Ok((digest, identity, trust)) => match credentials.replace(Some(identity), trust) {
                Ok(()) => {
                    used = digest;
                    credentials.note(None);
                    tracing::info!(cert = %paths.cert.display(), "certificates were replaced");
                }
                Err(error) => credentials.note(Some(&error)),
            },
            Err(error) => credentials.note(Some(&error)),
        }
    }
}

fn load(paths: &CertificatePaths) -> Result<(Digest, Identity, Trust)> {
    let read = |path: &PathBuf| -> Result<Zeroizing<Vec<u8>>> {
        let failed = |why: String| {
            Error::new(ErrorCode::ConfigInvalid, format!("{} {why}", path.display()))
                .remedy("spec.cluster.tls names PEM files that this process can read")
        };
        let size = fs::metadata(path).map_err(|e| failed("cannot be read".into()).source(e))?.len();
        if size > FILE_BYTES_MAX {
            return Err(failed(format!("is larger than {FILE_BYTES_MAX} bytes")));
        }
        fs::read(path).map(Zeroizing::new).map_err(|e| failed("cannot be read".into()).source(e))
    };
    let (cert, key, ca) = (read(&paths.cert)?, read(&paths.key)?, read(&paths.ca)?);
    let named = |path: &PathBuf| {
        let path = path.display().to_string();
        move |e: Error| {
            let told = Error::new(ErrorCode::ConfigInvalid, format!("{path}: {}", e.message()))
                .remedy("replace it with a file that is whole and in time");
            match std::error::Error::source(&e) {
                Some(cause) => told.source(cause.to_string()),
                None => told,
            }
        }
    };
    let identity = Identity::of_pem(&cert, &key).map_err(named(&paths.cert))?;
    if identity.facts.not_before_secs > now_ms() / 1000 {
        let early = Error::new(ErrorCode::ConfigInvalid, "the certificate is not valid yet");
        return Err(named(&paths.cert)(early));
    }
    let trust = Trust::of_pem(&ca, None).map_err(named(&paths.ca))?;
    let digests = [sha256(&cert), sha256(&key), sha256(&ca)].concat();
    Ok((sha256(&digests), identity, trust))
}
