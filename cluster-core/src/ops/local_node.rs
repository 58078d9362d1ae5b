//! The controller's own node, in a hybrid: it reports and obeys with no network in between.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    capacity::Capacity,
    cluster::{
        controller::Controller,
        membership::{Command, Registration, Report},
    },
    error::Result,
    execution::supervisor::Supervisor,
    rpc::SOFTWARE_VERSION,
};

#[derive(Debug)]
pub struct LocalNode {
    pub controller: Controller,
    pub supervisor: Supervisor,
    pub capacity: Capacity,
    pub interval: Duration,
}

impl LocalNode {
    pub async fn register(&self) -> Result<()> {
        let registration = Registration {
            capabilities: self.capacity.measure().await,
            address: String::new(),
            version: SOFTWARE_VERSION.to_owned(),
        };
        self.controller.register_local(registration).await
    }

    /// Reports at every interval, and obeys as soon as the membership changes.
    pub fn spawn(self, stop: CancellationToken) {
        tokio::spawn(async move {
            let mut version = self.controller.version();
            let mut interval = tokio::time::interval(self.interval);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let measured = tokio::select! {
                    () = stop.cancelled() => return,
                    changed = version.changed() => match changed {
                        Ok(()) => None,
                        Err(_) => return,
                    },
                    _ = interval.tick() => Some(self.capacity.measure().await),
                };
                version.mark_unchanged();
                if let Err(error) = self.report(measured).await {
                    tracing::warn!(error = %error.chain(), "the own node could not report");
                }
            }
        });
    }

    async fn report(&self, capabilities: Option<crate::cluster::peer::Capabilities>) -> Result<()> {
        let id = self.controller.id().clone();
        let draining = Some(self.supervisor.is_draining());
        let report = Report { capabilities, acknowledged: Vec::new(), draining };
        let commands = self.controller.heartbeat(id.clone(), report).await?;
        if commands.is_empty() {
            return Ok(());
        }
        let mut acknowledged = Vec::with_capacity(commands.len());
        for (command_id, command) in commands {
            match command {
                Command::Drain => self.supervisor.set_draining(true)?,
                Command::Resume => self.supervisor.set_draining(false)?,
                // The controller's process is ended by its operator alone.
                Command::Shutdown => {}
            }
            acknowledged.push(command_id);
        }
        self.controller
            .heartbeat(id, Report { capabilities: None, acknowledged, draining: None })
            .await
            .map(drop)
    }
}
