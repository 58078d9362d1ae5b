//! The operator's secrets. Served over the unix socket alone, and no answer holds a value.

use axum::{Json, extract::State};
use cluster_core::{
    controller::secrets::SecretView,
    types::{
        error::Error,
        secret::{Secret, SecretName},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Api,
    body::{Body, Named},
    error::Answer,
};
use crate::tools::secret;

#[derive(Serialize)]
pub struct Secrets {
    secrets: Vec<SecretView>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    #[serde(default, deserialize_with = "secret")]
    value: Option<Secret>,
}

pub async fn list(State(api): State<Api>) -> Answer<Json<Secrets>> {
    Ok(Json(Secrets { secrets: api.core.secrets().await? }))
}

pub async fn set(
    State(api): State<Api>,
    Named(name): Named<SecretName>,
    Body(body): Body<Set>,
) -> Answer<Json<SecretView>> {
    let value =
        body.value.ok_or_else(|| Error::invalid("value: it is missing").remedy("send {\"value\": \"…\"}"))?;
    Ok(Json(api.core.set_secret(name, &value).await?))
}

pub async fn delete(State(api): State<Api>, Named(name): Named<SecretName>) -> Answer<Json<Value>> {
    api.core.delete_secret(&name).await?;
    Ok(Json(json!({ "name": name, "deleted": true })))
}
