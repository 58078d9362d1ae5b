//! Parses known_hosts files with OpenSSH's semantics: hashed names, patterns, negation, `[host]:port`, `@revoked`,
//! tabs. Lines that cannot be read are skipped, as in OpenSSH.
//!
//! The line format is parsed by ssh-key; name matching is implemented here, since no library provides it.

use std::{io::Read, path::Path};

use aegis_types::error::{Error, ErrorCode, Result};
use aws_lc_rs::hmac;
use russh::keys::{
    Algorithm, PublicKey,
    ssh_key::known_hosts::{Entry, HostPatterns, Marker},
};

use super::target::SSH_PORT_DEFAULT;

/// A known_hosts file of 4 MiB names some 20,000 hosts; a larger file is something else.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Verdict of the files on one key of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Known,
    Unknown,
    /// The host is known with another key, of any type.
    Changed {
        known: Vec<PublicKey>,
    },
    Revoked,
}

/// The readable entries of one or several known_hosts files.
#[derive(Debug, Clone, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    pub fn parse(text: &str) -> Self {
        Self { entries: text.lines().filter_map(parse_line).collect() }
    }

    /// Reads the files. A missing file is empty. A file that cannot be read is an error, since it might contain a
    /// revocation.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            let path = path.as_ref();
            let mut bytes = Vec::new();
            match std::fs::File::open(path)
                .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            {
                Ok(_) if bytes.len() as u64 > FILE_BYTES_MAX => {
                    return Err(unreadable(path, "it is larger than 4 MiB"));
                }
                Ok(_) => all.entries.extend(Self::parse(&String::from_utf8_lossy(&bytes)).entries),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable(path, "it cannot be read").source(error)),
            }
        }
        Ok(all)
    }

    pub fn verdict(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        let by_port = self.verdict_for_name(&lookup_name(host, port), key);
        if by_port != Verdict::Unknown || port == SSH_PORT_DEFAULT {
            return by_port;
        }
        // OpenSSH accepts a key recorded without a port for any port. Another key recorded without a port says nothing
        // about this port.
        match self.verdict_for_name(&lookup_name(host, SSH_PORT_DEFAULT), key) {
            Verdict::Known => Verdict::Known,
            Verdict::Revoked => Verdict::Revoked,
            Verdict::Changed { .. } | Verdict::Unknown => Verdict::Unknown,
        }
    }

    /// Returns the known key types of a host. They are requested first, so that a host with several keys offers the
    /// known key.
    pub fn key_types(&self, host: &str, port: u16) -> Vec<Algorithm> {
        let names = [lookup_name(host, port), lookup_name(host, SSH_PORT_DEFAULT)];
        let mut types = Vec::new();
        for entry in &self.entries {
            let algorithm = entry.public_key().algorithm();
            let named = names.iter().any(|name| matches(entry.host_patterns(), name));
            if entry.marker().is_none() && named && !types.contains(&algorithm) {
                types.push(algorithm);
            }
        }
        types
    }

    /// Returns the keys that may sign certificates for a host.
    pub fn authorities(&self, host: &str, port: u16) -> Vec<&PublicKey> {
        let names = [lookup_name(host, port), lookup_name(host, SSH_PORT_DEFAULT)];
        let named = |entry: &&Entry| names.iter().any(|name| matches(entry.host_patterns(), name));
        let authorities = self.entries.iter().filter(|entry| entry.marker() == Some(&Marker::CertAuthority));
        authorities.filter(named).map(Entry::public_key).collect()
    }

    fn verdict_for_name(&self, name: &str, key: &PublicKey) -> Verdict {
        let mut known = Vec::new();
        let mut found = false;
        for entry in self.entries.iter().filter(|entry| matches(entry.host_patterns(), name)) {
            let same = entry.public_key().key_data() == key.key_data();
            match entry.marker() {
                Some(Marker::Revoked) if same => return Verdict::Revoked,
                // A CA's key signs certificates; offered as a host key it proves nothing.
                Some(Marker::Revoked | Marker::CertAuthority) => {}
                None if same => found = true,
                None => known.push(entry.public_key().clone()),
            }
        }
        match (found, known.is_empty()) {
            (true, _) => Verdict::Known,
            (false, true) => Verdict::Unknown,
            (false, false) => Verdict::Changed { known },
        }
    }
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::new(ErrorCode::HostKeyUnknown, format!("known hosts file {}: {why}", path.display()))
        .remedy("make it readable, or name another one in spec.deploy.known_hosts")
}

/// Parses a line. ssh-key's parser needs single spaces, while OpenSSH accepts any run of blanks. Only `#` at the start
/// of a line makes it a comment.
fn parse_line(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split([' ', '\t', '\r']).filter(|field| !field.is_empty()).collect();
    let first = fields.first()?;
    if first.starts_with('#') {
        return None;
    }
    let length = if first.starts_with('@') { 4 } else { 3 };
    fields.get(..length)?.join(" ").parse().ok()
}

fn lookup_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == SSH_PORT_DEFAULT { host } else { format!("[{host}]:{port}") }
}

fn matches(patterns: &HostPatterns, name: &str) -> bool {
    match patterns {
        HostPatterns::HashedName { salt, hash } => {
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
            hmac::verify(&key, name.as_bytes(), hash).is_ok()
        }
        HostPatterns::Patterns(patterns) => matches_any(patterns.iter().map(String::as_str), name),
    }
}

/// Returns whether a pattern matches and no negated pattern does.
pub fn matches_any<'a>(patterns: impl Iterator<Item = &'a str>, name: &str) -> bool {
    let mut matched = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if glob(&negated.to_ascii_lowercase(), name) => return false,
            Some(_) => {}
            None => matched |= glob(&pattern.to_ascii_lowercase(), name),
        }
    }
    matched
}

/// Matches `*` and `?`. Linear in the product of both lengths, for any pattern.
pub(super) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((star_p, star_n)) => {
                    star = Some((star_p, star_n + 1));
                    p = star_p + 1;
                    n = star_n + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMCA4Iq3L0iCNv/+3Slh0vMiz/xEaxfdjy1Q9BXq+yO5";
    const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFH2GCM9zzJjNPC9I+zobNdBrlPuDjYCjDAQMTF3mip7";
    const P256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBFLcwtHiDTufVozC0ofMibhc/tg4MN5qd8Hof5joIwBrlWfxVhyS/WWwPK0WtR/YGpyDaIcIkHx0qzX53SMe/7c=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn verdict(file: &str, host: &str, port: u16, offered: &str) -> Verdict {
        KnownHosts::parse(file).verdict(host, port, &key(offered))
    }

    #[test]
    fn plain_names_tabs_comments_and_ports() {
        let file = format!(
            "# comment\n\nedge1,10.0.0.1\t{}  note with # sign\n[edge1]:2222 {B}\n",
            A.replace(' ', "\t")
        );
        assert_eq!(verdict(&file, "edge1", 22, A), Verdict::Known);
        assert_eq!(verdict(&file, "EDGE1", 22, A), Verdict::Known);
        assert_eq!(verdict(&file, "10.0.0.1", 22, A), Verdict::Known);
        assert_eq!(verdict(&file, "edge1", 2222, B), Verdict::Known);
        assert_eq!(verdict(&file, "edge2", 22, A), Verdict::Unknown);
        assert!(matches!(verdict(&file, "edge1", 22, B), Verdict::Changed { .. }));
        assert!(matches!(verdict(&file, "edge1", 2222, A), Verdict::Changed { .. }));
        assert_eq!(verdict(&file, "edge1", 2200, A), Verdict::Known, "noted without a port");
        assert_eq!(verdict(&file, "edge1", 2200, B), Verdict::Unknown);
    }

    #[test]
    fn patterns_and_negation() {
        let file = format!("*.example.com,!bad.example.com {A}\nedge?.lan {B}\n");
        assert_eq!(verdict(&file, "a.example.com", 22, A), Verdict::Known);
        assert_eq!(verdict(&file, "bad.example.com", 22, A), Verdict::Unknown);
        assert_eq!(verdict(&file, "edge1.lan", 22, B), Verdict::Known);
        assert_eq!(verdict(&file, "edge12.lan", 22, B), Verdict::Unknown);
    }

    #[test]
    fn key_of_another_type_is_a_change_and_known_type_preferred() {
        let file = format!("edge1 {P256}\n");
        assert!(matches!(verdict(&file, "edge1", 22, A), Verdict::Changed { known } if known.len() == 1));
        assert_eq!(KnownHosts::parse(&file).key_types("edge1", 22), vec![key(P256).algorithm()]);
    }

    #[test]
    fn revoked_wins_and_a_ca_admits_nobody() {
        assert_eq!(verdict(&format!("edge1 {A}\n@revoked * {A}\n"), "edge1", 22, A), Verdict::Revoked);
        assert_eq!(verdict(&format!("@revoked\t*\t{A}\n"), "edge1", 2222, A), Verdict::Revoked);
        assert_eq!(verdict(&format!("@cert-authority * {A}\n"), "edge1", 22, A), Verdict::Unknown);
        assert_eq!(verdict(&format!("@cert-authority * {B}\nedge1 {A}"), "edge1", 22, A), Verdict::Known);
        assert_eq!(verdict(&format!("@nonsense edge1 {A}\n"), "edge1", 22, A), Verdict::Unknown);
    }

    #[test]
    fn hashed_names() {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let salt = [7u8; 20];
        let hashed = |name: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
            format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(hmac::sign(&key, name.as_bytes())))
        };
        let file = format!("{} {A}\n{} {B}\n", hashed("edge1"), hashed("[edge1]:2222"));
        assert_eq!(verdict(&file, "edge1", 22, A), Verdict::Known);
        assert_eq!(verdict(&file, "edge1", 2222, B), Verdict::Known);
        assert_eq!(verdict(&file, "edge2", 22, A), Verdict::Unknown);
    }

    #[test]
    fn lines_that_cannot_be_read_are_skipped() {
        let file = format!("garbage\nedge1 ssh-ed25519 !!!\n|1|x {A}\nedge1 {A}\n");
        assert_eq!(verdict(&file, "edge1", 22, A), Verdict::Known);
    }

    #[test]
    fn globs_do_not_explode() {
        assert!(!glob(&format!("{}c", "a*".repeat(60)), &"a".repeat(200)));
        assert!(glob("*", "") && glob("**", "x") && glob("a*c", "abbc") && !glob("a*c", "abb"));
    }
}
