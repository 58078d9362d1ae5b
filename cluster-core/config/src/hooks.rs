//! Hooks of the operator, as `spec.runtime.hooks` has them.

use std::{collections::BTreeMap, path::PathBuf};

use aegis_fs::SecretReference;
use aegis_types::{
    error::{Error, ErrorCode, Result},
    execution::lifecycle::State,
    ids::HookName,
};
use url::Url;

use crate::schema;

/// Hooks that a configuration may have.
const HOOKS_MAX: usize = 16;

/// A hook of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub target: Target,
    /// States at the end that it hears of. Empty: all.
    pub states: Vec<State>,
    /// It hears of every execution, and not only of those that name it.
    pub is_for_all: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Address of a POST, and the secret that signs it.
    Url(Url, Option<SecretReference>),
    /// Program and arguments. The event comes on stdin.
    Command(Vec<String>),
}

/// The hooks of a controller by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(BTreeMap<HookName, Hook>);

impl Hooks {
    /// Reads `spec.runtime.hooks`. Errors name the key.
    pub fn of(hooks: &BTreeMap<String, schema::Hook>) -> Result<Self> {
        let wrong =
            |message: String, remedy: &str| Error::new(ErrorCode::ConfigInvalid, message).remedy(remedy);
        if hooks.len() > HOOKS_MAX {
            return Err(wrong(
                format!("spec.runtime.hooks: {} hooks are too many", hooks.len()),
                "keep at most 16",
            ));
        }
        let mut known = BTreeMap::new();
        for (name, hook) in hooks {
            let key = format!("spec.runtime.hooks.{name}");
            let name = HookName::parse(name.as_str()).map_err(|error| {
                wrong(format!("{key}: {error}"), "use lower-case letters, digits and '-'")
            })?;
            let target = match (&hook.url, hook.command.as_slice()) {
                (Some(url), []) => {
                    let url = url.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "http" | "https"));
                    // The address may hold a token: it is not repeated.
                    let url = url.ok_or_else(|| {
                        wrong(format!("{key}.url is not an address"), "write https://HOST/PATH")
                    })?;
                    let secret = hook.secret.as_ref();
                    let secret = secret.map(|text| SecretReference::parse(&format!("{key}.secret"), text));
                    Target::Url(url, secret.transpose()?)
                }
                (None, [program, ..]) if PathBuf::from(program).is_absolute() && hook.secret.is_none() => {
                    Target::Command(hook.command.clone())
                }
                _ => {
                    let message =
                        format!("{key} needs either url, or command with the absolute path of a program");
                    return Err(wrong(
                        message,
                        "write url: https://HOST/PATH or command: [/PATH/PROGRAM, ARGUMENT]",
                    ));
                }
            };
            if let Some(state) = hook.states.iter().find(|state| !state.is_final()) {
                let message = format!("{key}.states: {} is not the state of an end", state.name());
                return Err(wrong(message, "use succeeded, failed or cancelled"));
            }
            let hook = Hook { target, states: hook.states.clone(), is_for_all: hook.all.unwrap_or(true) };
            known.insert(name, hook);
        }
        Ok(Self(known))
    }

    /// Returns the hooks that hear of an execution: those that its caller names, and those for all.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` names a hook that is not configured.
    pub fn resolve(&self, named: &[HookName]) -> Result<Vec<HookName>> {
        if named.len() > HOOKS_MAX {
            return Err(Error::invalid(format!("notify: at most {HOOKS_MAX} hooks are taken"))
                .remedy("name each hook once"));
        }
        if let Some(unknown) = named.iter().find(|name| !self.0.contains_key(name)) {
            let known = self.0.keys().map(HookName::as_str).collect::<Vec<_>>().join(", ");
            let known =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are {known}") };
            return Err(Error::invalid(format!(
                "notify: {unknown} is not a hook of this controller; {known}"
            ))
            .remedy("an operator adds it to spec.runtime.hooks"));
        }
        let is_told = |(name, hook): &(&HookName, &Hook)| hook.is_for_all || named.contains(name);
        Ok(self.0.iter().filter(is_told).map(|(name, _)| name.clone()).collect())
    }

    /// Returns each hook with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&HookName, &Hook)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(yaml: &str) -> Result<Hooks> {
        Hooks::of(&serde_json::from_value(serde_json::from_str(yaml).unwrap()).unwrap())
    }

    #[test]
    fn configuration_is_checked_by_key() {
        for (text, error) in [
            (r#"{"a":{}}"#, "spec.runtime.hooks.a needs either url, or command"),
            (r#"{"a":{"url":"https://h/","command":["/bin/true"]}}"#, "needs either"),
            (r#"{"a":{"command":["notify"]}}"#, "absolute path"),
            (r#"{"a":{"url":"ftp://token@h/"}}"#, "spec.runtime.hooks.a.url is not an address"),
            (r#"{"a":{"url":"https://h/","secret":"hunter2"}}"#, "spec.runtime.hooks.a.secret holds a value"),
            (r#"{"a":{"url":"https://h/","states":["running"]}}"#, "running is not the state of an end"),
            (r#"{"A b":{"url":"https://h/"}}"#, "spec.runtime.hooks.A b"),
        ] {
            let message = hooks(text).unwrap_err().to_string();
            assert!(
                message.contains(error) && !message.contains("token") && !message.contains("hunter"),
                "{message}"
            );
        }
    }

    #[test]
    fn those_for_all_and_those_that_are_named_are_told() {
        let known =
            hooks(r#"{"all":{"url":"https://h/"},"some":{"command":["/bin/cat"],"all":false}}"#).unwrap();
        let told = |named: &[&str]| {
            let named: Vec<_> = named.iter().map(|name| HookName::parse(*name).unwrap()).collect();
            let told = known.resolve(&named)?;
            Ok::<_, Error>(told.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(told(&[]).unwrap(), "all");
        assert_eq!(told(&["some"]).unwrap(), "all some");
        assert!(told(&["some"; 17]).unwrap_err().message().contains("at most 16"));
        let error = told(&["other"]).unwrap_err();
        assert_eq!(error.message(), "notify: other is not a hook of this controller; there are all, some");
    }
}
