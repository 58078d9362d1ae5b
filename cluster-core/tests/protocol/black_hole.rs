//! A network that swallows everything and says nothing: both ends notice by their keepalives.

use std::{sync::Arc, time::Duration};

use cluster_core::{
    config::endpoint::Endpoint,
    rpc::{controller_client::ControllerClient, controller_line::LinkTls},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::Instant,
};

use crate::support::{Cluster, url_of};

/// "noticed ≤ 20 s both sides"
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

/// Passes bytes on until it is switched to swallowing them; the connections stay open.
struct Proxy {
    address: String,
    swallow: Arc<watch::Sender<bool>>,
    /// How many connections the controller's side has closed.
    closed: watch::Receiver<usize>,
}

impl Proxy {
    async fn to(cluster: &Cluster) -> Self {
        let target = url_of(cluster).socket_addrs(|| None).unwrap()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let swallow = Arc::new(watch::channel(false).0);
        let (count, closed) = watch::channel(0);
        let (count, switch) = (Arc::new(count), swallow.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(target).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::spawn(pump(near_read, far_write, switch.subscribe()));
                let (count, switch) = (count.clone(), switch.subscribe());
                tokio::spawn(async move {
                    pump(far_read, near_write, switch).await;
                    count.send_modify(|count| *count += 1);
                });
            }
        });
        Self { address, swallow, closed }
    }
}

/// Ends when its source does. What it swallows it reads: the sender is not told by a full window either.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: watch::Receiver<bool>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if !*swallow.borrow() && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_by_both_ends() {
    let cluster = Cluster::start().await;
    let mut proxy = Proxy::to(&cluster).await;
    let mut node = cluster.member("a").await;
    let endpoint = Endpoint::Http(proxy.address.parse().unwrap());
    node.client = ControllerClient::connect(&endpoint, &LinkTls::Off).await.unwrap();
    node.beat().await.unwrap();
    proxy.swallow.send_replace(true);
    let cut = Instant::now();
    let worker = async {
        node.client.lost().await;
        cut.elapsed()
    };
    let controller = async {
        proxy.closed.wait_for(|closed| *closed == 1).await.unwrap();
        cut.elapsed()
    };
    let noticed = tokio::time::timeout(NOTICED_WITHIN, futures::future::join(worker, controller)).await;
    let (worker, controller) = noticed.expect("both have noticed in time");
    assert!(worker > Duration::from_secs(1) && controller > Duration::from_secs(1), "by silence alone");
}
