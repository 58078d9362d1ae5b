//! Kinds of values that can complete an argument.

/// Possible values of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    Deployments,
    Executions,
    Nodes,
    /// List of approved hosts; the last entry is completed.
    Hosts,
    /// List of tags that nodes have; the last entry is completed.
    Tags,
    /// No candidates, for example for a number.
    Nothing,
}
