//! Callers and their permissions. A caller is determined at the entrance and checked wherever something is done.
//!
//! Over HTTP the guard makes a [`Caller`] from each request's token. The caller travels in the request's extensions,
//! which rmcp passes on. On a socket of the data directory a connection has one caller, the owner. A request without a
//! caller is rejected.

use cluster_core::{
    controller::{
        access::Bearer,
        audit::{Arguments, Call, Client, Pending},
    },
    core::Core,
    types::{
        caller::{Actor, Door, Identity},
        error::{Error, ErrorCode, Result},
        scope::Scope,
    },
};
use rmcp::{RoleServer, service::RequestContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub actor: Actor,
    pub scope: Scope,
    /// Name of the client as it states it; known for MCP clients only.
    pub client: Option<Client>,
    narrowing: ToolFilter,
}

/// Restriction of a connection to some of the tools that this node offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFilter {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Allowed tools; `None` allows all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
}

impl ToolFilter {
    fn admits(&self, tool: &str, read_only: bool) -> bool {
        (read_only || !self.read_only)
            && self.tools.as_ref().is_none_or(|tools| tools.iter().any(|name| name == tool))
    }
}

/// Source of a server's callers.
#[derive(Debug, Clone)]
pub enum Entrance {
    /// Each request has its own caller.
    PerRequest,
    /// The whole connection has one caller.
    Connection(Box<Caller>),
}

impl Caller {
    fn new(door: Door, identity: Identity, scope: Scope) -> Self {
        Self { actor: Actor { door, identity }, scope, client: None, narrowing: ToolFilter::default() }
    }

    /// Makes the owner of the data directory, over one of its sockets, which admit no other user.
    pub fn local(door: Door) -> Self {
        Self::new(door, Identity::LocalUser(nix::unistd::geteuid().as_raw()), Scope::Admin)
    }

    pub fn bearing(bearer: Bearer) -> Self {
        Self::new(Door::Http, bearer.identity, bearer.scope)
    }

    /// Makes the caller of HTTP without tokens.
    pub fn anybody() -> Self {
        Self::new(Door::Http, Identity::Anybody, Scope::Admin)
    }

    #[must_use]
    pub fn narrowed(self, narrowing: ToolFilter) -> Self {
        Self { narrowing, ..self }
    }

    /// Returns the caller of this request, with its client.
    pub fn of(context: &RequestContext<RoleServer>, entrance: &Entrance) -> Result<Self> {
        let known = match entrance {
            Entrance::Connection(caller) => Some((**caller).clone()),
            Entrance::PerRequest => {
                let parts = context.extensions.get::<http::request::Parts>();
                parts.and_then(|parts| parts.extensions.get::<Self>()).cloned()
            }
        };
        let caller = known.ok_or_else(|| Error::internal("nobody knows who makes this request"))?;
        let client = context.client_info().map(|client| Client::new(&client.name, &client.version));
        Ok(Self { client, ..caller })
    }

    /// Checks that this caller may call a tool. Tools that it may not call are hidden from it.
    pub fn admits(&self, tool: &str, read_only: bool) -> Result<()> {
        if !self.narrowing.admits(tool, read_only) {
            return Err(Error::new(
                ErrorCode::Forbidden,
                format!("{tool} is switched off on this connection"),
            )
            .remedy("`aegis mcp` was started with --read-only or --tools, which the user can change"));
        }
        self.scope.admits(if read_only { Scope::Read } else { Scope::Operate })
    }

    /// Records the start of a call. Returns `None` on a node without an audit log.
    pub fn begin(&self, core: &Core, action: String, arguments: Arguments) -> Option<Pending> {
        self.note(core, action, arguments, false)
    }

    /// Records the start of a tool call.
    pub fn begin_tool(&self, core: &Core, tool: &str, given: &Value, read_only: bool) -> Option<Pending> {
        let arguments = Arguments::default();
        arguments.note(given);
        self.note(core, tool.to_owned(), arguments, read_only)
    }

    fn note(&self, core: &Core, action: String, arguments: Arguments, is_read: bool) -> Option<Pending> {
        let call =
            Call { actor: self.actor.clone(), client: self.client.clone(), action, arguments, is_read };
        core.audit().map(|audit| audit.begin(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_and_narrowing_are_both_asked() {
        let bearing = |scope| Caller::bearing(Bearer { identity: Identity::LocalToken, scope });
        let only = |read_only, tools: Option<&[&str]>| ToolFilter {
            read_only,
            tools: tools.map(|tools| tools.iter().map(|tool| (*tool).to_owned()).collect()),
        };
        // Columns: whether list_peers (reads) and drain_node (changes) are admitted.
        for (scope, narrowing, admitted) in [
            (Scope::Read, only(false, None), [true, false]),
            (Scope::Operate, only(false, None), [true, true]),
            (Scope::Admin, only(false, None), [true, true]),
            (Scope::Admin, only(true, None), [true, false]),
            (Scope::Admin, only(false, Some(&["drain_node"])), [false, true]),
            (Scope::Admin, only(true, Some(&["drain_node"])), [false, false]),
            (Scope::Read, only(false, Some(&["drain_node"])), [false, false]),
            (Scope::Admin, only(false, Some(&[])), [false, false]),
        ] {
            let caller = bearing(scope).narrowed(narrowing.clone());
            let verdicts = [caller.admits("list_peers", true), caller.admits("drain_node", false)];
            assert_eq!(verdicts.map(|verdict| verdict.is_ok()), admitted, "{scope} {narrowing:?}");
        }
        let error = bearing(Scope::Read).admits("drain_node", false).unwrap_err();
        assert!(error.message().contains("operate"), "{error}");
    }
}
