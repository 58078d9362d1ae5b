//! Values that may be sent to a host and are never shown.

use std::fmt;

use zeroize::Zeroizing;

/// Without `Serialize` and with an empty `Debug`: it cannot reach a record, a log or a result.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Replaces each secret in a text; longer ones first, since one may be part of another.
pub fn redact(text: &str, secrets: &[Secret]) -> String {
    let mut secrets: Vec<&str> =
        secrets.iter().map(Secret::reveal).filter(|secret| !secret.is_empty()).collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "(secret)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_secrets_are_redacted_first() {
        let secrets = [Secret::new("hunter"), Secret::new("hunter2!"), Secret::new("")];
        assert_eq!(redact("a hunter2! b hunter", &secrets), "a (secret) b (secret)");
    }
}
