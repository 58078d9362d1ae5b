//! Calls that are an operator's and no node's: who makes them, whether they may, and the note of it.

use tonic::metadata::MetadataMap;

use super::listener::Via;
use crate::{
    access::{Actor, Bearer, Door, Scope, TokenTable},
    audit::{Arguments, Audit, Call, Pending},
    error::{Error, ErrorCode, Result},
};

/// Without tokens nobody is an operator here.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    pub tokens: TokenTable,
    /// None where no database is.
    pub audit: Option<Audit>,
}

impl Operators {
    /// Who calls: the bearer of a token. Who speaks inside a node's SSH connection is that node.
    pub(super) fn known(&self, via: &Via, metadata: &MetadataMap) -> Result<Bearer> {
        if let Via::Link(_) = via {
            return Err(Error::new(ErrorCode::NotYours, "this is an operator's call, and no node's"));
        }
        self.tokens.check(metadata.get("authorization").and_then(|value| value.to_str().ok()))
    }

    /// Does what an operator asks for if the token's scope is enough, and notes either.
    pub(super) async fn run<T>(
        &self,
        bearer: Bearer,
        needed: Scope,
        action: &'static str,
        arguments: Arguments,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let pending = self.begin(&bearer, action, arguments);
        let result = match bearer.scope.admits(needed) {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        if let Some(pending) = pending {
            pending.end(result.as_ref().err().map(Error::code)).await;
        }
        result
    }

    fn begin(&self, bearer: &Bearer, action: &'static str, arguments: Arguments) -> Option<Pending> {
        let actor = Actor { door: Door::Grpc, identity: bearer.identity.clone() };
        let call = Call { actor, client: None, action: action.to_owned(), arguments };
        self.audit.as_ref().map(|audit| audit.begin(call))
    }
}
