//! Which services of an operator's stack are started.

use std::collections::BTreeSet;

use super::document::{Document, Service, refuse};
use crate::{
    deploy::names::ServiceName,
    error::{Error, Result},
};

/// What was named, or all whose profiles (if they have any) are asked for; and what these need.
pub(super) fn selected(
    document: &Document,
    named: &BTreeSet<ServiceName>,
    profiles: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let all = &document.services;
    let known: BTreeSet<&String> = all.values().flat_map(|service| &service.profiles).collect();
    if let Some(unknown) = profiles.iter().find(|profile| !known.contains(profile)) {
        return Err(not_there("profile", unknown, known.into_iter().map(String::as_str)));
    }
    if let Some(unknown) = named.iter().find(|name| !all.contains_key(name.as_str())) {
        return Err(not_there("service", unknown.as_str(), all.keys().map(String::as_str)));
    }
    let asked = |name: &str, own: &BTreeSet<String>| match named.is_empty() {
        true => own.is_empty() || !own.is_disjoint(profiles),
        false => named.iter().any(|one| one.as_str() == name),
    };
    let mut selected = BTreeSet::new();
    let mut left: Vec<&String> =
        all.iter().filter(|(name, service)| asked(name, &service.profiles)).map(|(name, _)| name).collect();
    while let Some(name) = left.pop() {
        if !selected.insert(name.clone()) {
            continue;
        }
        let is_enabled =
            |service: &Service| service.profiles.is_empty() || !service.profiles.is_disjoint(profiles);
        left.extend(all[name].wants.iter().filter(|wanted| all.get(*wanted).is_some_and(is_enabled)));
        for needed in &all[name].needs {
            let (needed, _) = all
                .get_key_value(needed)
                .ok_or_else(|| refuse(format!("service {name} needs {needed}, which is not in it")))?;
            left.push(needed);
        }
    }
    Ok(selected.into_iter().collect())
}

fn not_there<'a>(kind: &str, name: &str, there: impl Iterator<Item = &'a str>) -> Error {
    let there: Vec<&str> = there.collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Error::invalid(format!("the operator's compose file has no {kind} \"{name}\""))
        .remedy(format!("those there are: {there}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(named: &[&str], profiles: &[&str]) -> Result<Vec<String>> {
        let document = Document::parse(
            "services:\n  web: {image: x, depends_on: [db]}\n  db: {image: x}\n  \
             debug: {image: x, profiles: [debug], depends_on: [store]}\n  store: {image: x, profiles: [other]}\n  \
             alone: {image: x}\n  soft: {image: x, profiles: [soft], depends_on: {store: {required: false}, \
             alone: {required: false}, absent: {required: false}}}\n",
            &|_| None,
        )?;
        let named = named.iter().map(|name| ServiceName::parse(name).unwrap()).collect();
        selected(&document, &named, &profiles.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn what_is_named_and_what_it_needs() {
        assert_eq!(select(&[], &[]).unwrap(), ["alone", "db", "web"]);
        assert_eq!(select(&["web"], &[]).unwrap(), ["db", "web"]);
        assert_eq!(select(&[], &["debug"]).unwrap(), ["alone", "db", "debug", "store", "web"]);
        assert_eq!(select(&["debug"], &[]).unwrap(), ["debug", "store"]);
        assert_eq!(select(&["soft"], &[]).unwrap(), ["alone", "soft"], "no profile asks for store");
        assert_eq!(select(&["soft"], &["other"]).unwrap(), ["alone", "soft", "store"]);
        let error = select(&["nginx"], &[]).unwrap_err();
        assert!(error.remedy_text().unwrap().contains("alone, db, debug, soft, store, web"), "{error}");
        let error = select(&[], &["nope"]).unwrap_err();
        assert!(error.remedy_text().unwrap().contains("debug, other, soft"), "{error}");
    }
}
