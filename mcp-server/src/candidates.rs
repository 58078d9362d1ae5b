//! Kinds of values that can complete an argument.

/// What an argument may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    Deployments,
    Executions,
    Nodes,
    /// Approved hosts, several of them: the last one is completed.
    Hosts,
    /// Tags that nodes have, several of them: the last one is completed.
    Tags,
    /// Nothing that could be listed, such as a number.
    Nothing,
}
