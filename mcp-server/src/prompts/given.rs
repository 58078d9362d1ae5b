//! The arguments of a prompt: strings by their names, checked before anything is looked up.

use std::{collections::BTreeMap, str::FromStr};

use cluster_core::types::{
    error::{Error, Result},
    text::shown,
};
use rmcp::model::JsonObject;
use serde_json::Value;

use super::Argument;

/// A hundred long host names.
const VALUE_LENGTH_MAX: usize = 32 * 1024;

#[derive(Debug)]
pub struct Given(BTreeMap<&'static str, String>);

impl Given {
    /// Those that are known, all that are required, and no other.
    pub fn of(known: &'static [Argument], given: JsonObject) -> Result<Self> {
        let names = || known.iter().map(|argument| argument.name).collect::<Vec<_>>().join(", ");
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(argument) = known.iter().find(|argument| argument.name == name) else {
                return Err(Error::invalid(format!("there is no argument \"{}\"", shown(&name)))
                    .remedy(format!("use {}", names())));
            };
            let Value::String(text) = value else {
                return Err(Error::invalid(format!("{}: it must be a string", argument.name)));
            };
            if text.len() > VALUE_LENGTH_MAX {
                return Err(Error::invalid(format!(
                    "{}: it has more than {VALUE_LENGTH_MAX} bytes",
                    argument.name
                )));
            }
            // Menus send what was left empty as an empty string.
            if !text.trim().is_empty() {
                values.insert(argument.name, text.trim().to_owned());
            }
        }
        match known.iter().find(|argument| argument.required && !values.contains_key(argument.name)) {
            Some(missing) => Err(Error::invalid(format!("{}: it is missing", missing.name))
                .remedy(format!("give it: {}", missing.description))),
            None => Ok(Self(values)),
        }
    }

    fn text(&self, name: &'static str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    /// A value of its own grammar; the error names the argument.
    pub fn one<T: FromStr<Err = Error>>(&self, name: &'static str) -> Result<T> {
        self.text(name).parse().map_err(|error| within(name, &error))
    }

    /// Values separated by commas or blanks, in their order, each once.
    pub fn list<T: PartialEq>(
        &self,
        name: &'static str,
        max: usize,
        parse: impl Fn(&str) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut values = Vec::new();
        let entries = self.text(name).split(|c: char| c == ',' || c.is_whitespace());
        for entry in entries.filter(|entry| !entry.is_empty()) {
            let value = parse(entry).map_err(|error| within(name, &error))?;
            if !values.contains(&value) {
                values.push(value);
            }
            if values.len() > max {
                return Err(Error::invalid(format!("{name}: at most {max} are taken")));
            }
        }
        Ok(values)
    }
}

fn within(name: &str, error: &Error) -> Error {
    let named = Error::invalid(format!("{name}: {}", error.message()));
    match error.remedy_text() {
        Some(remedy) => named.remedy(remedy),
        None => named,
    }
}
