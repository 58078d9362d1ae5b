//! Rate limits for unauthenticated calls, per source address.
//!
//! Loopback and the SSH link are exempt, since their callers are on this machine or are a single node. They are limited
//! by the number of concurrent calls.

use std::{net::IpAddr, num::NonZeroU32};

use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::NodeId,
};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::places::network_of;

/// Burst for a rack of nodes behind one address after a power cut: two calls each.
const BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
const CALLS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// Maximum number of concurrent calls. Each costs one or two signature checks, and a signature.
const UNDER_WAY_MAX: usize = 64;
/// Burst of a member. A node beats every 30 s, with a few more calls after a drain or a push.
const MEMBER_BURST: NonZeroU32 = NonZeroU32::new(100).unwrap();
const MEMBER_CALLS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();
/// Addresses that are remembered before quiet addresses are forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Limits {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    by_member: DefaultKeyedRateLimiter<NodeId>,
    /// Attestations need no signature by the controller, so they do not wait for calls that do.
    attesting: Semaphore,
    under_way: Semaphore,
}

/// Call that needs no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenCall {
    Attest,
    /// Costs a signature, which may take an external signer several seconds.
    Signed,
}

impl Default for Limits {
    fn default() -> Self {
        let quota = Quota::per_second(CALLS_PER_SECOND).allow_burst(BURST);
        let members = Quota::per_second(MEMBER_CALLS_PER_SECOND).allow_burst(MEMBER_BURST);
        Self {
            by_address: RateLimiter::keyed(quota),
            by_member: RateLimiter::keyed(members),
            attesting: Semaphore::new(UNDER_WAY_MAX),
            under_way: Semaphore::new(UNDER_WAY_MAX),
        }
    }
}

impl Limits {
    /// Admits a call of an unauthenticated caller, or tells it to retry later. `from` is `None` for exempt connections.
    pub async fn admit(&self, call: OpenCall, from: Option<IpAddr>) -> Result<SemaphorePermit<'_>> {
        if let Some(address) = from {
            if self.by_address.len() > ADDRESSES_MAX {
                self.by_address.retain_recent();
            }
            self.by_address.check_key(&network_of(address)).map_err(|_| {
                Error::new(ErrorCode::ResourceExhausted, "this address attests too often")
                    .remedy("wait a second; workers try again by themselves")
            })?;
        }
        let places = match call {
            OpenCall::Attest => &self.attesting,
            OpenCall::Signed => &self.under_way,
        };
        places.acquire().await.map_err(|_| Error::internal("the limits are gone"))
    }

    /// Admits a member's call. Each member has its own budget.
    pub fn admit_member(&self, node_id: &NodeId) -> Result<()> {
        if self.by_member.len() > ADDRESSES_MAX {
            self.by_member.retain_recent();
        }
        self.by_member.check_key(node_id).map_err(|_| {
            Error::new(ErrorCode::ResourceExhausted, format!("node {node_id} calls too often"))
                .remedy("wait a second between calls")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_limited_and_others_are_not() {
        let limits = Limits::default();
        let noisy: IpAddr = "192.0.2.1".parse().unwrap();
        let mut refused = None;
        for _ in 0..=BURST.get() + CALLS_PER_SECOND.get() {
            refused = limits.admit(OpenCall::Attest, Some(noisy)).await.err().or(refused);
        }
        assert_eq!(refused.expect("the burst is over").code(), ErrorCode::ResourceExhausted);
        drop(limits.admit(OpenCall::Attest, Some("192.0.2.2".parse().unwrap())).await.unwrap());
        for _ in 0..1_000 {
            drop(limits.admit(OpenCall::Signed, None).await.unwrap());
        }
    }

    #[test]
    fn member_has_a_budget_of_its_own() {
        let limits = Limits::default();
        let [noisy, quiet] = ["a", "b"].map(|id| NodeId::parse(id).unwrap());
        let calls = MEMBER_BURST.get() + MEMBER_CALLS_PER_SECOND.get();
        let refused = (0..=calls).find_map(|_| limits.admit_member(&noisy).err());
        assert_eq!(refused.expect("the burst is over").code(), ErrorCode::ResourceExhausted);
        limits.admit_member(&quiet).unwrap();
    }
}
