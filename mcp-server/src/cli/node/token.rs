//! `aegis node token`: what a worker joins with.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use cluster_core::{
    controller::handle::TokenView,
    core::EnrolmentGrant,
    identity::TokenKeysView,
    types::error::{Error, Result},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{duration, name, segment};
use crate::cli::{Context, output::table};

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TokenRole {
    Worker,
    Hybrid,
    Controller,
}

impl TokenRole {
    const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Hybrid => "hybrid",
            Self::Controller => "controller",
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token; it is shown once
    Create {
        /// Only a node with this id can use it
        #[arg(long)]
        node_id: Option<String>,
        /// How long it is valid, like 15m; at most 24h
        #[arg(long, default_value = "15m", value_parser = duration)]
        ttl: Duration,
        /// The role that it admits; others than worker may see all nodes
        #[arg(long, value_enum, default_value = "worker")]
        role: TokenRole,
        /// A tag that the node may claim; repeat it for more [default: any]
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
    /// List the tokens, without their secrets
    List,
    /// Make an open token unusable
    Revoke { id: String },
    /// Sign node tokens with a new key from now on; those that are out stay valid
    RotateKey,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<TokenView>,
}

impl Token {
    pub async fn run(self, context: &Context) -> Result<()> {
        const TOKENS: &str = "/v1/cluster/enrolment-tokens";
        let client = context.client()?;
        match self {
            Token::Create { node_id, ttl, role, tags } => {
                let mut body =
                    json!({ "node_id": node_id, "ttl_seconds": ttl.as_secs(), "role": role.name() });
                if !tags.is_empty() {
                    body["tags"] = json!(tags);
                }
                let grant: EnrolmentGrant = client.post(TOKENS, &body).await?;
                context.output.show(&grant, || grant.token.clone())?;
                if context.output.is_human() {
                    context.output.say(&format!(
                        "Valid once, until {}. On the machine that joins, with the token in FILE:\n  \
                         aegis node join {} --token-file FILE",
                        grant.expires_at, grant.controller_endpoint
                    ));
                }
                Ok(())
            }
            Token::List => {
                let data: Value = client.get(TOKENS).await?;
                let tokens = Tokens::deserialize(&data)
                    .map_err(|e| Error::internal("the list is not understood").source(e))?
                    .tokens;
                context.output.show(&data, || tokens_table(&tokens))
            }
            Token::RotateKey => {
                let keys: TokenKeysView = client.post("/v1/cluster/token-keys/rotate", &json!({})).await?;
                context.output.show(&keys, || {
                    let (signs, older) =
                        (keys.signs.clone().unwrap_or_default(), keys.verifies.len().saturating_sub(1));
                    format!("{signs} signs now; {older} older keys verify until their last tokens expire.")
                })
            }
            Token::Revoke { id } => {
                let token: TokenView = client.delete(&format!("{TOKENS}/{}", segment(&id))).await?;
                context.output.show(&token, || tokens_table(std::slice::from_ref(&token)))
            }
        }
    }
}

fn tokens_table(tokens: &[TokenView]) -> String {
    let rows = tokens.iter().map(|token| {
        vec![
            token.token_id.to_string(),
            name(&token.state),
            name(&token.role),
            token.node_id.as_ref().map_or("any".to_owned(), ToString::to_string),
            token.expires_at.clone(),
            token.used_by.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]
    });
    table(&["token", "state", "role", "for node", "expires", "used by"], rows.collect())
}
