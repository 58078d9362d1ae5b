//! Expands `$NAME` and `${NAME…}` in `.env` and in paths of files that Compose opens. Follows Compose's rules
//! (compose-spec, interpolation).

/// Replaces every variable. The error names the variable that cannot be replaced.
pub fn interpolate(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| "a `${` is not closed".to_owned())?;
            out.push_str(&braced(&after[..end], lookup)?);
            &after[end + 1..]
        } else {
            let length = name_length(after);
            match length {
                // Compose leaves a lone `$` unchanged.
                0 => out.push('$'),
                _ => out.push_str(&lookup(&after[..length]).unwrap_or_default()),
            }
            &after[length..]
        };
    }
    out.push_str(rest);
    Ok(out)
}

/// Returns the position of the brace that closes the variable. Defaults may contain variables.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count()
}

fn braced(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let length = name_length(text);
    let (name, operator) = text.split_at(length);
    if length == 0 {
        return Err(format!("`${{{text}}}` names no variable"));
    }
    let value = lookup(name);
    let (empty_counts, operator) = match operator.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, operator),
    };
    let set = value.filter(|value| !(empty_counts && value.is_empty()));
    let word = operator.get(1..).unwrap_or_default();
    match (operator.chars().next(), set) {
        (None, value) if !empty_counts => Ok(value.unwrap_or_default()),
        (Some('-'), Some(value)) | (Some('?'), Some(value)) => Ok(value),
        (Some('-'), None) | (Some('+'), Some(_)) => interpolate(word, lookup),
        (Some('+'), None) => Ok(String::new()),
        (Some('?'), None) => Err(format!("variable {name} is not set: {word}")),
        _ => Err(format!("`${{{text}}}` is not a form that Compose knows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_compose() {
        let lookup = |name: &str| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, expected) in [
            ("plain", "plain"),
            ("$SET/x ${SET}y $$SET", "value/x valuey $SET"),
            ("<$NONE>", "<>"),
            ("${NONE:-a}${NONE-b}${EMPTY:-c}<${EMPTY-d}>", "abc<>"),
            ("${SET:-a}${SET+x}${NONE+y}<${EMPTY:+z}>", "valuex<>"),
            ("${NONE:-${SET}/d}", "value/d"),
            ("${SET:?needed}", "value"),
            ("^/api$|$ x|$1|$", "^/api$|$ x|$1|$"),
        ] {
            assert_eq!(interpolate(text, &lookup).as_deref(), Ok(expected), "{text}");
        }
        for bad in ["${NONE:?needed}", "${EMPTY:?needed}", "${SET", "${}", "${SET:}", "${SET/x}"] {
            assert!(interpolate(bad, &lookup).is_err(), "{bad}");
        }
    }
}
