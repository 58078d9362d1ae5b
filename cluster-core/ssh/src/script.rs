//! Turns a constant script and its arguments into the input of one remote `sh`, and separates its output from banners
//! and rc files. Output before a random marker is discarded.

use std::borrow::Cow;

use aegis_types::error::{Error, ErrorCode, Result};

/// Paths that non-interactive logins often lack.
const PATH_SUFFIX: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Quotes a value for a remote shell. The only place that does so.
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Returns a marker of 128 random bits, which output cannot guess.
pub fn marker() -> String {
    format!("aegis-{}", uuid::Uuid::new_v4().simple())
}

/// Returns the standard input of `sh -s`. The script is a function, so it is parsed completely before it runs. Its own
/// standard input is empty, so no command can consume the rest of the text.
pub fn on_stdin(script: &'static str, args: &[&str], marker: &str) -> Result<String> {
    let set = set_arguments(args)?;
    Ok(format!(
        "{prelude}\n{set}\naegis_script() {{\n{script}\n}}\nprintf '\\n%s\\n' {marker}\n\
         printf '\\n%s\\n' {marker} >&2\n( aegis_script \"$@\" ) </dev/null\nprintf '\\n%s %d\\n' {marker} \"$?\"\nexit 0\n",
        prelude = prelude(),
    ))
}

/// Returns a command line for exec whose standard input belongs to the script (bulk data, or held open). Its arguments
/// are visible in the host's process list, so they must not contain secrets.
pub fn on_command_line(
    shell: &'static str,
    script: &'static str,
    args: &[&str],
    marker: &str,
) -> Result<String> {
    let set = set_arguments(args)?;
    let text = format!(
        "{prelude}\n{set}\naegis_script() {{\n{script}\n}}\nprintf '\\n%s\\n' {marker}\n\
         printf '\\n%s\\n' {marker} >&2\n( aegis_script \"$@\" )\nprintf '\\n%s %d\\n' {marker} \"$?\"\nexit 0\n",
        prelude = prelude(),
    );
    Ok(format!("exec {shell} -c {}", quote(&text)))
}

fn prelude() -> String {
    format!("LC_ALL=C; PATH=\"$PATH:{PATH_SUFFIX}\"; export LC_ALL PATH; umask 077")
}

fn set_arguments(args: &[&str]) -> Result<String> {
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("an argument for the host holds a NUL character"));
    }
    let quoted: Vec<String> = args.iter().map(|arg| quote(arg)).collect();
    Ok(format!("set -- {}", quoted.join(" ")))
}

/// Undoes terminal line ends, which sudo inserts if it logs output (`log_output`).
fn unix_lines<'a>(raw: &'a [u8], marker: &str) -> Cow<'a, str> {
    let text = String::from_utf8_lossy(raw);
    match text.contains(&format!("{marker}\r\n")) {
        true => Cow::Owned(text.replace("\r\n", "\n")),
        false => text,
    }
}

/// The script's own part of a stream, and its exit status (from standard output only).
#[derive(Debug, PartialEq, Eq)]
pub struct Marked {
    pub text: String,
    pub status: Option<i32>,
}

/// Extracts the script's part of standard output.
pub fn cut_stdout(raw: &[u8], marker: &str) -> Result<Marked> {
    let text = unix_lines(raw, marker);
    let begin = format!("\n{marker}\n");
    let Some(start) = text.find(&begin) else {
        return Err(Error::new(ErrorCode::Unavailable, "the host's shell did not run our script")
            .remedy("check the login shell and rc files of the ssh user: `ssh HOST sh -c true` must work"));
    };
    let body = &text[start + begin.len()..];
    let end = format!("\n{marker} ");
    match body.rfind(&end) {
        Some(stop) => {
            let status = body[stop + end.len()..].lines().next().and_then(|line| line.trim().parse().ok());
            Ok(Marked { text: body[..stop].to_owned(), status })
        }
        None => Ok(Marked { text: body.to_owned(), status: None }),
    }
}

/// Returns standard error from the marker on, or all of it if the marker was cut off.
pub fn cut_stderr(raw: &[u8], marker: &str) -> String {
    let text = unix_lines(raw, marker);
    let begin = format!("\n{marker}\n");
    match text.find(&begin) {
        Some(start) => text[start + begin.len()..].to_owned(),
        None => text.into_owned(),
    }
}

/// Returns the end of a remote text for display: without control characters, bounded in lines and size.
pub fn tail(text: &str, lines_max: usize) -> String {
    const BYTES_MAX: usize = 4096;
    let clean: String =
        text.chars().filter(|c| !c.is_control() || *c == '\n').collect::<String>().trim().to_owned();
    let lines: Vec<&str> = clean.lines().collect();
    let kept = lines[lines.len().saturating_sub(lines_max)..].join("\n");
    let mut start = kept.len().saturating_sub(BYTES_MAX);
    while !kept.is_char_boundary(start) {
        start += 1;
    }
    kept[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn run(input: &str) -> (Vec<u8>, Vec<u8>) {
        let mut child = Command::new("sh")
            .arg("-s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.stdout, output.stderr)
    }

    #[test]
    fn arguments_arrive_byte_exact_and_cannot_break_out() {
        let nasty =
            ["", "a b", "it's", "$(id)", "`id`", "\\", "\"", "a\nb", "-n", "*", "'; echo pwned; '", "é"];
        let marker = marker();
        let input =
            on_stdin(r#"for value in "$@"; do printf '<%s>' "$value"; done"#, &nasty, &marker).unwrap();
        let (stdout, _) = run(&input);
        let expected: String = nasty.iter().map(|value| format!("<{value}>")).collect();
        let marked = cut_stdout(&stdout, &marker).unwrap();
        assert_eq!(marked, Marked { text: expected, status: Some(0) });
        assert!(on_stdin("true", &["a\0b"], &marker).is_err());
    }

    #[test]
    fn script_commands_read_no_script_text_and_exit_is_a_status() {
        let marker = marker();
        let input = on_stdin("cat\necho out; echo err >&2; exit 7", &[], &marker).unwrap();
        let (stdout, stderr) = run(&input);
        assert_eq!(cut_stdout(&stdout, &marker).unwrap(), Marked { text: "out\n".into(), status: Some(7) });
        assert_eq!(cut_stderr(&stderr, &marker), "err\n");
    }

    #[test]
    fn banners_and_false_markers_are_not_ours() {
        let marker = "aegis-1";
        let raw = b"Welcome!\naegis-0\nfake 0\n\naegis-1\nreal\n\naegis-1 3\nlogout noise";
        assert_eq!(cut_stdout(raw, marker).unwrap(), Marked { text: "real\n".into(), status: Some(3) });
        assert_eq!(cut_stdout(b"only noise", marker).unwrap_err().code(), ErrorCode::Unavailable);
        assert_eq!(cut_stdout(b"\naegis-1\ncut off", marker).unwrap().status, None);
        let logged = cut_stdout(b"\r\naegis-1\r\nreal\r\n\r\naegis-1 0\r\n", marker).unwrap();
        assert_eq!(logged, Marked { text: "real\n".into(), status: Some(0) }, "of sudo with log_output");
    }

    #[test]
    fn tails_are_bounded_and_clean() {
        assert_eq!(tail("a\n\u{1b}[31mb\u{0}\nc\n", 2), "[31mb\nc");
        assert!(tail(&"ü".repeat(10_000), 20).len() <= 4096);
    }
}
