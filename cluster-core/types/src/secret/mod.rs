//! Secret values, which are never shown, and their names.

mod name;
mod value;

pub use self::{
    name::SecretName,
    value::{Secret, redact},
};
