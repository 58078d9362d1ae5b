//! Access tokens of programs, and their scopes.
//!
//! A person creates a token with a name, a scope and an expiry (`aegis token create`), and a program bears it over HTTP
//! or gRPC. Its value is shown once. The database has its SHA-256, which is enough for 32 random bytes. The data
//! directory has a token of its own with the scope `admin`, in a file of its owner.
//!
//! All doors check tokens in one table in memory ([`TokenTable`]) and not in the database. A revocation counts from the
//! next call on. Unknown, expired and revoked tokens are refused in the same words.
//!
//! Tasks: one, which stores once a minute when tokens were last used.
//!
//! Deliberately absent: users, groups and `OAuth`; tokens of nodes (`identity` has those).

mod table;
mod tokens;

pub use self::{
    table::{Bearer, TokenTable, Validity},
    tokens::{
        AccessTokenGrant, AccessTokenOrder, AccessTokenState, AccessTokenView, AccessTokens, LIFETIME_MAX,
    },
};
