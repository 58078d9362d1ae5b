//! `aegis token`: manages tokens of programs, each with its own name, scope and expiry.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use cluster_core::{
    controller::access::{AccessTokenGrant, AccessTokenView},
    types::error::{Error, Result},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Context,
    node::{duration, name as spelled},
    output::table,
    segment,
};

const TOKENS: &str = "/v1/tokens";

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ScopeChoice {
    /// Read lists, states, logs and output
    Read,
    /// Also deploy, run, cancel, drain and remove
    Operate,
    /// Also manage access tokens and enrolment tokens, and read the audit log
    Admin,
}

impl ScopeChoice {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Create a token for a program that calls over HTTP or gRPC; it is shown once
    Create {
        /// Name in lists and in the audit log: 1 to 63 of a-z, 0-9 and '-'
        name: String,
        /// Permissions of the token
        #[arg(long, value_enum)]
        scope: ScopeChoice,
        /// Validity, like 12h or 30d; at most 365d
        #[arg(long, default_value = "30d", value_parser = duration, value_name = "TIME")]
        ttl: Duration,
    },
    /// List the tokens, with scope, expiry and last use; values are never shown
    List,
    /// Revoke a token; its open streams end at once
    Revoke { name: String },
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<AccessTokenView>,
}

impl TokenVerb {
    pub async fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        match self {
            Self::Create { name, scope, ttl } => {
                let body = json!({ "name": name, "scope": scope.name(), "ttl_seconds": ttl.as_secs() });
                let grant: AccessTokenGrant = client.post(TOKENS, &body).await?;
                context.output.show(&grant, || grant.token.to_string())?;
                if context.output.is_human() {
                    context.output.say(&format!(
                        "It is not shown again. Valid until {} with the scope {}; send it as\n  \
                         Authorization: Bearer TOKEN",
                        grant.view.expires_at, grant.view.scope
                    ));
                }
                Ok(())
            }
            Self::List => {
                let data: Value = client.get(TOKENS).await?;
                let tokens = Tokens::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?
                    .tokens;
                context.output.show(&data, || tokens_table(tokens))
            }
            Self::Revoke { name } => {
                let done: Value = client.delete(&format!("{TOKENS}/{}", segment(&name))).await?;
                context.output.show(&done, || format!("The token {name} counts no more."))
            }
        }
    }
}

fn tokens_table(tokens: Vec<AccessTokenView>) -> String {
    let rows = tokens.into_iter().map(|token| {
        vec![
            token.name.to_string(),
            token.scope.to_string(),
            spelled(&token.state),
            token.expires_at,
            token.used_at.unwrap_or_else(|| "never".to_owned()),
        ]
    });
    table(&["name", "scope", "state", "expires", "used at"], rows.collect())
}
