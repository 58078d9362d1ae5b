//! Verifies host keys by the stored pin, the known_hosts files and the policy, in that order. A revoked key is always
//! rejected.

use std::time::SystemTime;

use aegis_types::error::{Error, ErrorCode, Result};
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use super::{
    host_certificate::vouches,
    known_hosts::{KnownHosts, Verdict},
    target::{Endpoint, HostAddress},
};

/// Policy for a host whose key is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKeyPolicy {
    /// A person must approve the host first.
    #[default]
    Strict,
    /// Accept the key, and pin it from then on.
    AcceptNew,
}

/// Host key in the form in which it is pinned, shown and compared.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct HostKey {
    /// `ssh-ed25519 AAAA…`
    pub public_key: String,
    /// `SHA256:…`
    pub fingerprint: String,
}

impl HostKey {
    pub fn of(key: &PublicKey) -> Result<Self> {
        let mut bare = key.clone();
        bare.set_comment("");
        let public_key = bare
            .to_openssh()
            .map_err(|error| Error::internal("a host's key cannot be written down").source(error))?;
        Ok(Self { public_key, fingerprint: fingerprint(key) })
    }

    fn parsed(&self) -> Result<PublicKey> {
        PublicKey::from_openssh(&self.public_key)
            .map_err(|error| Error::new(ErrorCode::Storage, "a pinned host key cannot be read").source(error))
    }
}

pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Inputs of the decision.
#[derive(Debug, Clone, Default)]
pub struct HostKeyRules {
    pub pinned: Option<HostKey>,
    pub known: KnownHosts,
    pub policy: HostKeyPolicy,
    /// Setting that would have accepted the key but is ignored; mentioned in the rejection of an unknown key.
    pub unheeded: Option<String>,
}

/// Accepted key. `New` means that the policy accepted the key and that it must be pinned now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    Pinned,
    Known,
    New,
}

impl HostKeyRules {
    pub fn decide(&self, host: &Endpoint, offered: &PublicKey) -> Result<Accepted> {
        let verdict = self.known.verdict(host.address.as_str(), host.port, offered);
        if verdict == Verdict::Revoked {
            return Err(revoked(host, offered));
        }
        if let Some(pinned) = &self.pinned {
            let known = pinned.parsed()?;
            if known.key_data() == offered.key_data() {
                return Ok(Accepted::Pinned);
            }
            return Err(changed(host, offered, &[known]));
        }
        match (verdict, self.policy) {
            (Verdict::Known, _) => Ok(Accepted::Known),
            (Verdict::Changed { known }, _) => Err(changed(host, offered, &known)),
            (Verdict::Unknown, HostKeyPolicy::AcceptNew) => Ok(Accepted::New),
            (Verdict::Unknown, HostKeyPolicy::Strict) => {
                Err(unknown(host, offered, self.unheeded.as_deref()))
            }
            (Verdict::Revoked, _) => Err(revoked(host, offered)),
        }
    }

    /// Decides on a host certificate. It counts if no key is pinned and an authority of known_hosts signed it.
    /// Otherwise its key is judged as a plain key. A revoked authority does not count.
    pub fn decide_certificate(&self, host: &Endpoint, offered: &Certificate) -> Result<Accepted> {
        let key = PublicKey::from(offered.public_key().clone());
        let verdict = |key: &PublicKey| self.known.verdict(host.address.as_str(), host.port, key);
        let signer = PublicKey::from(offered.signature_key().clone());
        let revoked = [&key, &signer].into_iter().any(|key| verdict(key) == Verdict::Revoked);
        let vouched = || vouches(offered, &self.authorities(host), host, SystemTime::now());
        match self.pinned.is_none() && !revoked && vouched() {
            true => Ok(Accepted::Known),
            false => self.decide(host, &key),
        }
    }

    /// Returns the authorities for a host. Empty if a certificate would not count, so that no certificate is requested.
    pub fn authorities(&self, host: &Endpoint) -> Vec<&PublicKey> {
        match self.pinned {
            Some(_) => Vec::new(),
            None => self.known.authorities(host.address.as_str(), host.port),
        }
    }

    /// Returns the key types to request first: those of the known keys.
    pub fn preferred(&self, host: &Endpoint) -> Vec<Algorithm> {
        match self.pinned.as_ref().and_then(|pinned| pinned.parsed().ok()) {
            Some(pinned) => vec![pinned.algorithm()],
            None => self.known.key_types(host.address.as_str(), host.port),
        }
    }
}

/// Returns the name of this host as an argument of `aegis host`.
pub fn host_argument(host: &HostAddress, port: u16) -> String {
    if port == super::target::SSH_PORT_DEFAULT { host.to_string() } else { format!("{host} --port {port}") }
}

fn unknown(host: &Endpoint, offered: &PublicKey, unheeded: Option<&str>) -> Error {
    let unheeded = unheeded.map(|what| format!("; {what}")).unwrap_or_default();
    Error::new(
        ErrorCode::HostKeyUnknown,
        format!(
            "the key of {host} is not known: it offers {} {}{unheeded}",
            offered.algorithm(),
            fingerprint(offered)
        ),
    )
    .remedy(format!(
        "compare the fingerprint with the host's own (ssh-keygen -lf on it), then run: aegis host approve {}",
        host_argument(&host.name, host.port)
    ))
}

fn changed(host: &Endpoint, offered: &PublicKey, known: &[PublicKey]) -> Error {
    let known: Vec<String> =
        known.iter().map(|key| format!("{} {}", key.algorithm(), fingerprint(key))).collect();
    Error::new(
        ErrorCode::HostKeyChanged,
        format!(
            "the key of {host} has changed: it offers {} {}, known is {}; nothing was sent",
            offered.algorithm(),
            fingerprint(offered),
            known.join(", ")
        ),
    )
    .remedy(format!(
        "somebody may be between you and the host; if the change is meant, run: aegis host forget {0} (and \
         ssh-keygen -R for known_hosts), then: aegis host approve {0}",
        host_argument(&host.name, host.port)
    ))
}

fn revoked(host: &Endpoint, offered: &PublicKey) -> Error {
    Error::new(
        ErrorCode::HostKeyChanged,
        format!("the key {} of {host} is revoked in known_hosts; nothing was sent", fingerprint(offered)),
    )
    .remedy("give the host a new key, then approve it")
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMCA4Iq3L0iCNv/+3Slh0vMiz/xEaxfdjy1Q9BXq+yO5";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFH2GCM9zzJjNPC9I+zobNdBrlPuDjYCjDAQMTF3mip7";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }
    fn host(port: u16) -> Endpoint {
        Endpoint::direct(&HostAddress::parse("edge1", false).unwrap(), port)
    }
    fn rules(pinned: Option<&str>, known: &str, policy: HostKeyPolicy) -> HostKeyRules {
        HostKeyRules {
            pinned: pinned.map(|text| HostKey::of(&key(text)).unwrap()),
            known: KnownHosts::parse(known),
            policy,
            ..Default::default()
        }
    }

    #[test]
    fn the_pin_decides_alone_unless_the_key_is_revoked() {
        let known_b = format!("edge1 {B}");
        let strict = rules(Some(A), &known_b, HostKeyPolicy::Strict);
        assert_eq!(strict.decide(&host(22), &key(A)).unwrap(), Accepted::Pinned);
        assert_eq!(strict.decide(&host(22), &key(B)).unwrap_err().code(), ErrorCode::HostKeyChanged);
        let revoked = rules(Some(A), &format!("@revoked * {A}"), HostKeyPolicy::AcceptNew);
        assert_eq!(revoked.decide(&host(22), &key(A)).unwrap_err().code(), ErrorCode::HostKeyChanged);
    }

    #[test]
    fn an_unknown_key_names_its_fingerprint_and_the_command() {
        let error = rules(None, "", HostKeyPolicy::Strict).decide(&host(2222), &key(A)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::HostKeyUnknown);
        let text = error.to_string();
        assert!(text.contains("SHA256:") && text.contains("aegis host approve edge1 --port 2222"), "{text}");
        let new = rules(None, "", HostKeyPolicy::AcceptNew).decide(&host(22), &key(A)).unwrap();
        assert_eq!(new, Accepted::New);
    }

    #[test]
    fn a_changed_key_stops_under_every_policy_and_names_both() {
        let known = format!("edge1 {A}");
        for policy in [HostKeyPolicy::Strict, HostKeyPolicy::AcceptNew] {
            let error = rules(None, &known, policy).decide(&host(22), &key(B)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::HostKeyChanged);
            assert!(error.message().contains(&fingerprint(&key(A))));
            assert!(error.message().contains(&fingerprint(&key(B))));
        }
    }
}
