//! The core's verbs on access tokens and the audit log.

use aegis_controller::{
    access::{AccessTokenGrant, AccessTokenOrder, AccessTokenView, TokenTable},
    audit::{Audit, AuditView},
};
use aegis_types::{audit::AuditQuery, error::Result, ids::AccessTokenName};

use super::{Core, Part};

impl Core {
    /// Returns the access tokens, which every door checks. A worker has the data directory's token alone.
    pub fn tokens(&self) -> &TokenTable {
        &self.0.tokens
    }

    /// Returns the audit log. `None` on a worker, which has no database.
    pub fn audit(&self) -> Option<&Audit> {
        match &self.0.part {
            Part::Controller(part) => Some(&part.audit),
            Part::Worker(_) => None,
        }
    }

    /// The newest entries that fit, oldest first.
    pub async fn audit_entries(&self, query: &AuditQuery) -> Result<Vec<AuditView>> {
        self.controller()?.audit.read(query).await
    }

    pub async fn create_access_token(&self, order: AccessTokenOrder) -> Result<AccessTokenGrant> {
        self.controller()?.access.create(order).await
    }

    /// Returns all access tokens, by name.
    pub fn access_tokens(&self) -> Result<Vec<AccessTokenView>> {
        Ok(self.controller()?.access.list())
    }

    pub async fn revoke_access_token(&self, name: &AccessTokenName) -> Result<()> {
        self.controller()?.access.revoke(name).await
    }
}
