//! Names of resources. The type is made only by parsing, and parses its own output.

use std::{fmt, str::FromStr};

use cluster_core::types::{
    error::{Error, Result},
    ids::{DeploymentId, ExecutionId},
    text::shown,
};

use crate::tools::{EVENTS_DEFAULT, EVENTS_MAX, check_range};

pub const PEERS: &str = "peers://";
const DEPLOYMENT: &str = "deployment://";
const EXECUTION: &str = "execution://";
const OUTPUT: &str = "output";
const AFTER_SEQUENCE: &str = "after_sequence";
const LIMIT: &str = "limit";

/// Longer than any generated name.
const URI_LENGTH_MAX: usize = 256;

/// RFC 6570.
pub const DEPLOYMENT_TEMPLATE: &str = "deployment://{id}";
pub const EXECUTION_TEMPLATE: &str = "execution://{id}";
pub const OUTPUT_TEMPLATE: &str = "execution://{id}/output{?after_sequence,limit}";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceUri {
    /// Current nodes of the cluster.
    Peers,
    Deployment(DeploymentId),
    Execution(ExecutionId),
    /// Output of an execution's container.
    Output {
        execution: ExecutionId,
        range: Range,
    },
}

/// Part of an execution's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Events after this number; 0 starts from the beginning.
    pub after_sequence: u64,
    /// At most this many events: 1 to [`EVENTS_MAX`].
    pub limit: u32,
}

impl Default for Range {
    fn default() -> Self {
        Self { after_sequence: 0, limit: EVENTS_DEFAULT }
    }
}

impl ResourceUri {
    /// Returns the tool that shows the same data. Without that tool, the resource is not offered either.
    pub const fn tool(&self) -> &'static str {
        match self {
            Self::Peers => "list_peers",
            Self::Deployment(_) => "get_deployment_status",
            Self::Execution(_) | Self::Output { .. } => "get_execution",
        }
    }

    pub fn output(execution: &ExecutionId) -> Self {
        Self::Output { execution: execution.clone(), range: Range::default() }
    }
}

impl FromStr for ResourceUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() > URI_LENGTH_MAX {
            return Err(unknown(text));
        }
        if text == PEERS {
            return Ok(Self::Peers);
        }
        if let Some(id) = text.strip_prefix(DEPLOYMENT) {
            return DeploymentId::parse(id).map(Self::Deployment).map_err(|e| within(text, e));
        }
        let Some(rest) = text.strip_prefix(EXECUTION) else { return Err(unknown(text)) };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let (id, part) = match path.split_once('/') {
            Some((id, part)) => (id, Some(part)),
            None => (path, None),
        };
        let id = ExecutionId::parse(id).map_err(|e| within(text, e))?;
        match (part, query) {
            (None, None) => Ok(Self::Execution(id)),
            (Some(OUTPUT), query) => {
                let range = query.map(range).transpose().map_err(|e| within(text, e))?;
                Ok(Self::Output { execution: id, range: range.unwrap_or_default() })
            }
            _ => Err(unknown(text)),
        }
    }
}

fn range(query: &str) -> Result<Range> {
    let (mut after_sequence, mut limit) = (None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = |name: &str| {
            value
                .parse::<u64>()
                .map_err(|_| Error::invalid(format!("{name}: \"{}\" is no number", shown(value))))
        };
        let slot = match name {
            AFTER_SEQUENCE => &mut after_sequence,
            LIMIT => &mut limit,
            other => return Err(Error::invalid(format!("there is no parameter \"{}\"", shown(other)))),
        };
        if slot.replace(number(name)?).is_some() {
            return Err(Error::invalid(format!("{name} stands there twice")));
        }
    }
    let limit = check_range(LIMIT, limit.unwrap_or(u64::from(EVENTS_DEFAULT)), 1..=u64::from(EVENTS_MAX))?;
    Ok(Range {
        after_sequence: after_sequence.unwrap_or_default(),
        limit: u32::try_from(limit).unwrap_or(EVENTS_MAX),
    })
}

fn within(uri: &str, error: Error) -> Error {
    Error::invalid(format!("uri \"{}\": {}", shown(uri), error.message())).remedy(FORMS)
}

fn unknown(uri: &str) -> Error {
    Error::invalid(format!("uri \"{}\": it names no kind of resource", shown(uri))).remedy(FORMS)
}

const FORMS: &str = "use peers://, deployment://ID, execution://ID or \
                     execution://ID/output?after_sequence=N&limit=N (limit 1 to 1000)";

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peers => f.write_str(PEERS),
            Self::Deployment(id) => write!(f, "{DEPLOYMENT}{id}"),
            Self::Execution(id) => write!(f, "{EXECUTION}{id}"),
            Self::Output { execution, range } => {
                write!(f, "{EXECUTION}{execution}/{OUTPUT}")?;
                let usual = Range::default();
                let parameters = [
                    (AFTER_SEQUENCE, range.after_sequence, usual.after_sequence),
                    (LIMIT, u64::from(range.limit), u64::from(usual.limit)),
                ];
                let mut separator = '?';
                for (name, value, usual) in parameters {
                    if value != usual {
                        write!(f, "{separator}{name}={value}")?;
                        separator = '&';
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label() -> impl Strategy<Value = String> {
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    }

    fn uris() -> impl Strategy<Value = ResourceUri> {
        let deployment = label().prop_map(|id| ResourceUri::Deployment(DeploymentId::parse(id).unwrap()));
        let execution = label().prop_map(|id| ResourceUri::Execution(ExecutionId::parse(id).unwrap()));
        let output = (label(), any::<u64>(), 1..=EVENTS_MAX).prop_map(|(id, after_sequence, limit)| {
            let execution = ExecutionId::parse(id).unwrap();
            ResourceUri::Output { execution, range: Range { after_sequence, limit } }
        });
        prop_oneof![Just(ResourceUri::Peers), deployment, execution, output]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(uri in uris()) {
            prop_assert!(uri.to_string().len() <= URI_LENGTH_MAX);
            prop_assert_eq!(uri.to_string().parse::<ResourceUri>().unwrap(), uri);
        }

        #[test]
        fn whatever_comes_is_read_or_refused_in_few_words(
            text in "((peers|deployment|execution)?(://)?)?[a-z0-9/?=&_\\-\\PC]{0,300}"
        ) {
            match text.parse::<ResourceUri>() {
                Ok(uri) => prop_assert_eq!(uri.to_string().parse::<ResourceUri>().unwrap(), uri),
                Err(error) => {
                    prop_assert!(error.to_string().len() < 1000);
                    prop_assert!(error.remedy_text().is_some());
                }
            }
        }
    }

    #[test]
    fn parameters_stand_in_any_order_and_once() {
        let range = |text: &str| match text.parse::<ResourceUri>() {
            Ok(ResourceUri::Output { range, .. }) => Ok((range.after_sequence, range.limit)),
            Ok(other) => panic!("{other}"),
            Err(error) => Err(error.message().to_owned()),
        };
        assert_eq!(range("execution://e/output"), Ok((0, EVENTS_DEFAULT)));
        assert_eq!(range("execution://e/output?limit=7&after_sequence=5"), Ok((5, 7)));
        for (bad, words) in [
            ("execution://e/output?limit=0", "1 to 1000"),
            ("execution://e/output?limit=1001", "1 to 1000"),
            ("execution://e/output?limit=1&limit=1", "twice"),
            ("execution://e/output?after_sequence=-1", "no number"),
            ("execution://e/output?since=1", "no parameter"),
            ("execution://e/output?", "no parameter"),
            ("execution://E/output", "execution id"),
        ] {
            let error = range(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for bad in [
            "",
            "peers",
            "peers://x",
            "file:///etc/passwd",
            "deployment://",
            "deployment://a/b",
            "execution://a?limit=1",
            "execution://a/",
            "execution://a/input",
            "execution://a/output/b",
        ] {
            assert!(bad.parse::<ResourceUri>().is_err(), "{bad}");
        }
    }
}
