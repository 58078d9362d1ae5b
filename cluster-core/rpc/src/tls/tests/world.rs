//! A real server with the real listener, and clients that dial as nodes or as unknown callers.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aegis_types::{error::Result, ids::NodeId};
use futures::{StreamExt as _, future::BoxFuture};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    transport::{Channel, Endpoint as Target},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::{
    super::{Credentials, Expect, HostPort, Identity, PeerRule, Trust, client, provider},
    pki::Leaf,
};
use crate::{
    call_limits::Known,
    listener::{Intake, server},
    status::to_status,
    via::{self, AuthStage},
};

/// Pause between the numbers of a stream.
const TICK: Duration = Duration::from_millis(250);
pub const NODE: &str = "edge-1";

/// Service for one node: `Ping` echoes its number, and `Count` streams the numbers up to it.
#[derive(Clone)]
struct Echo(NodeId);

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

type Numbers = std::pin::Pin<Box<dyn futures::Stream<Item = Result<u64, Status>> + Send>>;

fn numbers(up_to: u64) -> Numbers {
    Box::pin(futures::stream::iter(1..=up_to).then(|number| async move {
        tokio::time::sleep(TICK).await;
        Ok(number)
    }))
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let node = self.0.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<u64, u64>::default());
            let admitted = move |request: &Request<u64>, stage| {
                via::check(&via::entered(request).via, &node, stage).map_err(|e| to_status(&e))
            };
            Ok(match request.uri().path() {
                "/test.Echo/Count" => {
                    let count = service_fn(|request: Request<u64>| async move {
                        Ok::<_, Status>(Response::new(numbers(*request.get_ref())))
                    });
                    grpc.server_streaming(count, request).await
                }
                path => {
                    let attests = path.ends_with("Attest");
                    let stage = if attests { AuthStage::Attesting } else { AuthStage::Admitted };
                    let ping = service_fn(|request: Request<u64>| {
                        let admitted = admitted(&request, stage);
                        async move { admitted.map(|()| Response::new(*request.get_ref())) }
                    });
                    grpc.unary(ping, request).await
                }
            })
        })
    }
}

pub struct Server {
    pub address: SocketAddr,
    _stop: DropGuard,
}

impl Server {
    pub async fn start(credentials: Credentials) -> Self {
        Self::start_aged(credentials, None).await
    }

    pub async fn start_aged(credentials: Credentials, age: Option<Duration>) -> Self {
        let stop = CancellationToken::new();
        let intake = Intake::new(aegis_metrics::Metrics::default(), stop.clone());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = intake.listen_tcp(any, Some(credentials)).await.unwrap();
        let (connections, stopped) = intake.into_connections();
        let mut builder = server(Known::of(|_| true));
        if let Some(age) = age {
            builder = builder.max_connection_age(age);
        }
        let router = builder.add_service(Echo(NodeId::parse(NODE).unwrap()));
        tokio::spawn(async move {
            let connections = connections.map(Ok::<_, std::io::Error>);
            router.serve_with_incoming_shutdown(connections, stopped.cancelled()).await.unwrap();
        });
        Self { address, _stop: stop.drop_guard() }
    }

    pub fn dialled(&self, host: &str) -> HostPort {
        HostPort::of(&format!("https://{host}:{}", self.address.port()).parse().unwrap()).unwrap()
    }
}

pub fn identity(leaf: &Leaf) -> Identity {
    Identity::of_pem(leaf.chain.as_bytes(), leaf.key.as_bytes()).unwrap()
}

pub fn credentials(leaf: Option<&Leaf>, bundle: &str, rule: PeerRule) -> Credentials {
    let trust = Trust::of_pem(bundle.as_bytes(), None).unwrap();
    Credentials::new(rule, leaf.map(identity), trust).unwrap()
}

/// Opens a channel as a node dials its controller, reconnecting after every loss.
pub fn channel(credentials: &Credentials, server: &Server) -> Channel {
    channel_to(credentials, &server.dialled("localhost"))
}

pub fn channel_to(credentials: &Credentials, to: &HostPort) -> Channel {
    let (credentials, to) = (credentials.clone(), to.clone());
    let connector = service_fn(move |_| {
        let (credentials, to) = (credentials.clone(), to.clone());
        async move {
            let (connection, _) = client::connect(&credentials, &to, Expect::Host, false).await?;
            Ok::<_, std::io::Error>(TokioIo::new(connection))
        }
    });
    Target::from_static("http://test").connect_with_connector_lazy(connector)
}

async fn call(channel: &Channel, method: &'static str, number: u64) -> Result<u64, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
    let path = http::uri::PathAndQuery::from_static(method);
    let answer = grpc.unary(Request::new(number), path, ProstCodec::<u64, u64>::default()).await?;
    Ok(answer.into_inner())
}

pub async fn ping(channel: &Channel, number: u64) -> Result<u64, Status> {
    call(channel, "/test.Echo/Ping", number).await
}

pub async fn attest(channel: &Channel, number: u64) -> Result<u64, Status> {
    call(channel, "/test.Echo/Attest", number).await
}

pub async fn count(channel: &Channel, up_to: u64) -> Result<Streaming<u64>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
    let path = http::uri::PathAndQuery::from_static("/test.Echo/Count");
    let codec = ProstCodec::<u64, u64>::default();
    Ok(grpc.server_streaming(Request::new(up_to), path, codec).await?.into_inner())
}

/// Checks that a stream has every number in order, and its end.
pub async fn whole(mut numbers: Streaming<u64>, up_to: u64) -> Result<(), String> {
    for expected in 1..=up_to {
        match numbers.next().await {
            Some(Ok(number)) if number == expected => {}
            other => return Err(format!("{other:?} in the place of {expected}")),
        }
    }
    match numbers.next().await {
        None => Ok(()),
        other => Err(format!("{other:?} after the end")),
    }
}

/// Client that follows no rules: it shows any certificate, and would resume sessions.
pub struct Stranger(Arc<ClientConfig>);

impl Stranger {
    pub fn new(bundle: &str, shows: Option<&Leaf>) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            Some(leaf) => {
                let chain = CertificateDer::pem_slice_iter(leaf.chain.as_bytes());
                let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self(Arc::new(config))
    }

    pub async fn connect(
        &self,
        server: &Server,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        self.connect_from(Ipv4Addr::LOCALHOST.into(), server).await
    }

    pub async fn connect_from(
        &self,
        from: IpAddr,
        server: &Server,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(server.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(self.0.clone()).connect(name, stream).await
    }

    /// Makes a call over one connection.
    pub async fn ping(&self, server: &Server) -> Result<u64, String> {
        let stream = self.connect(server).await.map_err(|e| e.to_string())?;
        let stream = std::sync::Mutex::new(Some(stream));
        let connector = service_fn(move |_| {
            let stream = stream.lock().unwrap().take();
            async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let target = Target::from_static("http://test").timeout(Duration::from_secs(10));
        let channel = target.connect_with_connector(connector).await.map_err(|e| e.to_string())?;
        ping(&channel, 1).await.map_err(|status| status.to_string())
    }
}

/// Polls until the condition holds.
pub async fn until(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let limit = Duration::from_secs(15);
    let asked = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
}
