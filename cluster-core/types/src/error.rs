//! The one error type of the crate and its closed set of codes.
//!
//! A code exists where a caller could act differently. Each surface maps the code once: gRPC in
//! `rpc::status`, HTTP and the command line's exit status in the binary. The message says what is
//! wrong and where; the remedy says what to do; the source is for the log alone and is never shown
//! to a client.

use std::{error::Error as StdError, fmt};

pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $code:ident => $name:literal),+ $(,)?) => {
        /// Kind of an error. A code exists where a caller could act differently.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $code),+ }

        impl ErrorCode {
            /// Every code, in the order of their definition.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$code),+];

            /// The stable name on every surface.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorCode::$code => $name),+ }
            }

            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(ErrorCode::$code),)+ _ => None }
            }
        }
    };
}

error_codes! {
    /// An argument is out of its grammar or range.
    InvalidArgument => "InvalidArgument",
    /// The configuration file cannot be used.
    ConfigInvalid => "ConfigInvalid",
    /// No such deployment, node, execution, host.
    NotFound => "NotFound",
    /// It exists with another content (idempotency key, pinned identity, owned data directory).
    Conflict => "Conflict",
    /// The state does not allow it (a finished execution, a node that is being removed).
    FailedPrecondition => "FailedPrecondition",
    /// No or a wrong bearer token.
    Unauthenticated => "Unauthenticated",
    /// The caller may not do this.
    Forbidden => "Forbidden",
    /// A bound is reached: queue, sessions, size.
    ResourceExhausted => "ResourceExhausted",
    /// A part that is needed does not answer; trying again may help.
    Unavailable => "Unavailable",
    /// The time allowed ran out.
    Timeout => "Timeout",
    /// A caller cancelled it.
    Cancelled => "Cancelled",
    /// A named feature that this version does not offer.
    NotOffered => "NotOffered",
    /// The database refused or failed.
    Storage => "Storage",
    /// A defect of this program.
    Internal => "Internal",

    /// A person has not admitted this host yet.
    HostNotApproved => "HostNotApproved",
    /// The host's key is not known.
    HostKeyUnknown => "HostKeyUnknown",
    /// The host offers another key than the one known: everything stops.
    HostKeyChanged => "HostKeyChanged",
    /// No name, no route, refused, or silent.
    HostUnreachable => "HostUnreachable",
    /// The host refused our keys.
    HostAuthentication => "HostAuthentication",
    /// The host lacks something a deployment needs.
    HostCheckFailed => "HostCheckFailed",
    /// Another deployment holds the host.
    HostBusy => "HostBusy",
    /// A step on the host failed.
    DeploymentFailed => "DeploymentFailed",

    /// No node fits.
    NoNodeFits => "NoNodeFits",
    /// The image is neither on the node nor to be had.
    ImageNotFound => "ImageNotFound",
    /// The container engine does not answer or refused.
    Engine => "Engine",
    /// The container exited with another code than 0.
    ContainerFailed => "ContainerFailed",
    /// The container was killed for its memory limit.
    OutOfMemory => "OutOfMemory",
    /// An order needs content that the node has not: it is sent, and the order comes again.
    ContentMissing => "ContentMissing",
    /// A call that disrupts something waits for a yes.
    Unconfirmed => "Unconfirmed",
    /// The outcome is unknown and can no longer be learned.
    Lost => "Lost",

    /// Published: the node security token's time is over.
    TokenExpired => "TokenExpired",
    /// Published: this nonce or sequence was seen before.
    NonceReplay => "NonceReplay",
    /// Published: the signature does not match the pinned key.
    InvalidSignature => "InvalidSignature",
    /// Published: the certificate is not from a trusted CA.
    UntrustedCa => "UntrustedCA",
    /// Another key than the one pinned to this node id.
    KeyMismatch => "KeyMismatch",
    /// Another controller than the one that this node has joined.
    ControllerMismatch => "ControllerMismatch",
    EnrolmentInvalid => "EnrolmentInvalid",
    EnrolmentExpired => "EnrolmentExpired",
    ChallengeExpired => "ChallengeExpired",
    /// Issued too far from the receiver's time.
    ClockSkew => "ClockSkew",
    /// The node was removed; only a new enrolment brings it back.
    NodeRemoved => "NodeRemoved",
    /// The session is fenced by a newer one, or unknown to this controller: attest again.
    SessionUnknown => "SessionUnknown",
    /// A node may write only itself and what is assigned to it.
    NotYours => "NotYours",
    /// The payload has no `SealContext`.
    UnsealedContext => "UnsealedContext",
    /// From a controller of an earlier epoch, or an attempt that a newer one fences.
    Fenced => "Fenced",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let name = <String as serde::Deserialize>::deserialize(from)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("no error code {name}")))
    }
}

impl schemars::JsonSchema for ErrorCode {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

/// An error: what failed and where (`message`), what to do (`remedy`), and its cause for the log (`source`).
#[derive(Debug)]
pub struct Error {
    code: ErrorCode,
    message: String,
    remedy: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: None, source: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("there is no {what} \"{}\"", crate::text::shown(id)))
            .remedy(format!("check the {what}'s id; the list of those that are known has it"))
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub fn code(&self) -> ErrorCode {
        self.code
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn remedy_text(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The message with all its causes: for logs, never for clients.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The part of an error that is stored and shown: code, message, remedy; never the source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { code: error.code, message: error.message.clone(), remedy: error.remedy.clone() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code, message: failure.message, remedy: failure.remedy, source: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name()), Some(*code));
        }
        assert_eq!(ErrorCode::from_name("Whatever"), None);
    }

    #[test]
    fn the_source_is_in_the_chain_and_not_in_the_text() {
        let error = Error::new(ErrorCode::Storage, "cannot write")
            .remedy("free some space")
            .source(std::io::Error::other("ENOSPC secret"));
        assert_eq!(error.to_string(), "cannot write (free some space)");
        assert!(error.chain().contains("ENOSPC"));
    }
}
