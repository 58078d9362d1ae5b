//! The grammar of image references.

use crate::{
    error::{Error, Result},
    text::shown,
};

const IMAGE_LENGTH_MAX: usize = 255;

/// `[domain/]path[:tag][@sha256:digest]`, as distribution/reference defines it.
pub fn check_image(image: &str) -> Result<()> {
    let wrong = |why: &str| {
        Err(Error::invalid(format!("image \"{}\": {why}", shown(image)))
            .remedy("an image looks like busybox:1.36 or registry.example/team/agent@sha256:<64 hex digits>"))
    };
    if image.is_empty() {
        return wrong("it is empty");
    }
    if image.len() > IMAGE_LENGTH_MAX {
        return wrong("it is longer than 255 characters");
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or("");
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return wrong("its digest is not sha256: with 64 hex digits in lower case");
        }
    }
    let (path, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(good) || tag.starts_with(['.', '-']) {
            return wrong("its tag is not valid");
        }
    }
    let mut parts = path.split('/').collect::<Vec<_>>();
    if parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost") {
        let (domain, port) = parts[0].split_once(':').unwrap_or((parts[0], "1"));
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        if domain.is_empty() || !domain.bytes().all(good) || port.parse::<u16>().is_err() {
            return wrong("its registry is not valid");
        }
        parts.remove(0);
    }
    for part in parts {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        if bytes.is_empty()
            || !bytes.iter().copied().all(good)
            || !edge(bytes[0])
            || !edge(bytes[bytes.len() - 1])
        {
            return wrong("its name must be of a-z, 0-9, '.', '_' and '-' between slashes");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_checked_by_the_grammar_of_references() {
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        for good in
            ["busybox", "busybox:1.36", "localhost:5000/a/b:c", "ghcr.io/org/agent:latest", digest.as_str()]
        {
            check_image(good).unwrap();
        }
        for bad in [
            "",
            "Busybox",
            "busybox@sha256:short",
            &"a".repeat(300),
            "-x",
            "a b",
            "a//b",
            "a:",
            "x;rm",
            "a/../b",
        ] {
            assert!(check_image(bad).is_err(), "{bad}");
        }
    }
}
