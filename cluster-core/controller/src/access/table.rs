//! The tokens that count now, in memory, for every door.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aegis_identity::sha256;
use aegis_types::{
    caller::Identity,
    clock::now_ms,
    error::{Error, ErrorCode, Result},
    ids::AccessTokenName,
    scope::Scope,
};
use arc_swap::ArcSwap;
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

/// SHA-256 of a value.
pub(super) type Digest = [u8; 32];

/// Longest wait between two looks at a token's expiry.
const EXPIRY_STEP_MAX: Duration = Duration::from_secs(60);

/// Stands for "never used".
const NEVER: i64 = 0;

/// A token that was made and not revoked.
#[derive(Debug)]
pub(super) struct Known {
    pub name: AccessTokenName,
    pub digest: Digest,
    pub scope: Scope,
    pub created_at_ms: i64,
    pub expires_at_ms: i64,
    used_at_ms: AtomicI64,
    written_at_ms: AtomicI64,
    /// Cancelled when the token is revoked.
    revoked: CancellationToken,
}

impl Known {
    pub fn new(
        name: AccessTokenName,
        digest: Digest,
        scope: Scope,
        [created_at_ms, expires_at_ms]: [i64; 2],
        used_at_ms: Option<i64>,
    ) -> Self {
        let used = used_at_ms.unwrap_or(NEVER);
        let (used_at_ms, written_at_ms) = (AtomicI64::new(used), AtomicI64::new(used));
        let revoked = CancellationToken::new();
        Self { name, digest, scope, created_at_ms, expires_at_ms, used_at_ms, written_at_ms, revoked }
    }

    pub fn used_at_ms(&self) -> Option<i64> {
        Some(self.used_at_ms.load(Ordering::Relaxed)).filter(|at| *at != NEVER)
    }

    pub fn is_expired(&self, now_ms: i64) -> bool {
        now_ms >= self.expires_at_ms
    }

    /// The last use, where it is not written down yet.
    pub fn unwritten_use(&self) -> Option<i64> {
        self.used_at_ms().filter(|at| *at > self.written_at_ms.load(Ordering::Relaxed))
    }

    pub fn note_written(&self, at_ms: i64) {
        self.written_at_ms.fetch_max(at_ms, Ordering::Relaxed);
    }
}

/// Bearer of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub identity: Identity,
    pub scope: Scope,
}

/// How long a token that was accepted stays valid.
#[derive(Debug, Clone, Default)]
pub struct Validity(Option<Arc<Known>>);

impl Validity {
    /// Completes when the token has expired or was revoked. The data directory's own token does neither.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn ended(&self) {
        let Some(known) = &self.0 else { return std::future::pending().await };
        loop {
            let left = u64::try_from(known.expires_at_ms.saturating_sub(now_ms())).unwrap_or(0);
            if left == 0 || known.revoked.is_cancelled() {
                return;
            }
            // In steps, since the wall clock that decides on the expiry may be set.
            let step = Duration::from_millis(left).min(EXPIRY_STEP_MAX);
            tokio::select! {
                () = known.revoked.cancelled() => return,
                () = tokio::time::sleep(step) => {}
            }
        }
    }
}

/// Handle on the table of valid tokens. All clones see a change at once. The default table refuses every token.
#[derive(Clone, Default)]
pub struct TokenTable(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Digest of the data directory's own token.
    local: Option<Digest>,
    known: ArcSwap<HashMap<Digest, Arc<Known>>>,
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable").field("tokens", &self.0.known.load().len()).finish_non_exhaustive()
    }
}

impl TokenTable {
    /// With the data directory's own token, where there is one.
    pub fn new(local: Option<&str>) -> Self {
        let local = local.map(|token| sha256(token.as_bytes()));
        Self(Arc::new(Shared { local, known: ArcSwap::default() }))
    }

    /// Returns the bearer of the token in an `Authorization` header.
    ///
    /// # Errors
    ///
    /// `Unauthenticated`, with the same words for every token.
    pub fn check(&self, authorization: Option<&str>) -> Result<Bearer> {
        self.check_at(authorization, now_ms())
    }

    /// Returns the bearer of the token and how long the token stays valid, for an answer that lasts.
    ///
    /// # Errors
    ///
    /// Returns `Unauthenticated` if the token is missing, unknown, expired or revoked.
    pub fn check_lasting(&self, authorization: Option<&str>) -> Result<(Bearer, Validity)> {
        let bearer = self.check(authorization)?;
        let digest = self::bearer(authorization).map(|token| sha256(token.as_bytes()));
        let known = digest.and_then(|digest| self.0.known.load().get(&digest).cloned());
        Ok((bearer, Validity(known)))
    }

    fn check_at(&self, authorization: Option<&str>, now_ms: i64) -> Result<Bearer> {
        let digest = sha256(bearer(authorization).ok_or_else(refused)?.as_bytes());
        if self.0.local.is_some_and(|local| bool::from(local.ct_eq(&digest))) {
            return Ok(Bearer { identity: Identity::LocalToken, scope: Scope::Admin });
        }
        // Looked up by digest: the time it takes tells of digests at most, and none of them leads to a value.
        let known = self.0.known.load().get(&digest).cloned().filter(|known| !known.is_expired(now_ms));
        let known = known.ok_or_else(refused)?;
        known.used_at_ms.fetch_max(now_ms, Ordering::Relaxed);
        Ok(Bearer { identity: Identity::Token(known.name.clone()), scope: known.scope })
    }

    pub(super) fn all(&self) -> Vec<Arc<Known>> {
        self.0.known.load().values().cloned().collect()
    }

    /// Takes the place of all. Only the one who changes tokens calls this, one change at a time.
    pub(super) fn replace(&self, known: impl IntoIterator<Item = Arc<Known>>) {
        let known: HashMap<_, _> = known.into_iter().map(|known| (known.digest, known)).collect();
        let before = self.0.known.swap(Arc::new(known.clone()));
        for (_, gone) in before.iter().filter(|(digest, _)| !known.contains_key(*digest)) {
            gone.revoked.cancel();
        }
    }
}

fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, value) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(value.trim())
}

fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "the bearer token is missing or not valid").remedy(
        "send Authorization: Bearer with a token that `aegis token create NAME --scope read` printed, or with \
         the one in http.token of the data directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TokenTable {
        let table = TokenTable::new(Some("local"));
        let known = |name: &str, value: &str, scope| {
            let name = AccessTokenName::parse(name).unwrap();
            Arc::new(Known::new(name, sha256(value.as_bytes()), scope, [10, 100], None))
        };
        table.replace([known("looks", "a", Scope::Read), known("works", "b", Scope::Operate)]);
        table
    }

    #[test]
    fn a_bearer_is_known_by_its_token_until_the_token_ends() {
        let table = table();
        let scope = |header: &str, now| table.check_at(Some(header), now).map(|bearer| bearer.scope).ok();
        assert_eq!(scope("Bearer local", 99), Some(Scope::Admin));
        assert_eq!(scope("bearer  a ", 99), Some(Scope::Read));
        assert_eq!(scope("Bearer b", 99), Some(Scope::Operate));
        assert_eq!(scope("Bearer b", 100), None);
        assert_eq!(scope("Bearer local", 100), Some(Scope::Admin));
        let named = table.check_at(Some("Bearer a"), 50).unwrap().identity;
        assert_eq!(named.to_string(), "token looks");
    }

    #[test]
    fn missing_unknown_expired_and_revoked_sound_alike() {
        let table = table();
        let words = |header: Option<&str>, now| {
            let error = table.check_at(header, now).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unauthenticated);
            error.to_string()
        };
        let missing = words(None, 50);
        for wrong in ["", "Bearer", "Bearer ", "Basic a", "a", "Bearer A", "Bearer a b", "Bearer c"] {
            assert_eq!(words(Some(wrong), 50), missing, "{wrong}");
        }
        assert_eq!(words(Some("Bearer a"), 100), missing);
        table.replace([]);
        assert_eq!(words(Some("Bearer a"), 50), missing);
        assert!(TokenTable::default().check_at(Some("Bearer "), 50).is_err());
    }

    #[tokio::test]
    async fn validity_ends_with_revocation_and_expiry() {
        let table = TokenTable::new(Some("local"));
        let later = now_ms() + 3_600_000;
        let known = |value: &str, expires_at_ms| {
            let name = AccessTokenName::parse(format!("t-{value}")).unwrap();
            Arc::new(Known::new(name, sha256(value.as_bytes()), Scope::Read, [10, expires_at_ms], None))
        };
        let kept = known("kept", later);
        table.replace([kept.clone(), known("gone", later)]);
        let validity = |token: &str| table.check_lasting(Some(&format!("Bearer {token}"))).unwrap().1;
        let (local, kept_one, gone) = (validity("local"), validity("kept"), validity("gone"));
        let pending = |validity: &Validity| {
            let waker = std::task::Waker::noop();
            std::pin::pin!(validity.ended()).poll(&mut std::task::Context::from_waker(waker)).is_pending()
        };
        assert!([&local, &kept_one, &gone].into_iter().all(pending));
        table.replace([kept]);
        gone.ended().await;
        assert!(pending(&kept_one) && pending(&local));
        Validity(Some(known("old", 20))).ended().await;
    }

    #[test]
    fn a_use_is_noted_until_it_is_written() {
        let table = table();
        table.check_at(Some("Bearer a"), 42).unwrap();
        assert!(table.check_at(Some("Bearer b"), 100).is_err());
        let used: Vec<_> = table.all().into_iter().filter_map(|known| known.unwritten_use()).collect();
        assert_eq!(used, [42]);
        for known in table.all() {
            known.note_written(42);
            assert_eq!(known.unwritten_use(), None);
        }
    }
}
