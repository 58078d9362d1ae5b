//! A question to the audit log.

#[derive(Debug, Clone, Default)]
pub struct AuditQuery {
    /// Begun at or after this, in Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Exactly this one.
    pub action: Option<String>,
    /// The newest so many.
    pub limit: u32,
}
