//! Making, listing and revoking access tokens: first in the database, then in the table.

use std::{sync::Arc, time::Duration};

use aegis_identity::{random, sha256};
use aegis_store::{AccessTokenRow, AccessWrite, Store, Write};
use aegis_types::{
    clock::{now_ms, rfc3339},
    error::{Error, ErrorCode, Result},
    ids::AccessTokenName,
    scope::Scope,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    TokenTable,
    table::{Digest, Known},
};

/// Prefix by which scanners for leaked secrets recognize a token.
const PREFIX: &str = "aegis_";
const SECRET_BYTES: usize = 32;
/// Programs of one team; more is a script that makes tokens in a loop.
const TOKENS_MAX: usize = 256;
pub const LIFETIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const USE_WRITTEN_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct AccessTokenOrder {
    pub name: AccessTokenName,
    pub scope: Scope,
    /// 1 second to [`LIFETIME_MAX`].
    pub lifetime: Duration,
}

/// The one time that the value is shown.
#[derive(Clone, Serialize, Deserialize)]
pub struct AccessTokenGrant {
    /// `aegis_` and 43 characters of base64url.
    pub token: Zeroizing<String>,
    #[serde(flatten)]
    pub view: AccessTokenView,
}

impl std::fmt::Debug for AccessTokenGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessTokenGrant").field("view", &self.view).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccessTokenState {
    Valid,
    Expired,
}

/// A token as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccessTokenView {
    pub name: AccessTokenName,
    pub scope: Scope,
    pub state: AccessTokenState,
    /// RFC 3339, as all times here.
    pub created_at: String,
    pub expires_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
}

impl AccessTokenView {
    fn of(known: &Known) -> Self {
        let expired = known.is_expired(now_ms());
        Self {
            name: known.name.clone(),
            scope: known.scope,
            state: if expired { AccessTokenState::Expired } else { AccessTokenState::Valid },
            created_at: rfc3339(known.created_at_ms),
            expires_at: rfc3339(known.expires_at_ms),
            used_at: known.used_at_ms().map(rfc3339),
        }
    }
}

/// A cheap handle on what changes the table.
#[derive(Debug, Clone)]
pub struct AccessTokens {
    store: Store,
    table: TokenTable,
    /// The database and the table are changed as one.
    changing: Arc<Mutex<()>>,
}

impl AccessTokens {
    /// Fills the table with what is stored.
    pub async fn open(store: Store, table: TokenTable) -> Result<Self> {
        let known = store.access_tokens().await?.into_iter().map(|row| {
            let times = [row.created_at_ms, row.expires_at_ms];
            Arc::new(Known::new(row.name, row.value_hash, row.scope, times, row.used_at_ms))
        });
        table.replace(known);
        Ok(Self { store, table, changing: Arc::default() })
    }

    /// Makes a token. A name that is taken is a `Conflict`, also by one that has expired.
    pub async fn create(&self, order: AccessTokenOrder) -> Result<AccessTokenGrant> {
        let AccessTokenOrder { name, scope, lifetime } = order;
        if lifetime.is_zero() || lifetime > LIFETIME_MAX {
            return Err(Error::invalid("the lifetime of a token is 1 second to 365 days")
                .remedy("state one within that, and make another token when it ends"));
        }
        let _one_at_a_time = self.changing.lock().await;
        let mut all = self.table.all();
        if all.iter().any(|known| known.name == name) {
            return Err(Error::new(ErrorCode::Conflict, format!("there is a token \"{name}\" already"))
                .remedy(format!("take another name, or first: aegis token revoke {name}")));
        }
        if all.len() >= TOKENS_MAX {
            return Err(Error::new(ErrorCode::ResourceExhausted, format!("there are {TOKENS_MAX} tokens"))
                .remedy("revoke those that nobody needs; `aegis token list` shows when each was used"));
        }
        let (token, value_hash) = mint()?;
        let created_at_ms = now_ms();
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let expires_at_ms = created_at_ms.saturating_add(lifetime_ms);
        let row = AccessTokenRow {
            name: name.clone(),
            value_hash,
            scope,
            created_at_ms,
            expires_at_ms,
            used_at_ms: None,
        };
        self.store.write(Write::Access(AccessWrite::Create(row))).await?;
        let known = Arc::new(Known::new(name, value_hash, scope, [created_at_ms, expires_at_ms], None));
        all.push(known.clone());
        self.table.replace(all);
        Ok(AccessTokenGrant { token, view: AccessTokenView::of(&known) })
    }

    /// Returns all tokens by name.
    pub fn list(&self) -> Vec<AccessTokenView> {
        let mut all: Vec<_> = self.table.all().iter().map(|known| AccessTokenView::of(known)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// It counts no more once this has returned, and its name is free.
    pub async fn revoke(&self, name: &AccessTokenName) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        if self.store.write(Write::Access(AccessWrite::Revoke { name: name.clone() })).await? == 0 {
            return Err(Error::not_found("token", name.as_str()));
        }
        self.table.replace(self.table.all().into_iter().filter(|known| known.name != *name));
        Ok(())
    }

    /// Writes down, once a minute and at the end, when tokens were last used.
    pub fn spawn(&self, stop: CancellationToken) -> JoinHandle<()> {
        let tokens = self.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(USE_WRITTEN_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                tokens.write_uses().await;
            }
            tokens.write_uses().await;
        })
    }

    async fn write_uses(&self) {
        for known in self.table.all() {
            let Some(at_ms) = known.unwritten_use() else { continue };
            let write = AccessWrite::Used { name: known.name.clone(), at_ms };
            match self.store.write(Write::Access(write)).await {
                Ok(_) => known.note_written(at_ms),
                // The next round tries again.
                Err(error) => {
                    tracing::warn!(token = %known.name, error = %error.chain(), "its last use is not written");
                }
            }
        }
    }
}

fn mint() -> Result<(Zeroizing<String>, Digest)> {
    let secret = Zeroizing::new(random::<SECRET_BYTES>()?);
    let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()));
    let token = Zeroizing::new(format!("{PREFIX}{}", encoded.as_str()));
    let digest = sha256(token.as_bytes());
    Ok((token, digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aegis_fs::DataDirectory;

    fn name(text: &str) -> AccessTokenName {
        AccessTokenName::parse(text).unwrap()
    }

    fn order(text: &str, scope: Scope) -> AccessTokenOrder {
        AccessTokenOrder { name: name(text), scope, lifetime: Duration::from_secs(60) }
    }

    async fn opened(directory: &std::path::Path) -> (AccessTokens, TokenTable) {
        let store = Store::open(Arc::new(DataDirectory::own(directory).unwrap())).await.unwrap();
        let table = TokenTable::new(Some("local"));
        (AccessTokens::open(store, table.clone()).await.unwrap(), table)
    }

    fn scope_of(table: &TokenTable, token: &str) -> Option<Scope> {
        table.check(Some(&format!("Bearer {token}"))).ok().map(|bearer| bearer.scope)
    }

    #[tokio::test]
    async fn token_is_valid_until_revoked_and_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (tokens, table) = opened(directory.path()).await;
        let grant = tokens.create(order("ci", Scope::Operate)).await.unwrap();
        assert!(grant.token.starts_with("aegis_") && grant.token.len() == 49);
        assert!(!format!("{grant:?}").contains(grant.token.as_str()));
        assert_eq!(scope_of(&table, &grant.token), Some(Scope::Operate));
        let taken = tokens.create(order("ci", Scope::Read)).await.unwrap_err();
        assert_eq!(taken.code(), ErrorCode::Conflict);
        tokens.write_uses().await;
        drop((tokens, table));

        let (tokens, table) = reopened(directory.path()).await;
        assert_eq!(scope_of(&table, &grant.token), Some(Scope::Operate));
        let listed = tokens.list();
        assert_eq!((listed.len(), listed[0].state), (1, AccessTokenState::Valid));
        assert!(listed[0].used_at.is_some());
        tokens.revoke(&name("ci")).await.unwrap();
        assert_eq!(scope_of(&table, &grant.token), None);
        assert_eq!(tokens.revoke(&name("ci")).await.unwrap_err().code(), ErrorCode::NotFound);
        assert!(tokens.list().is_empty());
        tokens.create(order("ci", Scope::Read)).await.unwrap();
        assert_eq!(scope_of(&table, &grant.token), None, "the name is free, the old value stays dead");
    }

    /// The data directory is free once the last writer has ended.
    async fn reopened(directory: &std::path::Path) -> (AccessTokens, TokenTable) {
        while DataDirectory::own(directory).is_err() {
            tokio::task::yield_now().await;
        }
        opened(directory).await
    }

    #[tokio::test]
    async fn lifetimes_have_bounds_and_values_are_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let (tokens, table) = opened(directory.path()).await;
        for lifetime in [Duration::ZERO, LIFETIME_MAX + Duration::from_secs(1)] {
            let order = AccessTokenOrder { lifetime, ..order("a", Scope::Read) };
            assert_eq!(tokens.create(order).await.unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        let short = AccessTokenOrder { lifetime: Duration::from_millis(1), ..order("a", Scope::Read) };
        let grant = tokens.create(short).await.unwrap();
        while tokens.list()[0].state == AccessTokenState::Valid {
            tokio::task::yield_now().await;
        }
        assert_eq!(scope_of(&table, &grant.token), None);
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            let value = grant.token.as_bytes();
            assert!(!bytes.windows(value.len()).any(|window| window == value));
        }
    }
}
