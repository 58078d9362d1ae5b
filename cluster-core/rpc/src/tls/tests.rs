//! Real clients and servers over TLS on loopback.

mod pki;
mod world;

use std::time::{Duration, Instant};

use aegis_identity::{Authority, Fingerprint};
use aegis_types::{error::ErrorCode, ids::NodeId};
use futures::{StreamExt as _, future::join_all};
use pki::{Files, Leaf, Pki, Say, self_signed};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    HandshakeKind,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_util::sync::CancellationToken;
use world::{NODE, Server, Stranger, attest, channel, channel_to, count, credentials, ping, until, whole};

use super::{Credentials, Expect, HostPort, PeerRule, Trust, client, files, refusal};
use crate::status::from_status;

const SERVER: &[&str] = &["controller", "localhost", "127.0.0.1"];

fn operator(files: &Files, stop: &CancellationToken) -> Credentials {
    files::watch(files.paths(), PeerRule::Required, stop.clone()).unwrap()
}

#[tokio::test]
async fn bad_client_certificates_are_refused_and_good_ones_served() {
    let (pki, other) = (Pki::new("ours"), Pki::new("theirs"));
    for rule in [PeerRule::Required, PeerRule::Optional] {
        let server = Server::start(credentials(Some(&pki.good(SERVER)), &pki.pem, rule)).await;
        let only_server = Say { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..Say::names(&[NODE]) };
        let mut huge = pki.good(&[NODE]);
        while huge.chain.len() < 1_400_000 {
            huge.chain.push_str(&pki.pem);
        }
        let refused: [(&str, Leaf); 9] = [
            ("of tomorrow", pki.leaf(&Say { begins_later: true, ..Say::names(&[NODE]) })),
            ("self-signed", self_signed(&Say::names(&[NODE]))),
            ("expired", pki.leaf(&Say { ended: true, ..Say::names(&[NODE]) })),
            ("another CA's", other.good(&[NODE])),
            ("for servers only", pki.leaf(&only_server)),
            ("another node's", pki.good(&["edge-2"])),
            ("a wildcard's", pki.good(&["*.edge-1", "*.example"])),
            ("without a name", pki.good(&[])),
            ("with a chain of 1 MB", huge),
        ];
        for (what, leaf) in refused {
            let began = Instant::now();
            let answer = Stranger::new(&pki.pem, Some(&leaf)).ping(&server).await;
            assert!(answer.is_err(), "a certificate {what} was taken");
            assert!(began.elapsed() < Duration::from_secs(5), "{what}: {:?}", began.elapsed());
        }
        assert!(Stranger::new(&pki.pem, None).ping(&server).await.is_err(), "none");
        Stranger::new(&pki.pem, Some(&pki.good(&[NODE]))).ping(&server).await.unwrap();
    }
}

#[tokio::test]
async fn a_worker_is_told_why_as_untrusted_ca() {
    let (pki, other) = (Pki::new("ours"), Pki::new("theirs"));
    let server = Server::start(credentials(Some(&pki.good(SERVER)), &pki.pem, PeerRule::Required)).await;
    let unnamed = credentials(Some(&pki.good(&["elsewhere.example"])), &pki.pem, PeerRule::Required);
    let unnamed = Server::start(unnamed).await;
    let to = server.dialled("localhost");
    for (credentials, dialled, expected) in [
        (credentials(Some(&pki.good(&[NODE])), &other.pem, PeerRule::Required), &to, "not signed by a CA"),
        (
            credentials(Some(&other.good(&[NODE])), &pki.pem, PeerRule::Required),
            &to,
            "does not trust this node",
        ),
        (credentials(None, &pki.pem, PeerRule::Required), &to, "wants a certificate"),
        (
            credentials(Some(&pki.good(&[NODE])), &pki.pem, PeerRule::Required),
            &unnamed.dialled("localhost"),
            "not made for the name",
        ),
    ] {
        let error = client::connect(&credentials, dialled, Expect::Host, false).await.unwrap_err();
        let told = refusal::of("the controller", &error).unwrap_or_else(|| panic!("{expected}: {error}"));
        assert_eq!(told.code(), ErrorCode::UntrustedCa, "{told}");
        assert!(told.message().contains(expected), "{told}");
        assert!(told.remedy_text().is_some(), "{told}");
    }
    // Also through a channel.
    let stranger = credentials(Some(&other.good(&[NODE])), &pki.pem, PeerRule::Required);
    let status = ping(&channel(&stranger, &server), 1).await.unwrap_err();
    assert_eq!(refusal::of("it", &status).map(|e| e.code()), Some(ErrorCode::UntrustedCa), "{status:?}");
}

#[tokio::test]
async fn a_node_is_known_by_its_id_and_not_by_where_it_is() {
    let pki = Pki::new("ours");
    let own = credentials(Some(&pki.good(&["controller"])), &pki.pem, PeerRule::Required);
    // A name of digits alone is a valid id, though not a host name.
    for (names, node, answers) in [
        (&["edge-1"][..], "edge-1", true),
        (&["12345"], "12345", true),
        (&["edge-2", "localhost", "127.0.0.1"], "edge-1", false),
        (&["*"], "edge-1", false),
    ] {
        let leaf = pki.good(names);
        let server = Server::start(credentials(Some(&leaf), &pki.pem, PeerRule::Required)).await;
        let expect = Expect::Node(NodeId::parse(node).unwrap());
        let reached = client::connect(&own, &server.dialled("127.0.0.1"), expect, false).await;
        assert_eq!(reached.is_ok(), answers, "{names:?}: {reached:?}");
    }
}

#[tokio::test]
async fn joining_node_verifies_controller_by_ca_fingerprint() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = Authority::load_or_create(directory.path(), vec!["localhost".to_owned()]).unwrap();
    let other = Authority::load_or_create(elsewhere.path(), Vec::new()).unwrap();
    let id = NodeId::parse("controller").unwrap();
    let own = authority.issue_own(&id).unwrap();
    let leaf = Leaf { chain: own.chain_pem.clone(), key: own.key_pem.to_string() };
    let server =
        Server::start(credentials(Some(&leaf), authority.certificate_pem(), PeerRule::Optional)).await;
    let joining = |pinned| Credentials::new(PeerRule::Required, None, Trust::pinned(pinned)).unwrap();
    let reach = async |pinned, host: &str| {
        client::connect(&joining(pinned), &server.dialled(host), Expect::Host, false)
            .await
            .map_err(|e| refusal::of("it", &e).map(|e| e.code()))
    };
    reach(Some(authority.fingerprint()), "localhost").await.unwrap();
    let leaf_der = CertificateDer::from_pem_slice(own.chain_pem.as_bytes()).unwrap();
    for pinned in [None, Some(other.fingerprint()), Some(Fingerprint::of(&leaf_der))] {
        assert_eq!(reach(pinned, "localhost").await.unwrap_err(), Some(ErrorCode::UntrustedCa));
    }
    let wrong_host = reach(Some(authority.fingerprint()), "127.0.0.1").await;
    assert_eq!(wrong_host.unwrap_err(), Some(ErrorCode::UntrustedCa));

    // Without a certificate the node may attest, and make no other call.
    let bare = channel(&joining(Some(authority.fingerprint())), &server);
    assert_eq!(attest(&bare, 7).await.unwrap(), 7);
    let error = from_status(&ping(&bare, 7).await.unwrap_err());
    assert_eq!(error.code(), ErrorCode::UntrustedCa);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificate_under_load_drops_no_call() {
    const CONNECTIONS: usize = 10;
    const STREAMS_EACH: usize = 100;
    const LENGTH: u64 = 20;
    let pki = Pki::new("ours");
    let stop = CancellationToken::new();
    let (serving, calling) =
        (Files::new(&pki.good(SERVER), &pki.pem), Files::new(&pki.good(&[NODE]), &pki.pem));
    let server = Server::start(operator(&serving, &stop)).await;
    let caller = operator(&calling, &stop);
    let channels: Vec<_> = (0..CONNECTIONS).map(|_| channel(&caller, &server)).collect();
    let streams = channels.iter().flat_map(|channel| (0..STREAMS_EACH).map(move |_| count(channel, LENGTH)));
    let streams =
        join_all(streams).await.into_iter().map(|stream| tokio::spawn(whole(stream.unwrap(), LENGTH)));
    let streams: Vec<_> = streams.collect();

    let pinging = CancellationToken::new();
    let pings: Vec<_> = channels
        .iter()
        .cloned()
        .map(|channel| {
            let pinging = pinging.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while !pinging.is_cancelled() {
                    assert_eq!(ping(&channel, done).await.unwrap(), done);
                    done += 1;
                }
                done
            })
        })
        .collect();
    for _ in 0..3 {
        let (new_server, new_caller) = (pki.good(SERVER), pki.good(&[NODE]));
        serving.put(&new_server);
        calling.put(&new_caller);
        let expected = CertificateDer::from_pem_slice(new_server.chain.as_bytes()).unwrap();
        let stranger = Stranger::new(&pki.pem, Some(&pki.good(&[NODE])));
        until("the new certificate is shown", async || {
            let stream = stranger.connect(&server).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0] == expected
        })
        .await;
        // Also for new connections of the caller whose own certificate changed.
        ping(&channel(&caller, &server), 1).await.unwrap();
    }
    pinging.cancel();
    let pinged: u64 = join_all(pings).await.into_iter().map(|done| done.unwrap()).sum();
    let ended = join_all(streams).await;
    let dropped: Vec<_> = ended.into_iter().filter_map(|end| end.unwrap().err()).collect();
    assert!(dropped.is_empty(), "{} streams dropped: {:?}", dropped.len(), dropped.first());
    println!("{} streams of {LENGTH} and {pinged} calls, none dropped", CONNECTIONS * STREAMS_EACH);
    stop.cancel();
}

#[tokio::test]
async fn bad_files_are_told_and_the_old_ones_stay() {
    let (pki, stop) = (Pki::new("ours"), CancellationToken::new());
    let first = pki.good(SERVER);
    let files = Files::new(&first, &pki.pem);
    let serving = operator(&files, &stop);
    let server = Server::start(serving.clone()).await;
    let caller = credentials(Some(&pki.good(&[NODE])), &pki.pem, PeerRule::Required);
    let half = &first.chain[..first.chain.len() / 2];
    let (other, expired) = (pki.good(SERVER), pki.leaf(&Say { ended: true, ..Say::names(SERVER) }));
    for (what, name, text, told) in [
        ("half-written", "node.crt", half, "node.crt"),
        ("another key's", "node.crt", other.chain.as_str(), "do not belong together"),
        ("empty", "node.crt", "", "holds none"),
        ("no certificate at all", "node.crt", "nonsense", "node.crt"),
        ("half-written key", "node.key", &first.key[..first.key.len() / 2], "key"),
        ("half-written CA", "ca.crt", &pki.pem[..pki.pem.len() / 2], "ca.crt"),
        ("no CA's", "ca.crt", first.chain.as_str(), "not a CA"),
    ] {
        files.write(name, text);
        until(what, async || serving.problem().is_some_and(|problem| problem.contains(told))).await;
        ping(&channel(&caller, &server), 1).await.unwrap();
        files.put(&first);
        files.write("ca.crt", &pki.pem);
        until("it is well again", async || serving.problem().is_none()).await;
    }
    files.put(&expired);
    until("it is told as expired", async || {
        serving.problem().is_some_and(|problem| problem.contains("expired"))
    })
    .await;
    files.put(&pki.leaf(&Say { begins_later: true, ..Say::names(SERVER) }));
    until("it is told as too early", async || {
        serving.problem().is_some_and(|problem| problem.contains("not valid yet"))
    })
    .await;
    ping(&channel(&caller, &server), 1).await.unwrap();
    stop.cancel();
}

#[tokio::test]
async fn ca_rotation_loses_no_call_and_cuts_clients_of_the_old_ca() {
    let (old, new) = (Pki::new("old"), Pki::new("new"));
    let stop = CancellationToken::new();
    let serving = Files::new(&old.good(SERVER), &old.pem);
    let calling = Files::new(&old.good(&[NODE]), &old.pem);
    let (server_side, caller) = (operator(&serving, &stop), operator(&calling, &stop));
    let server = Server::start(server_side).await;
    let both = format!("{}{}", old.pem, new.pem);
    // A client that keeps its old certificate, and would even resume sessions.
    let stays = Stranger::new(&both, Some(&old.good(&[NODE])));
    stays.ping(&server).await.unwrap();
    let holder = channel(&credentials(Some(&old.good(&[NODE])), &both, PeerRule::Required), &server);
    let mut held = count(&holder, 10_000).await.unwrap();
    assert_eq!(held.next().await.unwrap().unwrap(), 1);
    // A client that reconnects for a new certificate, as a worker does.
    let following = CancellationToken::new();
    let follows = tokio::spawn(follow(caller.clone(), server.dialled("localhost"), following.clone()));

    let begun = *caller.version().borrow();
    serving.write("ca.crt", &both);
    calling.write("ca.crt", &both);
    let newcomer = Stranger::new(&both, Some(&new.good(&[NODE])));
    until("both CAs are trusted on both sides", async || {
        newcomer.ping(&server).await.is_ok() && *caller.version().borrow() > begun
    })
    .await;
    serving.put(&new.good(SERVER));
    let trusts_new = Stranger::new(&new.pem, Some(&old.good(&[NODE])));
    until("the server's certificate is the new CA's", async || trusts_new.connect(&server).await.is_ok())
        .await;
    calling.put(&new.good(&[NODE]));
    let trust = Trust::of_pem(new.pem.as_bytes(), None).unwrap();
    until("the caller's is, too", async || {
        let now = rustls::pki_types::UnixTime::now();
        caller.identity().is_some_and(|own| trust.verify_client(&own.chain()[0], &[], now).is_ok())
    })
    .await;

    serving.write("ca.crt", &new.pem);
    calling.write("ca.crt", &new.pem);
    let cut = async { while let Some(Ok(_)) = held.next().await {} };
    let cut = tokio::time::timeout(Duration::from_secs(10), cut).await;
    cut.expect("the stream of the old certificate's holder is cut");
    assert!(ping(&holder, 1).await.is_err(), "and the holder is refused");
    assert!(stays.ping(&server).await.is_err(), "nor does it resume");
    newcomer.ping(&server).await.unwrap();
    following.cancel();
    let (done, failed) = follows.await.unwrap();
    assert_eq!(failed, Vec::<String>::new(), "no call was lost");
    println!("{done} calls while the CA was replaced, none lost");
    stop.cancel();
}

/// Calls without a pause until stopped. Returns the number of calls, and the failures.
async fn follow(caller: Credentials, to: HostPort, stop: CancellationToken) -> (u64, Vec<String>) {
    let mut version = caller.version();
    let mut channel = channel_to(&caller, &to);
    let (mut done, mut failed) = (0, Vec::new());
    while !stop.is_cancelled() {
        if version.has_changed().unwrap() {
            version.mark_unchanged();
            channel = channel_to(&caller, &to);
        }
        match ping(&channel, done).await {
            Ok(_) => done += 1,
            Err(status) => failed.push(status.to_string()),
        }
    }
    (done, failed)
}

#[tokio::test]
async fn no_session_is_resumed() {
    let pki = Pki::new("ours");
    let server = Server::start(credentials(Some(&pki.good(SERVER)), &pki.pem, PeerRule::Required)).await;
    let stranger = Stranger::new(&pki.pem, Some(&pki.good(&[NODE])));
    for _ in 0..3 {
        let mut stream = stranger.connect(&server).await.unwrap();
        // A ticket would arrive with the first bytes.
        stream.read_u8().await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn who_does_not_finish_the_handshake_is_put_out() {
    let pki = Pki::new("ours");
    let server = Server::start(credentials(Some(&pki.good(SERVER)), &pki.pem, PeerRule::Required)).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(8), silent.read(&mut [0; 16])).await;
    assert_eq!(ended.expect("within the limit").unwrap_or(0), 0);
    Stranger::new(&pki.pem, Some(&pki.good(&[NODE]))).ping(&server).await.unwrap();
}

#[tokio::test]
async fn many_silent_callers_from_one_address_do_not_keep_others_out() {
    let pki = Pki::new("ours");
    let server = Server::start(credentials(Some(&pki.good(SERVER)), &pki.pem, PeerRule::Required)).await;
    let silent = join_all((0..300).map(|_| TcpStream::connect(server.address))).await;
    let began = Instant::now();
    let elsewhere = Stranger::new(&pki.pem, Some(&pki.good(&[NODE])));
    elsewhere.connect_from([127, 0, 0, 2].into(), &server).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(silent.len(), 300);
}

#[tokio::test]
async fn expired_connection_takes_no_new_call_and_ends_no_stream() {
    const AGE: Duration = Duration::from_secs(1);
    const LENGTH: u64 = 14;
    let pki = Pki::new("ours");
    let serving = credentials(Some(&pki.good(SERVER)), &pki.pem, PeerRule::Required);
    let server = Server::start_aged(serving, Some(AGE)).await;
    let caller = credentials(Some(&pki.good(&[NODE])), &pki.pem, PeerRule::Required);
    let channel = channel(&caller, &server);
    let stream = tokio::spawn(whole(count(&channel, LENGTH).await.unwrap(), LENGTH));
    let (mut done, mut crossed) = (0, 0);
    while !stream.is_finished() {
        match ping(&channel, 1).await {
            Ok(_) => done += 1,
            // The call was queued when the end was announced, and never sent.
            Err(status) => {
                assert_eq!(from_status(&status).code(), ErrorCode::Unavailable, "{status}");
                crossed += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stream.await.unwrap().unwrap();
    println!("{done} calls done, {crossed} crossed with the end of a connection");
    assert!(crossed <= 4, "one a connection at most");
}
