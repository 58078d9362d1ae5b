//! Ids and names. Each is a newtype that only parsing can build, so a value of the type is a
//! checked value; a bad one is an error that names the rule, never a default.

use std::{fmt, str::FromStr};

use crate::{
    error::{Error, ErrorCode, Result},
    text::shown,
};

/// Longest DNS label (RFC 1035, section 2.3.4).
const LABEL_LENGTH_MAX: usize = 63;
/// Longest user name that `useradd` accepts.
const USER_LENGTH_MAX: usize = 32;

/// `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`: a DNS label, which a UUID in lower case is as well.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= LABEL_LENGTH_MAX
        && bytes.iter().copied().all(inner)
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

/// A tag is a label that may also hold `.`, `_`, `=` and `/` inside ("zone=eu/1").
fn is_tag(text: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = |byte: u8| edge(byte) || matches!(byte, b'-' | b'.' | b'_' | b'=' | b'/');
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= LABEL_LENGTH_MAX
        && bytes.iter().copied().all(inner)
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
}

/// POSIX portable user name, as `useradd` takes it.
fn is_user(text: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let inner = |byte: u8| first(byte) || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let bytes = text.as_bytes();
    !bytes.is_empty() && bytes.len() <= USER_LENGTH_MAX && first(bytes[0]) && bytes.iter().copied().all(inner)
}

/// `GPU-<uuid>`, `MIG-<uuid>`, and the form of drivers before 470: `MIG-GPU-<uuid>/<gpu>/<compute>`.
fn is_gpu_uuid(text: &str) -> bool {
    const BYTES_MAX: usize = 80;
    let rest = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("MIG-"));
    let rest = rest.map_or("", |rest| rest.strip_prefix("GPU-").unwrap_or(rest));
    let inner = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'/';
    text.len() <= BYTES_MAX && !rest.is_empty() && rest.bytes().all(inner)
}

/// Ten characters of Crockford's base 32 in lower case, where no letter is taken for a digit: 50 random
/// bits. The chance that a new id is among a million others is 1 in 10^9, and the store refuses a second one.
fn random_word() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    // The last eight bytes of a UUID are random but for two bits at their beginning.
    let (_, bits) = uuid::Uuid::new_v4().as_u64_pair();
    (0..10).map(|at| char::from(ALPHABET[(bits >> (5 * at)) as usize & 31])).collect()
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            pub fn parse(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                if $check(&text) {
                    return Ok(Self(text));
                }
                Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("{} \"{}\" is not valid", $what, shown(&text)),
                )
                .remedy($rule))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(from)?;
                Self::parse(text).map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string" })
            }
        }
    };
}

name!(
    /// A node of the cluster: a DNS label or a UUID, compared bytewise.
    NodeId, "node id", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
name!(
    /// The cluster: minted once by its first controller.
    ClusterId, "cluster id", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
name!(
    /// One run of one agent: `exec-` and ten characters, short enough to be typed again.
    ExecutionId, "execution id", is_label,
    "an execution id is what submit_execution returned, like exec-7k2m9q4x8w"
);
name!(
    /// One deployment: `comet-edge-node-<milliseconds>-<counter>`.
    DeploymentId, "deployment id", is_label,
    "a deployment id is what deploy_edge_node returned, like comet-edge-node-1711446000000-1"
);
name!(
    /// Many deployments begun by one call: `rollout-<milliseconds>-<counter>`.
    RolloutId, "rollout id", is_label,
    "a rollout id is what deploy_edge_nodes returned, like rollout-1711446000000-1"
);
name!(
    /// One attested connection of a node; a newer one fences the older.
    SessionId, "session id", is_label, "a session id is a UUID in lower case"
);
name!(
    /// One command to a node, acknowledged by the node's next heartbeat.
    CommandId, "command id", is_label, "a command id is a UUID in lower case"
);
name!(
    /// The public half of an enrolment token.
    EnrolmentTokenId, "enrolment token id", is_label,
    "an enrolment token looks like <id>.<secret>.<fingerprint>"
);
name!(
    /// A tenant, as configuration layers are keyed.
    TenantSlug, "tenant", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
name!(
    /// A registered agent, without its version.
    AgentName, "agent", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
name!(
    /// A hook of the operator: a DNS label.
    HookName, "hook", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);

name!(
    /// A token that a program calls us with.
    AccessTokenName, "token name", is_label,
    "use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"
);
name!(
    /// A label that placement matches: `gpu`, `zone=eu`.
    Tag, "tag", is_tag,
    "use 1 to 63 of a-z, 0-9, '-', '.', '_', '=' and '/', beginning and ending with a letter or digit"
);
name!(
    /// A GPU or a MIG device, as its driver names it: the same after a restart.
    GpuUuid, "GPU", is_gpu_uuid,
    "name it as `nvidia-smi -L` does, like GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
);
name!(
    /// A login name on an edge host.
    UserName, "ssh user", is_user,
    "use a POSIX user name: 1 to 32 of a-z, 0-9, '_', '-' and '.', beginning with a letter or '_'"
);

impl ExecutionId {
    pub fn mint() -> Self {
        Self(format!("exec-{}", random_word()))
    }
}

impl SessionId {
    pub fn mint() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}

impl CommandId {
    pub fn mint() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

impl ClusterId {
    pub fn mint() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }
}

impl NodeId {
    /// Returns a new id for a node whose configuration has no name. The data directory keeps it.
    pub fn mint() -> Self {
        Self(format!("node-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]))
    }

    /// The label of a host argument: "Edge1.example.com" gives `edge1-example-com`.
    pub fn from_host(host: &str) -> Result<Self> {
        let mut label: String = host
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(LABEL_LENGTH_MAX)
            .collect();
        while label.ends_with('-') {
            label.pop();
        }
        Self::parse(label.trim_start_matches('-').to_owned())
    }
}

impl DeploymentId {
    /// The shape that the seed document published: start in milliseconds, then a counter.
    pub fn mint(now_ms: i64, counter: u64) -> Self {
        Self(format!("comet-edge-node-{now_ms}-{counter}"))
    }

    /// When it was made: milliseconds, then the counter. Zero for an id of another shape.
    pub fn made(&self) -> (u64, u64) {
        let mut numbers = self.0.rsplit('-').map(|part| part.parse().unwrap_or(0));
        let counter = numbers.next().unwrap_or(0);
        (numbers.next().unwrap_or(0), counter)
    }
}

impl RolloutId {
    pub fn mint(now_ms: i64, counter: u64) -> Self {
        Self(format!("rollout-{now_ms}-{counter}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_are_labels_compared_bytewise() {
        for good in ["a", "edge-1", "0198c0de-0000-7000-8000-000000000000", &"a".repeat(63)] {
            assert!(NodeId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "a\0", "é", "a b", &"a".repeat(64)] {
            let error = NodeId::parse(bad).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn rejected_value_is_shown_bounded_without_control_characters() {
        let error = NodeId::parse(format!("\u{1b}[31m{}", "x".repeat(10_000))).unwrap_err();
        assert!(error.to_string().len() < 400);
        assert!(!error.to_string().contains('\u{1b}'));
    }

    #[test]
    fn a_node_id_is_made_from_a_host() {
        assert_eq!(NodeId::from_host("192.168.1.50").unwrap().as_str(), "192-168-1-50");
        assert_eq!(NodeId::from_host("Edge1.Example.com").unwrap().as_str(), "edge1-example-com");
        assert_eq!(NodeId::from_host("fe80::1").unwrap().as_str(), "fe80--1");
        assert!(NodeId::from_host("::").is_err());
    }

    #[test]
    fn execution_ids_are_short_and_differ() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| ExecutionId::mint()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            assert_eq!(id.as_str().len(), 15);
            assert_eq!(ExecutionId::parse(id.as_str()).unwrap(), id);
            assert!(!id.as_str()[5..].contains(['i', 'l', 'o', 'u']), "{id}");
        }
    }

    #[test]
    fn users_and_tags_keep_their_grammar() {
        for bad in ["root;reboot", "-l", "a\nb", "", &"a".repeat(100)] {
            assert!(UserName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(UserName::parse("ubuntu").is_ok());
        assert!(Tag::parse("zone=eu/1").is_ok());
        assert!(Tag::parse("GPU").is_err());
        for good in [
            "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
            "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
            "MIG-GPU-e91edf3b-b297-37c1-a2a7-7601c3238fa2/1/0",
        ] {
            assert_eq!(GpuUuid::parse(good).unwrap().as_str(), good);
        }
        let long = format!("GPU-{}", "0".repeat(80));
        for bad in ["", "0", "all", "GPU-", "MIG-GPU-", "GPU-1,2", "GPU-????????-????", "gpu-12", &long] {
            assert!(GpuUuid::parse(bad).is_err(), "{bad}");
        }
    }
}
