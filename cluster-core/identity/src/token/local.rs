//! Token keys of this controller: the signing key, and the public halves of earlier keys until their last token has
//! expired.
//!
//! On disk, `token-key.pem` is the private key (mode 0600). `token-keys.json` in the same directory has the start time
//! of the signing key, and the retired public keys. It is written first, so that a controller killed in between knows
//! one key too many, never one too few.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_fs::write_new;
use aegis_types::error::{Error, ErrorCode, Result};
use arc_swap::ArcSwap;
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Claims, LEEWAY_SECS, TOKEN_LIFETIME_SECS,
    keys::{Jwk, JwkSet},
};

/// Age at which a key is rotated automatically.
const KEY_AGE_MS_MAX: i64 = 30 * 24 * 3600 * 1000;
const OVERLAP_MS: i64 = (TOKEN_LIFETIME_SECS + LEEWAY_SECS) * 1000;
/// Maximum number of rotations within one token's life. The oldest keys are removed first.
const RETIRED_MAX: usize = 32;

/// Signing key.
struct Signing {
    key: EncodingKey,
    jwk: Jwk,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Retired {
    jwk: Jwk,
    /// Unix milliseconds.
    verifies_until_ms: i64,
}

/// Content of `token-keys.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Record {
    /// Key that this record describes.
    kid: String,
    since_ms: i64,
    #[serde(default)]
    retired: Vec<Retired>,
}

struct State {
    signing: Signing,
    record: Record,
}

/// Token keys of a controller that signs by itself.
pub struct LocalKeys {
    path: PathBuf,
    state: ArcSwap<State>,
}

impl fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKeys({})", self.state.load().signing.jwk.kid)
    }
}

impl LocalKeys {
    /// Reads the keys, or creates one if there is no file. A file that cannot be read is an error and never replaced.
    pub fn load_or_create(path: &Path, now_ms: i64) -> Result<Self> {
        let signing = match fs::read_to_string(path) {
            Ok(pem) => {
                let der = from_pem(&pem).ok_or_else(|| unusable(path, "is not PKCS#8 PEM"))?;
                let pair = KeyPair::from_pkcs8(&der).map_err(|_| unusable(path, "is not an RSA key"))?;
                Signing::of(&pair)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let (signing, pem) = generate()?;
                write_new(path, pem.as_bytes()).map_err(|e| unusable(path, "cannot be written").source(e))?;
                signing
            }
            Err(error) => return Err(unusable(path, "cannot be read").source(error)),
        };
        let kid = signing.jwk.kid.clone();
        let mut record = read_record(&record_path(path))?;
        if record.kid != kid {
            // First start of this version, or the process was killed during a rotation.
            record = Record { kid: kid.clone(), since_ms: now_ms, ..record };
            write_record(path, &record)?;
        }
        record.retired.retain(|retired| retired.jwk.kid != kid && retired.verifies_until_ms > now_ms);
        let state = ArcSwap::from_pointee(State { signing, record });
        Ok(Self { path: path.to_owned(), state })
    }

    pub(super) fn sign(&self, claims: &Claims) -> Result<String> {
        let state = self.state.load();
        let header = Header { kid: Some(state.signing.jwk.kid.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, claims, &state.signing.key)
            .map_err(|e| Error::internal("a node security token cannot be signed").source(e))
    }

    /// Returns the key set, starting with the signing key.
    pub(super) fn key_set(&self) -> JwkSet {
        let state = self.state.load();
        let retired = state.record.retired.iter().map(|retired| retired.jwk.clone());
        JwkSet { keys: std::iter::once(state.signing.jwk.clone()).chain(retired).collect() }
    }

    pub(super) fn is_due(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.state.load().record.since_ms) >= KEY_AGE_MS_MAX
    }

    pub(super) fn since_ms(&self) -> i64 {
        self.state.load().record.since_ms
    }

    /// Rotates the signing key. Slow, since an RSA key is generated. The caller's lock allows one call at a time.
    pub(super) fn rotate(&self, now_ms: i64) -> Result<()> {
        let before = self.state.load_full();
        let (signing, pem) = generate()?;
        let mut retired = before.record.retired.clone();
        retired.retain(|retired| retired.verifies_until_ms > now_ms);
        retired
            .insert(0, Retired { jwk: before.signing.jwk.clone(), verifies_until_ms: now_ms + OVERLAP_MS });
        retired.truncate(RETIRED_MAX);
        let record = Record { kid: signing.jwk.kid.clone(), since_ms: now_ms, retired };
        write_record(&self.path, &record)?;
        write_new(&self.path, pem.as_bytes())
            .map_err(|e| unusable(&self.path, "cannot be written").source(e))?;
        self.state.store(Arc::new(State { signing, record }));
        Ok(())
    }

    /// Removes keys whose last token has expired. The caller's lock allows one call at a time.
    pub(super) fn forget_expired(&self, now_ms: i64) {
        let before = self.state.load_full();
        let expired = |retired: &Retired| retired.verifies_until_ms <= now_ms;
        if !before.record.retired.iter().any(expired) {
            return;
        }
        let mut record = before.record.clone();
        record.retired.retain(|retired| !expired(retired));
        let Signing { key, jwk } = &before.signing;
        let signing = Signing { key: key.clone(), jwk: jwk.clone() };
        self.state.store(Arc::new(State { signing, record }));
    }
}

impl Signing {
    fn of(pair: &KeyPair) -> Result<Self> {
        let key = EncodingKey::from_rsa_pem(pkcs8_pem(pair)?.as_bytes())
            .map_err(|e| Error::internal("the token key cannot be used").source(e))?;
        Ok(Self { key, jwk: Jwk::of(pair.public_key())? })
    }
}

fn generate() -> Result<(Signing, Zeroizing<String>)> {
    let pair =
        KeyPair::generate(KeySize::Rsa2048).map_err(|_| Error::internal("an RSA key cannot be made"))?;
    Ok((Signing::of(&pair)?, pkcs8_pem(&pair)?))
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("the token key {} {why}", path.display()))
}

/// Returns the path of `token-keys.json` for `token-key.pem`.
fn record_path(path: &Path) -> PathBuf {
    path.with_file_name("token-keys.json")
}

fn read_record(path: &Path) -> Result<Record> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| unusable(path, "cannot be read").source(e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Record::default()),
        Err(e) => Err(unusable(path, "cannot be read").source(e)),
    }
}

fn write_record(key_path: &Path, record: &Record) -> Result<()> {
    let path = record_path(key_path);
    let bytes = serde_json::to_vec(record)
        .map_err(|e| Error::internal("the token keys cannot be written").source(e))?;
    write_new(&path, &bytes).map_err(|e| unusable(&path, "cannot be written").source(e))
}

fn pkcs8_pem(pair: &KeyPair) -> Result<Zeroizing<String>> {
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| Error::internal("an RSA key cannot be encoded"))?;
    let base64 = Zeroizing::new(STANDARD.encode(der.as_ref()));
    let mut pem = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
    for line in base64.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    Ok(pem)
}

fn from_pem(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?;
    let body = body.strip_suffix("-----END PRIVATE KEY-----")?;
    let base64 = Zeroizing::new(body.split_whitespace().collect::<String>());
    STANDARD.decode(base64.as_bytes()).ok().map(Zeroizing::new)
}
