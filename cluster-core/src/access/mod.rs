//! Who may do what from outside: access tokens, their scopes, and how a caller is told from another.
//!
//! A person makes a token with a name, a scope and an end (`aegis token create`); a program bears it over
//! HTTP or gRPC. Its value is shown once: the database has its SHA-256 alone, which is enough since the
//! value is 32 random bytes and no word that could be guessed. Beside these there is the data directory's
//! own token, which is the scope `admin` and lies in a file of its owner.
//!
//! Every check is made by one table in memory ([`TokenTable`]): no door asks the database, and a token that
//! is revoked counts no more with the very next call. Unknown, expired and revoked ones are refused in the
//! same words.
//!
//! Tasks: one, which writes down once a minute when tokens were last used.
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
