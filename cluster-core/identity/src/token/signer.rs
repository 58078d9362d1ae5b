//! Signs tokens, with a key of this controller or of OpenBao.
//!
//! Task: one keeper per controller ([`TokenSigner::keep`]). It rotates an old local key, reloads Transit's keys, and
//! removes keys whose last token has expired.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aegis_types::{
    clock::{now_ms, rfc3339},
    error::{Error, ErrorCode, Result},
    ids::{ClusterId, NodeId},
};
use arc_swap::ArcSwap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Claims, TokenKeys,
    keys::JwkSet,
    local::LocalKeys,
    transit::{Transit, TransitSettings},
};

/// Interval of the keeper.
const KEEP_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Source {
    Local(Arc<LocalKeys>),
    Transit(Box<Transit>),
}

/// Published keys, in both forms.
#[derive(Debug)]
struct Published {
    set: JwkSet,
    keys: Arc<TokenKeys>,
}

/// Signs the tokens of one controller.
#[derive(Debug)]
pub struct TokenSigner {
    source: Source,
    cluster_id: ClusterId,
    issuer: NodeId,
    published: ArcSwap<Published>,
    /// Serialises changes of the keys.
    changing: tokio::sync::Mutex<()>,
    publishing: Mutex<()>,
}

/// Keys that verify tokens now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenKeysView {
    /// `local` or `transit`.
    pub signer: String,
    /// Key id of new tokens; absent until OpenBao has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signs: Option<String>,
    /// All accepted key ids, newest first.
    pub verifies: Vec<String>,
    /// RFC 3339 time since when the local key signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

impl TokenSigner {
    /// Signs with the key in the data directory, which is created if missing.
    pub fn local(path: &Path, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let keys = LocalKeys::load_or_create(path, now_ms())?;
        let set = keys.key_set();
        Self::of(Source::Local(Arc::new(keys)), set, cluster_id, issuer)
    }

    /// Signs with a key in OpenBao. OpenBao is not contacted before the first token or [`Self::refresh`], so that a
    /// controller starts without it.
    pub fn transit(settings: TransitSettings, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let transit = Box::new(Transit::new(settings)?);
        Self::of(Source::Transit(transit), JwkSet::default(), cluster_id, issuer)
    }

    fn of(source: Source, set: JwkSet, cluster_id: ClusterId, issuer: NodeId) -> Result<Self> {
        let keys = Arc::new(TokenKeys::of(&set, cluster_id.clone(), issuer.clone())?);
        let published = ArcSwap::from_pointee(Published { set, keys });
        let (changing, publishing) = (tokio::sync::Mutex::default(), Mutex::default());
        Ok(Self { source, cluster_id, issuer, published, changing, publishing })
    }

    /// Publishes the current keys of the source. The keys are read under the lock, so that two concurrent publications
    /// cannot undo each other.
    fn publish(&self) -> Result<()> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let set = match &self.source {
            Source::Local(keys) => keys.key_set(),
            Source::Transit(transit) => transit.key_set(),
        };
        if set.keys == self.published.load().set.keys {
            return Ok(());
        }
        let keys = Arc::new(TokenKeys::of(&set, self.cluster_id.clone(), self.issuer.clone())?);
        self.published.store(Arc::new(Published { set, keys }));
        Ok(())
    }

    /// Signs a token. Returns [`ErrorCode::Unavailable`] while OpenBao cannot sign; a retry may help.
    pub async fn sign(&self, claims: &Claims) -> Result<String> {
        match &self.source {
            Source::Local(keys) => keys.sign(claims),
            Source::Transit(transit) => {
                let token = transit.sign(claims).await?;
                // Signing may have read newer keys, which the receiver of the token needs as well.
                self.publish()?;
                Ok(token)
            }
        }
    }

    /// Returns the current verification keys.
    pub fn keys(&self) -> Arc<TokenKeys> {
        self.published.load().keys.clone()
    }

    /// Returns the verification keys for other parties: a JSON Web Key Set (RFC 7517).
    pub fn key_set(&self) -> Result<String> {
        self.published.load().set.to_json()
    }

    /// Rotates the key at once. The previous key verifies until its last token expires.
    pub async fn rotate(&self) -> Result<TokenKeysView> {
        let changing = self.changing.lock().await;
        match &self.source {
            Source::Local(keys) => {
                let rotating = keys.clone();
                tokio::task::spawn_blocking(move || rotating.rotate(now_ms()))
                    .await
                    .map_err(|e| Error::internal("the rotation of the token key broke").source(e))??;
                self.publish()?;
            }
            Source::Transit(_) => {
                return Err(Error::new(
                    ErrorCode::FailedPrecondition,
                    "the token key is kept by OpenBao and rotated there",
                )
                .remedy(
                    "rotate it with `bao write -f transit/keys/NAME/rotate`: it is followed within a minute",
                ));
            }
        }
        drop(changing);
        tracing::info!(keys = ?self.keys(), "the token key was rotated");
        Ok(self.view())
    }

    /// Maintains the keys: rotates an old key, follows Transit, and removes expired keys.
    pub async fn refresh(&self, now_ms: i64) -> Result<()> {
        match &self.source {
            Source::Local(keys) => {
                if keys.is_due(now_ms) {
                    self.rotate().await?;
                }
                let _changing = self.changing.lock().await;
                keys.forget_expired(now_ms);
                self.publish()
            }
            Source::Transit(transit) => {
                let read = transit.refresh().await;
                self.publish()?;
                read
            }
        }
    }

    /// Runs the keeper until stopped.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut interval = tokio::time::interval(KEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            if stop.run_until_cancelled(interval.tick()).await.is_none() {
                return;
            }
            match stop.run_until_cancelled(self.refresh(now_ms())).await {
                None => return,
                Some(Ok(())) if failing => {
                    failing = false;
                    tracing::info!("the token keys are kept again");
                }
                Some(Ok(())) => {}
                // The first failure, and then each failed signature, are enough in the log.
                Some(Err(error)) if !failing => {
                    failing = true;
                    tracing::warn!(error = %error.chain(), "the token keys could not be kept: tokens that are out stay valid");
                }
                Some(Err(_)) => {}
            }
        }
    }

    pub fn view(&self) -> TokenKeysView {
        let verifies: Vec<_> = self.published.load().set.keys.iter().map(|jwk| jwk.kid.clone()).collect();
        let (signer, since) = match &self.source {
            Source::Local(keys) => ("local", Some(rfc3339(keys.since_ms()))),
            Source::Transit(_) => ("transit", None),
        };
        TokenKeysView { signer: signer.to_owned(), signs: verifies.first().cloned(), verifies, since }
    }
}
