//! Client token of OpenBao: requested when needed, renewed after two thirds of its lease, and requested again after a
//! rejection.

use std::time::{Duration, Instant};

use aegis_fs::resolve_secret;
use http::Method;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    TransitAuth,
    client::{BaoError, Client},
    waiting,
};

/// Pause between attempts of a renewal that fails while the lease is valid.
const RETRY: Duration = Duration::from_secs(5);

struct Lease {
    token: Zeroizing<String>,
    /// Time of the renewal; `None` if the token does not expire.
    renew_at: Option<Instant>,
    expires_at: Option<Instant>,
    renewable: bool,
    /// Lease duration when the token was granted.
    granted: Option<Duration>,
}

/// Serialises logins: all callers wait for the login in progress.
pub struct Login {
    auth: TransitAuth,
    lease: tokio::sync::Mutex<Option<Lease>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({:?})", self.auth)
    }
}

#[derive(Deserialize)]
struct Granted {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Zeroizing<String>,
    /// Seconds; 0 does not run out.
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct Looked {
    data: Own,
}

#[derive(Deserialize)]
struct Own {
    /// Seconds; 0 does not run out.
    ttl: u64,
    renewable: bool,
}

#[derive(Serialize)]
struct Nothing {}

impl Lease {
    fn of(token: Zeroizing<String>, seconds: u64, renewable: bool) -> Self {
        let lasts = (seconds > 0).then(|| Duration::from_secs(seconds));
        let now = Instant::now();
        Self {
            token,
            renew_at: lasts.map(|lasts| now + lasts * 2 / 3),
            expires_at: lasts.map(|lasts| now + lasts),
            renewable,
            granted: lasts,
        }
    }

    /// Returns the renewed lease. Near its maximum lifetime a token is renewed for little or no time; then only a login
    /// helps, and `None` is returned.
    fn renewed(&self, seconds: u64, renewable: bool) -> Option<Self> {
        let enough = self.granted.is_none_or(|granted| Duration::from_secs(seconds) >= granted / 3);
        let renewed = Self::of(self.token.clone(), seconds, renewable);
        (seconds > 0 && enough).then_some(Self { granted: self.granted, ..renewed })
    }
}

fn passed(time: Option<Instant>) -> bool {
    time.is_some_and(|time| time <= Instant::now())
}

impl Login {
    pub fn new(auth: TransitAuth) -> Self {
        Self { auth, lease: tokio::sync::Mutex::default() }
    }

    /// Returns whether a rejected token can be replaced by a login.
    pub fn can_renew_itself(&self) -> bool {
        // A referenced token may have been replaced at its source.
        match &self.auth {
            TransitAuth::AppRole { .. } => true,
            TransitAuth::Token(text) => text.starts_with("env:") || text.starts_with("file:"),
        }
    }

    /// Returns a token that is valid as far as known.
    pub async fn token(&self, client: &Client) -> Result<Zeroizing<String>, BaoError> {
        let mut slot = self.lease.lock().await;
        if let Some(lease) = slot.as_mut()
            && !passed(lease.expires_at)
        {
            if !passed(lease.renew_at) {
                return Ok(lease.token.clone());
            }
            if lease.renewable {
                match renew(client, lease).await {
                    Ok(Some(renewed)) => {
                        *lease = renewed;
                        return Ok(lease.token.clone());
                    }
                    Ok(None) => {}
                    Err(BaoError::Broken(error)) => {
                        tracing::warn!(error = %error.chain(), "the login to OpenBao could not be renewed yet");
                        lease.renew_at = Some(Instant::now() + RETRY);
                        return Ok(lease.token.clone());
                    }
                    Err(BaoError::Forbidden | BaoError::Refused(..)) => {}
                }
            }
        }
        let lease = self.log_in(client).await?;
        let token = lease.token.clone();
        *slot = Some(lease);
        Ok(token)
    }

    /// Discards a rejected token, unless it was replaced meanwhile.
    pub async fn forget(&self, refused: &Zeroizing<String>) {
        let mut slot = self.lease.lock().await;
        if slot.as_ref().is_some_and(|lease| lease.token == *refused) {
            *slot = None;
        }
    }

    async fn log_in(&self, client: &Client) -> Result<Lease, BaoError> {
        let refused = |how: &str| {
            BaoError::Broken(waiting(format!("OpenBao does not accept the {how} of spec.secrets.backend")))
        };
        let unreadable = |e: aegis_types::error::Error| BaoError::Broken(waiting(e.message()).source(e));
        match &self.auth {
            TransitAuth::AppRole { role_id, secret_id } => {
                #[derive(Serialize)]
                struct Credentials<'a> {
                    role_id: &'a str,
                    secret_id: &'a str,
                }
                let role_id = resolve_secret(role_id).map_err(unreadable)?;
                let secret_id = resolve_secret(secret_id).map_err(unreadable)?;
                let body = Credentials { role_id: &role_id, secret_id: &secret_id };
                let path = ["auth", "approle", "login"];
                match client.call::<Granted>(Method::POST, &path, None, Some(&body)).await {
                    Ok(Granted { auth }) => {
                        tracing::debug!(lease_seconds = auth.lease_duration, "logged in to OpenBao");
                        Ok(Lease::of(auth.client_token, auth.lease_duration, auth.renewable))
                    }
                    // The message could repeat what was sent.
                    Err(BaoError::Forbidden | BaoError::Refused(..)) => {
                        Err(refused("AppRole (role_id, secret_id)"))
                    }
                    Err(broken) => Err(broken),
                }
            }
            TransitAuth::Token(reference) => {
                let token = resolve_secret(reference).map_err(unreadable)?;
                let path = ["auth", "token", "lookup-self"];
                match client.call::<Looked>(Method::GET, &path, Some(&token), None::<&Nothing>).await {
                    Ok(Looked { data }) => Ok(Lease::of(token, data.ttl, data.renewable)),
                    Err(BaoError::Forbidden | BaoError::Refused(..)) => Err(refused("token")),
                    Err(broken) => Err(broken),
                }
            }
        }
    }
}

async fn renew(client: &Client, lease: &Lease) -> Result<Option<Lease>, BaoError> {
    let path = ["auth", "token", "renew-self"];
    let Granted { auth } = client.call(Method::POST, &path, Some(&lease.token), Some(&Nothing {})).await?;
    Ok(lease.renewed(auth.lease_duration, auth.renewable))
}
