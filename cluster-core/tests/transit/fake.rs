//! Simulated endpoints of OpenBao that the token signer uses. They are as strict as the real ones about tokens with
//! leases, the namespace, methods, unknown fields, and the default of RSA-PSS.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

pub const ROLE_ID: &str = "role-7d1f";
pub const SECRET_ID: &str = "secret-9b2e-very-private";
pub const NAMESPACE: &str = "teams/edge";
pub const KEY: &str = "aegis-node-tokens";

pub struct Lease {
    until: Instant,
    longest_until: Instant,
}

pub struct Inside {
    pub keys: BTreeMap<u64, KeyPair>,
    pub min_decryption_version: u64,
    pub min_encryption_version: u64,
    pub tokens: HashMap<String, Lease>,
    pub lease: Duration,
    /// Maximum total lease after renewals.
    pub longest_lease: Duration,
    pub logins: u32,
    pub renewals: u32,
    pub signatures: u32,
    /// Answers 503, like a sealed server.
    pub sealed: bool,
    /// Accepts connections and never answers.
    pub silent: bool,
    /// Errors repeat the request, as a careless proxy might.
    pub echo: bool,
    /// Responses exceed every limit.
    pub flood: bool,
    /// The next signature claims to be by this version.
    pub claims_version: Option<u64>,
}

#[derive(Clone)]
pub struct Fake {
    inside: Arc<Mutex<Inside>>,
    pub address: SocketAddr,
}

/// Status and body of an error.
type Refusal = (StatusCode, String);
type Answer = Result<Json<Value>, Refusal>;

fn errors(status: StatusCode, words: &[&str]) -> Refusal {
    (status, json!({ "errors": words }).to_string())
}

fn denied() -> Refusal {
    errors(StatusCode::FORBIDDEN, &["permission denied"])
}

fn new_key() -> KeyPair {
    KeyPair::generate(KeySize::Rsa2048).expect("a key")
}

impl Fake {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("an address");
        let inside = Inside {
            keys: BTreeMap::from([(1, new_key())]),
            min_decryption_version: 1,
            min_encryption_version: 0,
            tokens: HashMap::new(),
            lease: Duration::from_secs(3600),
            longest_lease: Duration::from_secs(86_400),
            logins: 0,
            renewals: 0,
            signatures: 0,
            sealed: false,
            silent: false,
            echo: false,
            flood: false,
            claims_version: None,
        };
        let fake = Self { inside: Arc::new(Mutex::new(inside)), address };
        let routes = Router::new()
            .route("/v1/auth/approle/login", post(log_in))
            .route("/v1/auth/token/renew-self", post(renew))
            .route("/v1/auth/token/lookup-self", get(look_up))
            .route("/v1/transit/keys/{name}", get(read_key))
            .route("/v1/transit/sign/{name}", post(sign))
            .fallback(async || errors(StatusCode::NOT_FOUND, &["no handler for route"]))
            .with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        fake
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().expect("no test panics while it holds this")
    }

    /// Rotates the key, like `bao write -f transit/keys/NAME/rotate`.
    pub fn rotate(&self) {
        let mut inside = self.inside();
        let next = inside.keys.keys().max().expect("a version") + 1;
        inside.keys.insert(next, new_key());
    }

    /// Ends all leases, as an administrator may.
    pub fn revoke_all(&self) {
        self.inside().tokens.clear();
    }

    pub fn grant(&self, token: &str, lease: Duration) {
        let now = Instant::now();
        let longest_until = now + self.inside().longest_lease;
        self.inside().tokens.insert(token.to_owned(), Lease { until: now + lease, longest_until });
    }

    async fn gate(&self, headers: &HeaderMap, body: &Bytes) -> Result<(), Refusal> {
        if self.inside().silent {
            std::future::pending::<()>().await;
        }
        let inside = self.inside();
        if inside.sealed {
            return Err(errors(StatusCode::SERVICE_UNAVAILABLE, &["Vault is sealed"]));
        }
        if inside.flood {
            return Err((StatusCode::OK, " ".repeat(8 << 20)));
        }
        if headers.get("x-vault-namespace").and_then(|value| value.to_str().ok()) != Some(NAMESPACE) {
            return Err(errors(StatusCode::NOT_FOUND, &["no handler for route"]));
        }
        let json = headers.get("content-type").is_some_and(|kind| kind == "application/json");
        if !body.is_empty() && !json {
            return Err(errors(StatusCode::BAD_REQUEST, &["failed to parse JSON input"]));
        }
        Ok(())
    }

    /// Returns the caller of a token whose lease is valid.
    fn caller(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        let token = headers.get("x-vault-token").and_then(|value| value.to_str().ok()).ok_or_else(denied)?;
        let mut inside = self.inside();
        inside.tokens.retain(|_, lease| lease.until > Instant::now());
        if inside.tokens.contains_key(token) { Ok(token.to_owned()) } else { Err(denied()) }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| errors(StatusCode::BAD_REQUEST, &[&e.to_string()]))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    role_id: String,
    secret_id: String,
}

async fn log_in(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Answer {
    fake.gate(&headers, &body).await?;
    let given: Credentials = read(&body)?;
    if given.role_id != ROLE_ID || given.secret_id != SECRET_ID {
        let words = match fake.inside().echo {
            true => String::from_utf8_lossy(&body).into_owned(),
            false => "invalid role or secret ID".to_owned(),
        };
        return Err(errors(StatusCode::BAD_REQUEST, &[&words]));
    }
    let token = format!("s.{}", uuid::Uuid::new_v4().simple());
    let lease = fake.inside().lease;
    fake.grant(&token, lease);
    fake.inside().logins += 1;
    Ok(Json(json!({ "auth": {
        "client_token": token, "accessor": "a", "policies": ["default"], "token_policies": ["default"],
        "lease_duration": lease.as_secs(), "renewable": true,
    }})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Increment {
    #[serde(default)]
    #[allow(dead_code)]
    increment: Option<String>,
}

async fn renew(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Answer {
    fake.gate(&headers, &body).await?;
    let token = fake.caller(&headers)?;
    let _: Increment = read(&body)?;
    let mut inside = fake.inside();
    inside.renewals += 1;
    let wanted = Instant::now() + inside.lease;
    let lease = inside.tokens.get_mut(&token).ok_or_else(denied)?;
    lease.until = wanted.min(lease.longest_until);
    let left = lease.until.saturating_duration_since(Instant::now()).as_secs_f64().round() as u64;
    Ok(Json(json!({ "auth": { "client_token": token, "lease_duration": left, "renewable": true } })))
}

async fn look_up(State(fake): State<Fake>, headers: HeaderMap, body: Bytes) -> Answer {
    fake.gate(&headers, &body).await?;
    let token = fake.caller(&headers)?;
    let left = fake.inside().tokens[&token].until.saturating_duration_since(Instant::now()).as_secs();
    Ok(Json(json!({ "data": { "id": token, "ttl": left, "renewable": true, "policies": ["default"] } })))
}

async fn read_key(
    State(fake): State<Fake>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    fake.gate(&headers, &body).await?;
    fake.caller(&headers)?;
    if name != KEY {
        return Err(errors(StatusCode::NOT_FOUND, &[]));
    }
    let inside = fake.inside();
    let shown = inside.keys.iter().filter(|(version, _)| **version >= inside.min_decryption_version);
    let keys: serde_json::Map<String, Value> = shown
        .map(|(version, pair)| {
            let key = json!({
                "creation_time": "2026-01-01T00:00:00Z", "name": "rsa-2048", "public_key": pem(pair),
            });
            (version.to_string(), key)
        })
        .collect();
    Ok(Json(json!({ "data": {
        "type": "rsa-2048", "name": name, "keys": keys, "latest_version": inside.keys.keys().max(),
        "min_available_version": 0, "min_decryption_version": inside.min_decryption_version,
        "min_encryption_version": inside.min_encryption_version, "supports_signing": true,
    }})))
}

fn pem(pair: &KeyPair) -> String {
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("DER");
    let base64 = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> =
        base64.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sign {
    input: String,
    key_version: Option<u64>,
    hash_algorithm: Option<String>,
    signature_algorithm: Option<String>,
}

async fn sign(State(fake): State<Fake>, Path(name): Path<String>, headers: HeaderMap, body: Bytes) -> Answer {
    fake.gate(&headers, &body).await?;
    fake.caller(&headers)?;
    let refused = |words: &str| errors(StatusCode::BAD_REQUEST, &[words]);
    let asked: Sign = read(&body)?;
    if name != KEY {
        return Err(refused("signing key not found"));
    }
    let input = STANDARD.decode(&asked.input).map_err(|_| refused("unable to decode input as base64"))?;
    let mut inside = fake.inside();
    let version = match asked.key_version {
        None | Some(0) => *inside.keys.keys().max().expect("a version"),
        Some(version) => version,
    };
    if version < inside.min_encryption_version {
        return Err(refused("requested version for signing is less than the minimum encryption key version"));
    }
    match asked.hash_algorithm.as_deref() {
        None | Some("sha2-256") => {}
        Some(_) => return Err(refused("unsupported hash algorithm")),
    }
    let padding: &'static dyn RsaEncoding = match asked.signature_algorithm.as_deref() {
        None | Some("" | "pss") => &RSA_PSS_SHA256,
        Some("pkcs1v15") => &RSA_PKCS1_SHA256,
        Some(_) => return Err(refused("unsupported signature algorithm")),
    };
    let pair = inside.keys.get(&version).ok_or_else(|| refused("key version does not exist"))?;
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(padding, &SystemRandom::new(), &input, &mut signature).expect("a signature");
    inside.signatures += 1;
    let version = inside.claims_version.take().unwrap_or(version);
    let signature = format!("vault:v{version}:{}", STANDARD.encode(signature));
    Ok(Json(json!({ "data": { "signature": signature, "key_version": version } })))
}
