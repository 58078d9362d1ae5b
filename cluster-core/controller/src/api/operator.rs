//! Calls that are an operator's and no node's: who makes them, whether they may, and the note of it.

use aegis_rpc::via::PeerTransport;
use aegis_types::{
    caller::{Actor, Door},
    error::{Error, ErrorCode, Result},
    scope::Scope,
};
use tonic::metadata::MetadataMap;

use crate::{
    access::{Bearer, TokenTable, Validity},
    audit::{Arguments, Audit, Call, Pending},
};

/// Operators by their access tokens. Without tokens there are no operators.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    pub tokens: TokenTable,
    /// `None` without a database.
    pub audit: Option<Audit>,
}

impl Operators {
    /// Returns the bearer of the call's token and how long the token stays valid. A caller inside a node's SSH
    /// connection is that node.
    pub(super) fn known(&self, via: &PeerTransport, metadata: &MetadataMap) -> Result<(Bearer, Validity)> {
        if let PeerTransport::Link(_) = via {
            return Err(Error::new(ErrorCode::NotYours, "this is an operator's call, and no node's"));
        }
        self.tokens.check_lasting(metadata.get("authorization").and_then(|value| value.to_str().ok()))
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
        let call = Call { actor, client: None, action: action.to_owned(), arguments, is_read: false };
        self.audit.as_ref().map(|audit| audit.begin(call))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::access::{AccessTokenOrder, AccessTokens};
    use aegis_config::audit::AuditSettings;
    use aegis_fs::DataDirectory;
    use aegis_metrics::Metrics;
    use aegis_store::Store;
    use aegis_types::audit::AuditQuery;
    use aegis_types::ids::{AccessTokenName, NodeId};

    #[tokio::test]
    async fn a_call_needs_a_token_of_its_scope_and_either_answer_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(Arc::new(DataDirectory::own(directory.path()).unwrap())).await.unwrap();
        let tokens = TokenTable::new(Some("local"));
        let access = AccessTokens::open(store.clone(), tokens.clone()).await.unwrap();
        let name = AccessTokenName::parse("looks").unwrap();
        let order = AccessTokenOrder { name, scope: Scope::Read, lifetime: Duration::from_secs(60) };
        let looks = access.create(order).await.unwrap().token;
        let settings = AuditSettings { age: Duration::from_secs(60), entries: 9 };
        let (audit, _) =
            Audit::start(store, settings, Metrics::default(), CancellationToken::new()).await.unwrap();
        let operators = Operators { tokens, audit: Some(audit.clone()) };

        let plain = PeerTransport::Plain(SocketAddr::from(([127, 0, 0, 1], 1)));
        let link = PeerTransport::Link(NodeId::parse("edge-1").unwrap());
        let bearing = |token: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
            metadata
        };
        let known = |via: &PeerTransport, token: &str| {
            operators.known(via, &bearing(token)).map(|(bearer, _)| bearer)
        };
        assert_eq!(known(&plain, "guessed").unwrap_err().code(), ErrorCode::Unauthenticated);
        assert_eq!(known(&link, "local").unwrap_err().code(), ErrorCode::NotYours);
        assert!(operators.known(&plain, &MetadataMap::new()).is_err());
        assert!(Operators::default().known(&plain, &bearing("local")).is_err());
        for (token, allowed) in [("local", true), (looks.as_str(), false)] {
            let bearer = known(&plain, token).unwrap();
            let work = async { Ok(()) };
            let done =
                operators.run(bearer, Scope::Operate, "ExecuteAgent", Arguments::default(), work).await;
            assert_eq!(done.is_ok(), allowed, "{done:?}");
        }
        let entries = audit.read(&AuditQuery { limit: 9, ..AuditQuery::default() }).await.unwrap();
        let told: Vec<_> = entries.iter().map(|entry| (&*entry.who, &*entry.result, entry.door)).collect();
        let noted = [("http.token", "ok", Door::Grpc), ("token looks", "Forbidden", Door::Grpc)];
        assert_eq!(told, noted);
    }
}
