//! References to secrets in a configuration. The configuration itself never holds a secret.

use std::path::PathBuf;

use aegis_types::{
    error::{Error, ErrorCode, Result},
    secret::{Secret, SecretName},
};

/// `secret:NAME`, `env:NAME` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretReference {
    /// A secret in the controller's database, by name.
    Named(SecretName),
    Place(SecretPlace),
}

/// A place outside the database. The value is read for each use, so that it may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// A variable of the controller's environment.
    Environment(String),
    File(PathBuf),
}

impl SecretReference {
    /// Parses a reference. `key` is the key of the configuration, for the error. A secret in place of a reference is
    /// refused, and the error does not repeat it: many people read configuration files.
    pub fn parse(key: &str, text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("secret:") {
            let wrong = |error: Error| Error::new(ErrorCode::ConfigInvalid, format!("{key}: {error}"));
            return SecretName::parse(name).map(Self::Named).map_err(wrong);
        }
        if let Some(name) = text.strip_prefix("env:").filter(|name| !name.is_empty()) {
            return Ok(Self::Place(SecretPlace::Environment(name.to_owned())));
        }
        if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(Self::Place(SecretPlace::File(PathBuf::from(path))));
        }
        Err(Error::new(ErrorCode::ConfigInvalid, format!("{key} holds a value, and must be a reference"))
            .remedy("write secret:NAME (set with `aegis secret set NAME`), env:NAME or file:PATH"))
    }
}

impl SecretPlace {
    pub fn read(&self) -> Result<Secret> {
        let reference = match self {
            Self::Environment(name) => format!("env:{name}"),
            Self::File(path) => format!("file:{}", path.display()),
        };
        Ok(Secret::new(resolve_secret(&reference)?.as_str()))
    }
}

/// Reads a value that may be `env:NAME` or `file:PATH`. The error names the reference, never the value.
pub fn resolve_secret(value: &str) -> Result<zeroize::Zeroizing<String>> {
    let missing = |what: String| Error::new(ErrorCode::ConfigInvalid, what);
    let text = if let Some(name) = value.strip_prefix("env:") {
        std::env::var(name).map_err(|_| missing(format!("the environment variable {name} is not set")))?
    } else if let Some(path) = value.strip_prefix("file:") {
        std::fs::read_to_string(path)
            .map_err(|e| missing(format!("the file {path} cannot be read")).source(e))?
            .trim_end()
            .to_owned()
    } else {
        value.to_owned()
    };
    Ok(zeroize::Zeroizing::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_no_reference_and_is_not_repeated() {
        let parse = |text| SecretReference::parse("spec.x", text);
        assert!(matches!(parse("secret:a"), Ok(SecretReference::Named(name)) if name.as_str() == "a"));
        assert_eq!(parse("env:X").unwrap(), SecretReference::Place(SecretPlace::Environment("X".into())));
        assert_eq!(parse("file:/x").unwrap(), SecretReference::Place(SecretPlace::File("/x".into())));
        for bad in ["", "hunter2", "env:", "file:", "secret:", "secret:A b"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConfigInvalid);
            assert!(error.message().starts_with("spec.x") && !error.to_string().contains("hunter2"));
        }
    }
}
