//! How much strangers may ask: the calls that need no token are limited by address.
//!
//! Loopback and the SSH link are excepted: who comes in there is on this machine, or is one node. For
//! them the bound is how many may be under way at once.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{Error, ErrorCode, Result};

/// A rack of nodes behind one address comes back after a power cut: two calls each.
const BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
const CALLS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// Each costs a signature check or two, and a signature.
const UNDER_WAY_MAX: usize = 64;
/// Addresses that are remembered before those that have been quiet are forgotten.
const ADDRESSES_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Limits {
    by_address: DefaultKeyedRateLimiter<IpAddr>,
    under_way: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        let quota = Quota::per_second(CALLS_PER_SECOND).allow_burst(BURST);
        Self { by_address: RateLimiter::keyed(quota), under_way: Semaphore::new(UNDER_WAY_MAX) }
    }
}

impl Limits {
    /// Lets a call of a stranger in, or says to come back later. `from` is None for the unlimited ways.
    pub async fn admit(&self, from: Option<IpAddr>) -> Result<SemaphorePermit<'_>> {
        if let Some(address) = from {
            if self.by_address.len() > ADDRESSES_MAX {
                self.by_address.retain_recent();
            }
            self.by_address.check_key(&network_of(address)).map_err(|_| {
                Error::new(ErrorCode::ResourceExhausted, "this address attests too often")
                    .remedy("wait a second; workers try again by themselves")
            })?;
        }
        self.under_way.acquire().await.map_err(|_| Error::internal("the limits are gone"))
    }
}

/// One customer of an IPv6 network has a /64 to choose addresses from.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
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
            refused = limits.admit(Some(noisy)).await.err().or(refused);
        }
        assert_eq!(refused.expect("the burst is over").code(), ErrorCode::ResourceExhausted);
        drop(limits.admit(Some("192.0.2.2".parse().unwrap())).await.unwrap());
        for _ in 0..1_000 {
            drop(limits.admit(None).await.unwrap());
        }
    }

    #[test]
    fn addresses_of_one_network_count_together() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::5"), of("2001:db8:0:1:ffff::1"));
        assert_ne!(of("2001:db8:0:1::5"), of("2001:db8:0:2::5"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
