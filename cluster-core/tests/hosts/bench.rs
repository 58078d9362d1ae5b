//! A controller's deployments on a testbed host, with stand-ins for its store and its cluster.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use cluster_core::{
    deploy::{DeploySettings, DeploymentRequest, DeploymentView, Deployments, HostAccess, host::HostSession},
    types::{ids::DeploymentId, principal::Origin},
};

use crate::support::{Host, MemoryJournal, StandInCluster, run};

pub const BASE: &str = "/opt/aitheros-edge";

/// $1 deployment: returns once its script for the lock runs on the host, whose arguments name it.
pub const WAITS: &str = r#"until pgrep -f "AEGIS-LOCK.*" | while read -r pid; do
  tr '\0' ' ' < "/proc/$pid/cmdline"; done 2>/dev/null | grep -qF "$1"; do sleep 0.1; done"#;

pub struct Bench {
    pub host: Host,
    pub deployments: Deployments,
    pub journal: Arc<MemoryJournal>,
    pub cluster: Arc<StandInCluster>,
    pub settings: DeploySettings,
}

pub fn bench(host: Host, binary: Option<PathBuf>) -> Bench {
    let settings = DeploySettings {
        known_hosts: vec![host.known_hosts_path.clone()],
        key_dirs: vec![host.key_path.parent().unwrap().to_owned()],
        approved_hosts: vec!["10.*".into()],
        node_binaries: binary.map(|path| (std::env::consts::ARCH.to_owned(), path)).into_iter().collect(),
        minimum_disk_gb: 1,
        owner: "test".into(),
        ..Default::default()
    };
    let journal = Arc::new(MemoryJournal::default());
    let cluster = Arc::new(StandInCluster::new(host.clone()));
    with_settings(host, settings, journal, cluster)
}

pub fn with_settings(
    host: Host,
    settings: DeploySettings,
    journal: Arc<MemoryJournal>,
    cluster: Arc<StandInCluster>,
) -> Bench {
    let hosts = HostAccess::new(Arc::new(settings.clone()), journal.clone());
    let deployments = Deployments::new(hosts, journal.clone(), cluster.clone());
    Bench { host, deployments, journal, cluster, settings }
}

impl Bench {
    /// The same controller with another node executable, as after an upgrade.
    pub fn upgraded(&self, binary: PathBuf) -> Bench {
        let binaries = BTreeMap::from([(std::env::consts::ARCH.to_owned(), binary)]);
        let settings = DeploySettings { node_binaries: binaries, ..self.settings.clone() };
        with_settings(self.host.clone(), settings, self.journal.clone(), self.cluster.clone())
    }

    pub fn request(&self) -> DeploymentRequest {
        DeploymentRequest {
            host: self.host.ip.clone(),
            ssh_port: Some(self.host.port.into()),
            ssh_user: Some(self.host.user.clone()),
            ssh_key_path: Some(self.host.key_path.to_string_lossy().into_owned()),
            services: Some("node".into()),
            tags: vec!["gpu".into()],
            remote_llm_url: Some("http://primary:8150".into()),
            ..Default::default()
        }
    }

    pub async fn deploy(&self, request: &DeploymentRequest) -> DeploymentView {
        let view = self.deployments.start(request, Origin::Assistant).await.unwrap();
        self.end_of(&view.deployment_id).await
    }

    pub async fn end_of(&self, id: &DeploymentId) -> DeploymentView {
        let mut views = self.deployments.watch(id).await.unwrap();
        let ended = views.wait_for(|view| view.state.is_final());
        let view = tokio::time::timeout(Duration::from_secs(120), ended).await.unwrap().unwrap().clone();
        for step in &view.steps {
            println!(
                "{:<8} {:?} {:?} ms {}",
                step.name,
                step.state,
                step.duration_ms.unwrap_or(0),
                step.evidence.as_deref().or(step.message.as_deref()).unwrap_or("")
            );
        }
        view
    }

    pub async fn clean(&self) {
        let connection = self.host.connect().await;
        HostSession { connection: &connection, base: BASE }.remove(false).await.unwrap();
        run(&connection, "docker volume rm -f aitheros-edge_node_data >/dev/null; [ ! -e \"$1\" ]", &[BASE])
            .await;
    }
}
