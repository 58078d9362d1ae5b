//! Conditions of configuration blocks: `Host` and `Match`.

use crate::known_hosts::glob;

/// Head of a block of lines.
#[derive(Debug)]
pub(super) struct Block {
    /// Number of the block. Each block is judged once, where it begins.
    pub id: usize,
    pub condition: Condition,
}

#[derive(Debug)]
pub(super) enum Condition {
    Host(Vec<String>),
    Match(Vec<Criterion>),
}

#[derive(Debug)]
pub(super) struct Criterion {
    negated: bool,
    what: What,
}

#[derive(Debug)]
enum What {
    All,
    /// Holds only in the second pass, which this criterion itself requests.
    Final,
    Host(Vec<String>),
    OriginalHost(Vec<String>),
    User(Vec<String>),
    LocalUser(Vec<String>),
    /// Would run a program, or uses an unknown keyword.
    Undecided(String),
}

/// Facts by which a condition is judged, as far as they are known where the block begins.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// Name that the person gave.
    pub original: &'a str,
    pub host_name: &'a str,
    pub user: &'a str,
    pub local_user: &'a str,
    pub final_pass: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Judgement {
    Applies,
    Not,
    /// All other criteria match, and this criterion cannot be judged without running a program or knowing more.
    Undecided(String),
}

impl Condition {
    pub fn parse_match(words: &[String]) -> Result<Self, &'static str> {
        let mut words = words.iter();
        let mut criteria = Vec::new();
        while let Some(word) = words.next() {
            let (negated, word) = match word.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, word.as_str()),
            };
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            let mut list = || {
                let value = inline.or_else(|| words.next().map(String::as_str));
                let value = value.ok_or("a criterion of Match has no value")?;
                Ok::<_, &'static str>(value.split(',').map(str::to_owned).collect::<Vec<_>>())
            };
            let what = match name.to_ascii_lowercase().as_str() {
                "all" => What::All,
                // Without CanonicalizeHostname, which we do not do, both ask for the second pass.
                "final" | "canonical" => What::Final,
                "host" => What::Host(list()?),
                "originalhost" => What::OriginalHost(list()?),
                "user" => What::User(list()?),
                "localuser" => What::LocalUser(list()?),
                other => {
                    list()?;
                    What::Undecided(format!("Match {other}"))
                }
            };
            criteria.push(Criterion { negated, what });
        }
        if criteria.is_empty() { Err("Match has no criterion") } else { Ok(Self::Match(criteria)) }
    }

    pub fn asks_for_second_pass(&self) -> bool {
        matches!(self, Self::Match(criteria) if criteria.iter().any(|one| matches!(one.what, What::Final)))
    }

    pub fn judge(&self, subject: &Subject<'_>) -> Judgement {
        match self {
            Self::Host(patterns) => {
                let name = if subject.final_pass { subject.host_name } else { subject.original };
                if listed(patterns, name, true) { Judgement::Applies } else { Judgement::Not }
            }
            Self::Match(criteria) => {
                let mut undecided = None;
                for criterion in criteria {
                    match criterion.holds(subject) {
                        Ok(true) => {}
                        Ok(false) => return Judgement::Not,
                        Err(name) => undecided = Some(name.to_owned()),
                    }
                }
                undecided.map_or(Judgement::Applies, Judgement::Undecided)
            }
        }
    }
}

impl Criterion {
    fn holds(&self, subject: &Subject<'_>) -> Result<bool, &str> {
        let holds = match &self.what {
            What::All => true,
            What::Final => subject.final_pass,
            What::Host(patterns) => listed(patterns, subject.host_name, true),
            What::OriginalHost(patterns) => listed(patterns, subject.original, true),
            What::User(patterns) => listed(patterns, subject.user, false),
            What::LocalUser(patterns) => listed(patterns, subject.local_user, false),
            What::Undecided(name) => return Err(name),
        };
        Ok(holds != self.negated)
    }
}

/// Returns whether a pattern matches and no negated pattern does. Host names are compared without case, as they are
/// resolved.
fn listed(patterns: &[String], name: &str, fold: bool) -> bool {
    let folded = |text: &str| if fold { text.to_ascii_lowercase() } else { text.to_owned() };
    let name = folded(name);
    let mut matched = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if glob(&folded(negated), &name) => return false,
            Some(_) => {}
            None => matched |= glob(&folded(pattern), &name),
        }
    }
    matched
}
