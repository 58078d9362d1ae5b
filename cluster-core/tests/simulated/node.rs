//! Host of a node: the protocol's client side in the loop of a worker, without an engine.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cluster_core::{
    rpc::{
        controller_client::{Beat, ControllerClient, JoiningNode, Session},
        controller_line::LinkTls,
    },
    types::{
        error::{ErrorCode, Result},
        heartbeat::Command,
        ids::CommandId,
        node::Capabilities,
        resources::Amounts,
    },
};
use turmoil::net::TcpListener;
use zeroize::Zeroizing;

use super::home::{HOME, HOME_PORT, dial};

pub const NODE_PORT: u16 = 50_056;
/// Default of the configuration.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Delay and longest pause of a worker: `ACKNOWLEDGE_DELAY` and its backoff's upper end.
const ACKNOWLEDGE_DELAY: Duration = Duration::from_millis(50);
const PAUSE: Duration = Duration::from_secs(1);

/// State that outlives the node's process, for the test to inspect.
pub struct Machine {
    pub applicant: JoiningNode,
    pub token: String,
    diary: Mutex<Diary>,
}

#[derive(Debug, Clone, Default)]
pub struct Diary {
    /// Drain state on the node's disk.
    pub draining: bool,
    /// Number of commands that changed the drain state.
    pub turns: usize,
    /// Received commands, including repetitions.
    pub obeyed: Vec<(CommandId, Command)>,
    /// Admissions with the token, and by key alone.
    pub enrolled: usize,
    pub attested: usize,
    pub joined: usize,
    pub beats_sent: u64,
    pub beats_answered: u64,
    pub failures: Vec<ErrorCode>,
}

impl Machine {
    pub fn new(applicant: JoiningNode, token: String) -> Self {
        Self { applicant, token, diary: Mutex::default() }
    }

    pub fn diary(&self) -> MutexGuard<'_, Diary> {
        self.diary.lock().unwrap()
    }
}

/// Runs one life of the node's process.
pub async fn run(machine: Arc<Machine>) -> turmoil::Result {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, NODE_PORT)).await?;
    // The controller asks for a ping now and then, and calls nothing.
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok(_)) = connection.accept().await {}
            });
        }
    });
    loop {
        if let Err(error) = member(&machine).await {
            machine.diary().failures.push(error.code());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Runs one membership, which ends when it is lost.
async fn member(machine: &Machine) -> Result<()> {
    let mut client = ControllerClient::connect_over(dial(format!("{HOME}:{HOME_PORT}"))).await?;
    let session = attest(machine, &mut client).await?;
    client.register(&session, &machine.applicant, &capabilities(), HEARTBEAT_INTERVAL).await?;
    let mut acknowledged = beat(machine, &mut client, &session, Vec::new()).await?;
    machine.diary().joined += 1;
    loop {
        let pause = if acknowledged.is_empty() { HEARTBEAT_INTERVAL } else { ACKNOWLEDGE_DELAY };
        let lost = client.clone();
        tokio::select! {
            () = lost.lost() => return Err(cluster_core::types::error::Error::new(ErrorCode::Unavailable, "lost")),
            () = tokio::time::sleep(pause) => {
                acknowledged = beat(machine, &mut client, &session, acknowledged).await?;
            }
        }
    }
}

async fn attest(machine: &Machine, client: &mut ControllerClient) -> Result<Session> {
    let (applicant, key) = (&machine.applicant, machine.applicant.keys.current());
    match client.attest(applicant, key.clone(), &capabilities(), None, &LinkTls::Off).await {
        Err(error) if error.code() == ErrorCode::EnrolmentInvalid => {
            let token = Zeroizing::new(machine.token.clone());
            let session = client.attest(applicant, key, &capabilities(), Some(token), &LinkTls::Off).await?;
            machine.diary().enrolled += 1;
            Ok(session)
        }
        attested => {
            let session = attested?;
            machine.diary().attested += 1;
            Ok(session)
        }
    }
}

async fn beat(
    machine: &Machine,
    client: &mut ControllerClient,
    session: &Session,
    acknowledged: Vec<CommandId>,
) -> Result<Vec<CommandId>> {
    let draining = {
        let mut diary = machine.diary();
        diary.beats_sent += 1;
        diary.draining
    };
    let interval = HEARTBEAT_INTERVAL;
    let beat = Beat { capabilities: capabilities(), acknowledged, draining, interval, ..Beat::default() };
    let commands = client.heartbeat(session, &machine.applicant.node_id, beat).await?;
    let mut diary = machine.diary();
    diary.beats_answered += 1;
    for (_, command) in &commands {
        let draining = match command {
            Command::Drain => true,
            Command::Resume => false,
            Command::Shutdown | Command::PushConfig { .. } => diary.draining,
        };
        if draining != diary.draining {
            diary.turns += 1;
            diary.draining = draining;
        }
    }
    let ids = commands.iter().map(|(id, _)| id.clone()).collect();
    diary.obeyed.extend(commands);
    Ok(ids)
}

fn capabilities() -> Capabilities {
    Capabilities {
        total: Amounts { cpu_millicores: 4_000, memory_mb: 8_192, gpus: 0, vram_gb: 0 },
        engine: "docker 26.1.5".into(),
        ..Default::default()
    }
}
