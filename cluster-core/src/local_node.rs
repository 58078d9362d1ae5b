//! The controller's own node, in a hybrid: it reports and obeys with no network in between.

use aegis_config::applied::AppliedConfig;
use aegis_controller::{
    handle::Controller,
    membership::{Registration, Report},
    nodes::NodeConnections,
};
use aegis_types::{error::Result, heartbeat::ConfigReport};
use aegis_worker::{capacity::Capacity, membership::obey, supervisor::Supervisor};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct LocalNode {
    pub controller: Controller,
    pub nodes: NodeConnections,
    pub supervisor: Supervisor,
    pub capacity: Capacity,
    pub applied: AppliedConfig,
}

/// Resolves when the engine stops to answer, or answers again. Never resolves without an engine.
async fn engine_changed(engine: &mut Option<watch::Receiver<bool>>) {
    let changed = match engine {
        Some(engine) => engine.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

impl LocalNode {
    pub async fn register(&self) -> Result<()> {
        let registration = Registration {
            capabilities: self.capacity.measure().await,
            address: String::new(),
            interval: None,
        };
        self.controller.register_local(registration).await?;
        // What was pushed while the process was down, or lost with its file.
        let config = self.controller.merged_config(self.controller.id()).await?;
        let _ = self.applied.apply(&config.version, config.json.to_string().as_bytes());
        Ok(())
    }

    /// Reports at every interval, and obeys as soon as the membership changes.
    pub fn spawn(self, stop: CancellationToken) {
        tokio::spawn(async move {
            let mut version = self.controller.version();
            let mut configured = self.applied.watch();
            let mut engine = self.capacity.engine_changes();
            let mut next = tokio::time::Instant::now();
            loop {
                let measured = tokio::select! {
                    () = stop.cancelled() => return,
                    changed = version.changed() => match changed {
                        Ok(()) => None,
                        Err(_) => return,
                    },
                    () = engine_changed(&mut engine) => Some(self.capacity.measure().await),
                    // Tags and resources may be others now.
                    _ = configured.changed() => Some(self.capacity.measure().await),
                    () = tokio::time::sleep_until(next) => {
                        next = tokio::time::Instant::now() + self.applied.settings().heartbeat_interval;
                        Some(self.capacity.measure().await)
                    }
                };
                version.mark_unchanged();
                if let Err(error) = self.report(measured).await {
                    tracing::warn!(error = %error.chain(), "the own node could not report");
                }
            }
        });
    }

    async fn report(&self, capabilities: Option<aegis_types::node::Capabilities>) -> Result<()> {
        let id = self.controller.id().clone();
        if capabilities.is_some() {
            self.nodes.report_held(id.clone(), self.supervisor.held());
        }
        let draining = Some(self.supervisor.control().is_draining());
        let report = Report { capabilities, draining, config: self.config(), ..Report::default() };
        let commands = self.controller.heartbeat(id.clone(), report).await?;
        let commands = self.controller.with_bodies(&id, commands).await?;
        if commands.is_empty() {
            return Ok(());
        }
        let mut acknowledged = Vec::with_capacity(commands.len());
        for (command_id, command) in commands {
            obey(&self.supervisor, &self.applied, command)?;
            acknowledged.push(command_id);
        }
        let report = Report { acknowledged, config: self.config(), ..Report::default() };
        self.controller.heartbeat(id, report).await.map(drop)
    }

    fn config(&self) -> Option<ConfigReport> {
        let (version, error) = self.applied.report();
        Some(ConfigReport { version, error })
    }
}
