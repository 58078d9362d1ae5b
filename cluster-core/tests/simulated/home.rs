//! The controller's host.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use cluster_core::{
    controller::{
        api::{
            nodes::{ControllerApi, ControllerApiSettings},
            operator::Operators,
        },
        handle::{Controller, HealthSettings},
        membership::Staleness,
        nodes::{
            NodeConnections,
            direct::{DirectAccess, Plain},
        },
    },
    fs::DataDirectory,
    identity::KeyFile,
    metrics::Metrics,
    rpc::{
        listener::Intake,
        wire::{ByteStream, Connector},
    },
    store::Store,
    types::{clock::Clock, ids::NodeId},
};
use futures::future::BoxFuture;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

pub const HOME: &str = "home";
pub const HOME_PORT: u16 = 50_056;
/// Default of the configuration.
pub const STALE_THRESHOLD: Duration = Duration::from_secs(90);
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Action of an operator, or of a test, on the controller's host.
pub type Order = Box<dyn FnOnce(Running) -> BoxFuture<'static, ()> + Send>;

/// State that outlives the controller's process.
pub struct Home {
    pub data: PathBuf,
    pub orders: Mutex<mpsc::UnboundedReceiver<Order>>,
}

/// Controller in one of its lives.
#[derive(Clone)]
pub struct Running {
    pub controller: Controller,
    pub store: Store,
    metrics: Metrics,
}

impl Running {
    /// Returns the results of its calls of this name, in this life.
    pub fn calls(&self, call: &str) -> BTreeMap<String, u64> {
        let head = format!("aegis_cluster_calls_total{{call=\"{call}\",outcome=\"");
        let text = self.metrics.text(Duration::ZERO).unwrap();
        let calls = text.lines().filter_map(|line| line.strip_prefix(&head)?.split_once("\"} "));
        calls.map(|(outcome, count)| (outcome.to_owned(), count.parse().unwrap())).collect()
    }
}

/// Returns the time that all hosts of a simulation share.
fn simulated_ms() -> i64 {
    let since = turmoil::since_epoch().expect("the controller runs on a simulated host");
    i64::try_from(since.as_millis()).unwrap() + JUMPED_MS.get()
}

thread_local! {
    /// Error of the controller's wall clock: a simulation runs on one thread.
    static JUMPED_MS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// Sets the controller's wall clock forward or back.
pub fn jump(by: i64) {
    JUMPED_MS.set(JUMPED_MS.get() + by);
}

/// Dials an address of the simulated network.
pub fn dial(address: String) -> Connector {
    Arc::new(move || {
        let address = address.clone();
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn ByteStream>) })
    })
}

/// Runs one life of the controller's process.
pub async fn run(home: Arc<Home>) -> turmoil::Result {
    let data = own(&home).await;
    let store = Store::open(data).await?;
    let health = HealthSettings {
        staleness: Staleness { threshold: STALE_THRESHOLD, is_set: false },
        sweep_interval: SWEEP_INTERVAL,
        clock: Clock::of(simulated_ms),
    };
    let key = KeyFile::open(&home.data.join("node-key.pem"))?.current();
    let stop = CancellationToken::new();
    let own_id = NodeId::parse(HOME)?;
    let controller =
        Controller::start(own_id, key, &home.data, store.clone(), health, None, stop.clone()).await?;
    let plain = Plain::of(|to| dial(to.to_string()));
    let access = DirectAccess { credentials: None, allow_insecure: true, plain };
    let (nodes, _streams) = NodeConnections::new(controller.clone(), None, access);
    let settings = ControllerApiSettings {
        allow_unsealed_context: false,
        operators: Operators::default(),
        endpoint: format!("http://{HOME}:{HOME_PORT}"),
        authority: None,
    };
    let (accepted, others) = mpsc::channel(1);
    let intake = Intake::new(Metrics::default(), stop);
    intake.take_others(others);
    let metrics = Metrics::default();
    ControllerApi::new(controller.clone(), nodes, metrics.clone(), settings).spawn(intake, None);
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HOME_PORT)).await?;
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let stream: Box<dyn ByteStream> = Box::new(stream);
            accepted.send((stream, from)).await.expect("the server runs as long as its host");
        }
    });
    let running = Running { controller, store, metrics };
    let mut orders = home.orders.lock().await;
    while let Some(order) = orders.recv().await {
        tokio::spawn(order(running.clone()));
    }
    Ok(())
}

/// SQLite's threads may hold the directory slightly longer than the process that died.
async fn own(home: &Home) -> Arc<DataDirectory> {
    loop {
        match DataDirectory::own(&home.data) {
            Ok(data) => return Arc::new(data),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
