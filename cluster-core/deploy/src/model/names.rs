//! Names in deployments: services and profiles of a compose file, and models of Ollama. Each is made only by parsing,
//! so that it can be used in files, script arguments and messages without escaping.

use std::fmt;

use aegis_types::{
    error::{Error, Result},
    text::shown,
};

const COMPOSE_NAME_LENGTH_MAX: usize = 63;
const MODEL_NAME_LENGTH_MAX: usize = 200;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name!(
    /// Service of a compose file: 1 to 63 letters, digits, `.`, `_` and `-`, not starting with `-` or `.`.
    ServiceName
);
name!(
    /// Profile of a compose file, with the grammar of service names.
    ProfileName
);
name!(
    /// Model of Ollama: `[[host/]namespace/]model[:tag]`.
    ModelName
);

impl ServiceName {
    pub fn parse(text: &str) -> Result<Self> {
        compose_name("service", text).map(Self)
    }

    /// Makes the name of a service of the embedded stack.
    pub(super) fn known(name: &'static str) -> Self {
        Self(name.to_owned())
    }
}

impl ProfileName {
    pub fn parse(text: &str) -> Result<Self> {
        compose_name("profile", text).map(Self)
    }
}

impl ModelName {
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = || {
            Error::invalid(format!("model \"{}\" is not a model's name", shown(text)))
                .remedy("give something like llama3.2 or qwen2.5:0.5b")
        };
        if text.is_empty() || text.len() > MODEL_NAME_LENGTH_MAX {
            return Err(refuse());
        }
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (text, None),
        };
        let part = |part: &str| {
            part.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len() > 3 || !parts.iter().all(|one| part(one)) || !tag.is_none_or(part) {
            return Err(refuse());
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name as Ollama lists it: a name without a tag means `latest`.
    pub fn with_tag(&self) -> String {
        match self.0.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => self.0.clone(),
            _ => format!("{}:latest", self.0),
        }
    }
}

fn compose_name(kind: &str, text: &str) -> Result<String> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let all = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if !first || !all || text.len() > COMPOSE_NAME_LENGTH_MAX {
        return Err(Error::invalid(format!("{kind} \"{}\" is not a name that Compose takes", shown(text)))
            .remedy("use 1 to 63 letters, digits, '.', '_' and '-'"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_everything_else() {
        for good in ["node", "My_app.1-x", "_a"] {
            assert!(ServiceName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-x", ".x", "a b", "a\n", "$x", "a,b", "é"] {
            assert!(ServiceName::parse(bad).is_err() && ProfileName::parse(bad).is_err(), "{bad:?}");
        }
        for (good, tagged) in [
            ("llama3.2", "llama3.2:latest"),
            ("qwen2.5:0.5b", "qwen2.5:0.5b"),
            ("hf.co/me/model-GGUF:Q4_K_M", "hf.co/me/model-GGUF:Q4_K_M"),
            ("me/model", "me/model:latest"),
        ] {
            assert_eq!(ModelName::parse(good).unwrap().with_tag(), tagged);
        }
        for bad in ["", ":", "a:", ":b", "a b", "-a", "a//b", "../x", "a/b/c/d", "a:b:c", "a\n", "--x"] {
            assert!(ModelName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stored_name_is_parsed_again() {
        assert!(serde_json::from_str::<ServiceName>("\"a b\"").is_err());
        let name: ServiceName = serde_json::from_str("\"web\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"web\"");
    }
}
