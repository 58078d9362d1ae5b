//! How much a caller may do. Each scope includes the ones before it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at everything that is no secret.
    Read,
    /// Deploy, run, drain, remove.
    Operate,
    /// Say who may do what: tokens, secrets, hosts, pushed configuration; and what cannot be undone.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// `Forbidden`, with the scope that is missing, where it does not include the other.
    pub fn admits(self, needed: Self) -> Result<()> {
        if self >= needed {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Forbidden,
            format!("this needs the scope {needed}, and the token has {self}"),
        )
        .remedy(format!("a person can make a token with it: aegis token create NAME --scope {needed}")))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_includes_lesser_scopes_and_refusal_names_missing_one() {
        for (place, scope) in Scope::ALL.into_iter().enumerate() {
            for (other, needed) in Scope::ALL.into_iter().enumerate() {
                let verdict = scope.admits(needed);
                assert_eq!(verdict.is_ok(), place >= other, "{scope} for {needed}");
                if let Err(error) = verdict {
                    assert_eq!(error.code(), ErrorCode::Forbidden);
                    assert!(error.message().contains(needed.name()), "{error}");
                }
            }
        }
    }
}
