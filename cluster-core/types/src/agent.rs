//! Which agent is meant: `NAME` is its newest version, `NAME@3` the third.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    ids::AgentName,
    text::shown,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AgentReference {
    pub name: AgentName,
    /// `None` is the newest version.
    pub version: Option<u32>,
}

impl AgentReference {
    pub fn version(name: AgentName, version: u32) -> Self {
        Self { name, version: Some(version) }
    }
}

impl FromStr for AgentReference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: AgentName::parse(text)?, version: None });
        };
        let plain = !version.starts_with(['0', '+']);
        let version = version.parse::<u32>().ok().filter(|_| plain).ok_or_else(|| {
            Error::invalid(format!("\"{}\" is no version of an agent", shown(version)))
                .remedy("write NAME for the newest, or NAME@3")
        })?;
        Ok(Self { name: AgentName::parse(name)?, version: Some(version) })
    }
}

impl fmt::Display for AgentReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl TryFrom<String> for AgentReference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<AgentReference> for String {
    fn from(reference: AgentReference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_back() {
        for good in ["a", "code-review@1", "a@4294967295"] {
            assert_eq!(good.parse::<AgentReference>().unwrap().to_string(), good);
        }
        for bad in ["", "@1", "a@", "a@0", "a@01", "a@+1", "a@-1", "a@1@2", "a@4294967296", "A@1", "a b"] {
            assert!(bad.parse::<AgentReference>().is_err(), "{bad}");
        }
    }
}
