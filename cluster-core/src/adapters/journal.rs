//! Deployments, rollouts and approved hosts in the store: typed records as JSON, with columns for searches.

use aegis_controller::secrets::Secrets;
use aegis_deploy::{
    ApprovedHost, DeploymentFilter, DeploymentState, Journal, RolloutState,
    model::record::DeploymentRecord,
    rollout::{RolloutJournal, RolloutRecord},
};
use aegis_ssh::HostAddress;
use aegis_store::{DeploymentRow, HostRow, RolloutRow, Store, Write};
use aegis_types::{
    error::{Error, ErrorCode, Result},
    ids::{DeploymentId, RolloutId},
    secret::{Secret, SecretName},
};
use futures::future::BoxFuture;

#[derive(Debug, Clone)]
pub struct StoreJournal {
    pub store: Store,
    pub secrets: Secrets,
}

fn written<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal("a record cannot be written").source(e))
}

fn read<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::new(ErrorCode::Storage, format!("a stored {what} cannot be read")).source(e))
}

fn record(row: &DeploymentRow) -> Result<DeploymentRecord> {
    read("deployment", &row.record)
}

impl Journal for StoreJournal {
    fn put<'a>(&'a self, record: &'a DeploymentRecord) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let row = DeploymentRow {
                deployment_id: record.view.deployment_id.clone(),
                host: record.view.host.clone(),
                state: record.view.state.to_string(),
                record: written(record)?,
                created_at_ms: record.view.created_at_ms,
                idempotency_key: record.idempotency_key.clone(),
            };
            self.store.write(Write::PutDeployment(Box::new(row))).await.map(drop)
        })
    }

    fn get<'a>(&'a self, id: &'a DeploymentId) -> BoxFuture<'a, Result<Option<DeploymentRecord>>> {
        Box::pin(async move { self.store.deployment(id).await?.as_ref().map(record).transpose() })
    }

    fn by_idempotency_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<DeploymentRecord>>> {
        Box::pin(async move { self.store.deployment_by_key(key).await?.as_ref().map(record).transpose() })
    }

    fn list<'a>(
        &'a self,
        filter: &'a DeploymentFilter,
    ) -> BoxFuture<'a, Result<(Vec<DeploymentRecord>, usize)>> {
        Box::pin(async move {
            let state = filter.state.map(|state| state.to_string());
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (rows, total) = self
                .store
                .list_deployments(
                    state.as_deref(),
                    filter.host.as_deref(),
                    number(filter.limit),
                    number(filter.offset),
                )
                .await?;
            let records = rows.iter().map(record).collect::<Result<_>>()?;
            Ok((records, usize::try_from(total).unwrap_or(usize::MAX)))
        })
    }

    fn unfinished(&self) -> BoxFuture<'_, Result<Vec<DeploymentRecord>>> {
        Box::pin(async move {
            let mut records = Vec::new();
            for state in [DeploymentState::Planned, DeploymentState::Running] {
                for row in self.store.deployments_in_state(&state.to_string()).await? {
                    records.push(record(&row)?);
                }
            }
            Ok(records)
        })
    }

    fn put_host<'a>(&'a self, host: &'a ApprovedHost) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let row = HostRow { host: host.host.to_string(), port: host.port, record: written(host)? };
            self.store.write(Write::PutHost(row)).await.map(drop)
        })
    }

    fn host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<Option<ApprovedHost>>> {
        Box::pin(async move {
            let row = self.store.approved_host(host.as_str(), port).await?;
            row.map(|row| read("host", &row.record)).transpose()
        })
    }

    fn hosts(&self) -> BoxFuture<'_, Result<Vec<ApprovedHost>>> {
        Box::pin(async move {
            self.store.approved_hosts().await?.iter().map(|row| read("host", &row.record)).collect()
        })
    }

    fn forget_host<'a>(&'a self, host: &'a HostAddress, port: u16) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let write = Write::ForgetHost { host: host.to_string(), port };
            Ok(self.store.write(write).await? > 0)
        })
    }

    fn use_secret<'a>(&'a self, name: &'a SecretName, purpose: &'a str) -> BoxFuture<'a, Result<Secret>> {
        Box::pin(self.secrets.use_for(name, purpose))
    }
}

fn rollout(row: &RolloutRow) -> Result<RolloutRecord> {
    read("rollout", &row.record)
}

impl RolloutJournal for StoreJournal {
    fn put_rollout<'a>(&'a self, record: &'a RolloutRecord) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let row = RolloutRow {
                rollout_id: record.view.rollout_id.clone(),
                state: record.view.state.to_string(),
                record: written(record)?,
                created_at_ms: record.view.created_at_ms,
                idempotency_key: record.idempotency_key.clone(),
            };
            self.store.write(Write::PutRollout(Box::new(row))).await.map(drop)
        })
    }

    fn rollout<'a>(&'a self, id: &'a RolloutId) -> BoxFuture<'a, Result<Option<RolloutRecord>>> {
        Box::pin(async move { self.store.rollout(id).await?.as_ref().map(rollout).transpose() })
    }

    fn rollout_by_key<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<RolloutRecord>>> {
        Box::pin(async move { self.store.rollout_by_key(key).await?.as_ref().map(rollout).transpose() })
    }

    fn rollouts(&self, limit: u32) -> BoxFuture<'_, Result<Vec<RolloutRecord>>> {
        Box::pin(async move { self.store.list_rollouts(limit).await?.iter().map(rollout).collect() })
    }

    fn unfinished_rollouts(&self) -> BoxFuture<'_, Result<Vec<RolloutRecord>>> {
        Box::pin(async move {
            let rows = self.store.rollouts_in_state(&RolloutState::Running.to_string()).await?;
            rows.iter().map(rollout).collect()
        })
    }
}
