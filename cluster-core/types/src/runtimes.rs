//! The image of a language: the official ones, in their small variants, unless the node's configuration
//! (`spec.runtime.images`) names another.

use std::collections::BTreeMap;

use crate::{
    error::{Error, ErrorCode, Result},
    text::shown,
};

const VERSION_LENGTH_MAX: usize = 32;

/// Name, its other names, and the image around the version.
const LANGUAGES: [(&str, &[&str], &str, &str); 10] = [
    ("bash", &["shell", "sh"], "bash:", ""),
    ("go", &["golang"], "golang:", "-alpine"),
    ("java", &[], "eclipse-temurin:", "-jdk-alpine"),
    ("javascript", &["node", "nodejs"], "node:", "-slim"),
    ("perl", &[], "perl:", "-slim"),
    ("php", &[], "php:", "-cli-alpine"),
    ("python", &["python3"], "python:", "-slim"),
    ("ruby", &[], "ruby:", "-slim"),
    ("rust", &[], "rust:", "-slim"),
    (TYPESCRIPT, &[], TYPESCRIPT_IMAGE, ""),
];

/// It has no official image. This Node runs it without a compiler, whatever the version of the language.
pub const TYPESCRIPT: &str = "typescript";
const TYPESCRIPT_IMAGE: &str = "node:24-slim";

/// The image for a language in a version. Overrides go by `LANGUAGE:VERSION`, then by `LANGUAGE`.
pub fn image(language: &str, version: &str, overrides: &BTreeMap<String, String>) -> Result<String> {
    let language = language.to_ascii_lowercase();
    let known = LANGUAGES
        .iter()
        .find(|(name, others, _, _)| *name == language || others.contains(&language.as_str()));
    let name = known.map_or(language.as_str(), |(name, ..)| name);
    let key = format!("{name}:{version}");
    check_key(&key)?;
    if let Some(image) = overrides.get(&key).or_else(|| overrides.get(name)) {
        return Ok(image.clone());
    }
    let Some((_, _, before, after)) = known else {
        let names = LANGUAGES.map(|(name, ..)| name).join(", ");
        return Err(Error::new(
            ErrorCode::NotOffered,
            format!("no image is known for \"{}\"", shown(&language)),
        )
        .remedy(format!(
            "name an image, or one of {names}; an operator adds others with spec.runtime.images"
        )));
    };
    match name {
        TYPESCRIPT => Ok((*before).to_owned()),
        _ => Ok(format!("{before}{version}{after}")),
    }
}

/// `LANGUAGE` or `LANGUAGE:VERSION`, as overrides are named.
pub fn check_key(key: &str) -> Result<()> {
    let (language, version) = match key.split_once(':') {
        Some((language, version)) => (language, Some(version)),
        None => (key, None),
    };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let name = !language.is_empty()
        && language.len() <= VERSION_LENGTH_MAX
        && language.bytes().all(|byte| plain(byte) || matches!(byte, b'+' | b'#' | b'-'));
    let number = version.is_none_or(|version| {
        version.len() <= VERSION_LENGTH_MAX
            && version.bytes().next().is_some_and(plain)
            && version.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'-' | b'_'))
    });
    match name && number {
        true => Ok(()),
        false => Err(Error::invalid(format!("\"{}\" is no language and version", shown(key)))
            .remedy("write them like python and \"3.12\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution::image_reference::check_image;

    #[test]
    fn every_language_has_an_image_under_all_its_names() {
        let none = BTreeMap::new();
        for (name, others, _, _) in LANGUAGES {
            let expected = image(name, "3.12", &none).unwrap();
            check_image(&expected).unwrap();
            for other in others {
                assert_eq!(image(other, "3.12", &none).unwrap(), expected, "{other}");
            }
        }
        assert_eq!(image("Python", "3.12", &none).unwrap(), "python:3.12-slim");
        assert_eq!(image("go", "1.23", &none).unwrap(), "golang:1.23-alpine");
    }

    #[test]
    fn the_operator_names_others_by_version_and_by_language() {
        let overrides =
            [("python:3.12", "r.example/p:312"), ("python", "r.example/p"), ("zig", "r.example/zig")];
        let overrides = overrides.map(|(key, image)| (key.to_owned(), image.to_owned())).into();
        assert_eq!(image("python", "3.12", &overrides).unwrap(), "r.example/p:312");
        assert_eq!(image("python3", "3.11", &overrides).unwrap(), "r.example/p");
        assert_eq!(image("zig", "0.13", &overrides).unwrap(), "r.example/zig");
        let unknown = image("cobol", "85", &overrides).unwrap_err();
        assert_eq!(unknown.code(), ErrorCode::NotOffered);
        assert!(unknown.to_string().contains("spec.runtime.images"), "{unknown}");
    }

    #[test]
    fn what_would_change_the_reference_is_no_version() {
        for bad in ["", "3.12@sha256:0", "3/12", "3 12", "3:12", &"1".repeat(33), "Latest", "-slim"] {
            assert_eq!(
                image("python", bad, &BTreeMap::new()).unwrap_err().code(),
                ErrorCode::InvalidArgument
            );
        }
    }
}
