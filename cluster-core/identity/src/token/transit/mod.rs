//! Signs tokens with a key of OpenBao's Transit engine, which never leaves the engine.
//!
//! Uses the HTTP API with `reqwest`, for one crypto backend, bounds and a custom CA. A client library would add a
//! second set of dependencies for four calls. `kid` is derived from the public key, so each signature names the key
//! version that made it. A response by another version is rejected.

mod client;
mod login;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use aegis_types::error::{Error, ErrorCode, Result};
use arc_swap::ArcSwap;
use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use client::{BaoError, Client};
use http::Method;
use jsonwebtoken::{Algorithm, Header};
use login::Login;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Claims,
    keys::{Jwk, JwkSet},
};

/// Time limit to sign. The waiting node retries by itself.
const SIGN_TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum number of key versions that are published to every worker.
const VERSIONS_MAX: usize = 64;

/// Login of the controller at OpenBao. Secrets may be `env:` and `file:` references, which are read at each login.
#[derive(Clone)]
pub enum TransitAuth {
    AppRole { role_id: String, secret_id: String },
    Token(String),
}

impl fmt::Debug for TransitAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AppRole { .. } => "AppRole",
            Self::Token(_) => "Token",
        })
    }
}

/// Location and access of the key.
#[derive(Debug, Clone)]
pub struct TransitSettings {
    /// `https://…`, or `http://` on loopback.
    pub address: url::Url,
    pub auth: TransitAuth,
    pub namespace: Option<String>,
    /// Mount path of the engine: `transit`.
    pub mount: String,
    pub key_name: String,
    /// The only trusted certificates, in PEM; `None` trusts the system's.
    pub ca_cert: Option<PathBuf>,
}

/// Public halves of the key, as last read.
#[derive(Debug, Default)]
struct Keys {
    /// Version that signs.
    latest: u64,
    versions: BTreeMap<u64, Jwk>,
}

/// Key in Transit.
#[derive(Debug)]
pub struct Transit {
    settings: TransitSettings,
    client: Client,
    login: Login,
    keys: ArcSwap<Keys>,
    /// Serialises reads, so that a late response cannot undo a newer one.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Deserialize)]
struct KeyData {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    min_decryption_version: u64,
    keys: BTreeMap<u64, KeyVersion>,
}

#[derive(Deserialize)]
struct KeyVersion {
    public_key: String,
}

#[derive(Deserialize)]
struct SignData {
    signature: String,
}

#[derive(Serialize)]
struct Empty {}

/// Returns the error that joining nodes get while OpenBao cannot sign.
fn waiting(why: impl fmt::Display) -> Error {
    Error::new(ErrorCode::Unavailable, format!("node security tokens cannot be signed now: {why}")).remedy(
        "joining goes on by itself once OpenBao signs again; check its address, login and key \
         (spec.secrets.backend)",
    )
}

impl Transit {
    pub fn new(settings: TransitSettings) -> Result<Self> {
        let client = Client::new(&settings)?;
        let login = Login::new(settings.auth.clone());
        Ok(Self { settings, client, login, keys: ArcSwap::default(), reading: tokio::sync::Mutex::default() })
    }

    /// Returns the key set, newest first.
    pub(super) fn key_set(&self) -> JwkSet {
        let keys = self.keys.load();
        JwkSet { keys: keys.versions.values().rev().take(VERSIONS_MAX).cloned().collect() }
    }

    pub(super) async fn sign(&self, claims: &Claims) -> Result<String> {
        match tokio::time::timeout(SIGN_TIME_MAX, self.sign_now(claims)).await {
            Ok(signed) => signed,
            Err(_) => Err(waiting("OpenBao takes too long")),
        }
    }

    async fn sign_now(&self, claims: &Claims) -> Result<String> {
        if self.keys.load().versions.is_empty() {
            self.refresh().await?;
        }
        let asked = self.keys.load().latest;
        match self.sign_with(asked, claims).await {
            // The key was rotated meanwhile, and the known version may no longer sign.
            Err(BaoError::Refused(..)) => {
                self.refresh().await?;
                let latest = self.keys.load().latest;
                self.sign_with(latest, claims).await.map_err(BaoError::into_waiting)
            }
            signed => signed.map_err(BaoError::into_waiting),
        }
    }

    async fn sign_with(&self, version: u64, claims: &Claims) -> Result<String, BaoError> {
        let unwritable = |e: serde_json::Error| {
            BaoError::Broken(Error::internal("a node security token cannot be written").source(e))
        };
        let keys = self.keys.load_full();
        let jwk = keys
            .versions
            .get(&version)
            .ok_or_else(|| BaoError::Broken(waiting("OpenBao names no key that may sign")))?;
        let header = Header { kid: Some(jwk.kid.clone()), ..Header::new(Algorithm::RS256) };
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).map_err(unwritable)?),
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims).map_err(unwritable)?)
        );
        // Without the last two fields Transit makes an RSA-PSS signature, which is not RS256.
        let body = json!({
            "input": STANDARD.encode(&input),
            "key_version": version,
            "hash_algorithm": "sha2-256",
            "signature_algorithm": "pkcs1v15",
        });
        let path = ["sign", &self.settings.key_name];
        let data: SignData = self.call(Method::POST, &path, Some(&body)).await?;
        let prefix = format!("vault:v{version}:");
        let signature = data
            .signature
            .strip_prefix(&prefix)
            .and_then(|base64| STANDARD.decode(base64).ok())
            .ok_or_else(|| BaoError::Broken(waiting("OpenBao signed with another version of the key")))?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Reads the key's public halves again. Keeps the earlier keys on failure.
    pub(super) async fn refresh(&self) -> Result<()> {
        let _reading = self.reading.lock().await;
        let path = ["keys", &self.settings.key_name];
        let data: KeyData =
            self.call(Method::GET, &path, None::<&Empty>).await.map_err(BaoError::into_waiting)?;
        if !data.kind.starts_with("rsa-") {
            return Err(waiting(format!(
                "the key {} is of type {}, and RS256 needs rsa-2048 or longer",
                self.settings.key_name,
                aegis_types::text::shown(&data.kind)
            )));
        }
        let mut versions = BTreeMap::new();
        for (version, key) in data.keys {
            if version >= data.min_decryption_version {
                let der =
                    from_pem(&key.public_key).ok_or_else(|| waiting("a public key of OpenBao is not PEM"))?;
                let public = RsaPublicKey::from_der(&der)
                    .map_err(|_| waiting("a public key of OpenBao is not an RSA key"))?;
                versions.insert(version, Jwk::of(&public)?);
            }
        }
        if !versions.contains_key(&data.latest_version) {
            return Err(waiting("OpenBao does not show the newest version of the key"));
        }
        self.keys.store(std::sync::Arc::new(Keys { latest: data.latest_version, versions }));
        Ok(())
    }

    /// Calls the engine with a login, and retries once after a fresh login if rejected.
    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, BaoError> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        let path: Vec<&str> = self.settings.mount.split('/').chain(path.iter().copied()).collect();
        let token = self.login.token(&self.client).await?;
        let first = self.client.call::<Answer<T>>(method.clone(), &path, Some(&token), body).await;
        match first {
            Err(BaoError::Forbidden) if self.login.can_renew_itself() => {
                self.login.forget(&token).await;
                let token = self.login.token(&self.client).await?;
                Ok(self.client.call::<Answer<T>>(method, &path, Some(&token), body).await?.data)
            }
            answer => Ok(answer?.data),
        }
    }
}

fn from_pem(pem: &str) -> Option<Vec<u8>> {
    let body = pem.trim().strip_prefix("-----BEGIN PUBLIC KEY-----")?;
    let body = body.strip_suffix("-----END PUBLIC KEY-----")?;
    STANDARD.decode(body.split_whitespace().collect::<String>()).ok()
}
