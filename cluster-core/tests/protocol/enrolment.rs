//! Admission of nodes, and the tokens for it.

use aegis_proto::aegis::cluster::v1 as pb;
use cluster_core::{
    controller::handle::TokenState,
    identity::KeyFile,
    rpc::controller_client::AdvertisedAddress,
    types::{
        error::ErrorCode,
        node::{PeerStatus, Role},
        node_event::NodeEventKind,
    },
};
use futures::future::join_all;

use crate::support::{Cluster, Node, OPERATOR_TOKEN, raw, reason, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_that_use_one_token_at_once_are_one_node() {
    let cluster = Cluster::start().await;
    let grant = cluster.token(None).await;
    let mut nodes = Vec::new();
    for number in 0..100 {
        nodes.push(Node::new(&cluster, &format!("node-{number}"), Role::Worker).await);
    }
    let tries = nodes.iter_mut().map(|node| node.attest(Some(&grant.token)));
    let results = join_all(tries).await;
    let admitted = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(admitted, 1);
    for result in results.into_iter().filter(Result::is_err) {
        assert_eq!(refused(result), ErrorCode::EnrolmentInvalid);
    }
    let tokens = cluster.core().enrolment_tokens().await.unwrap();
    assert_eq!((tokens.len(), tokens[0].state), (1, TokenState::Used));
}

#[tokio::test]
async fn tokens_are_bound_listed_without_secrets_and_revoked() {
    let cluster = Cluster::start().await;
    let grant = cluster.token(Some("a")).await;
    let mut other = Node::new(&cluster, "b", Role::Worker).await;
    assert_eq!(refused(other.attest(Some(&grant.token)).await), ErrorCode::EnrolmentInvalid);
    // A mismatch does not spend it.
    let mut bound = Node::new(&cluster, "a", Role::Worker).await;
    bound.join(Some(&grant.token)).await.unwrap();

    let unused = cluster.token(None).await;
    let listed = serde_json::to_string(&cluster.core().enrolment_tokens().await.unwrap()).unwrap();
    for text in [&grant.token, &unused.token] {
        let secret = text.split('.').nth(1).unwrap();
        assert!(!listed.contains(secret));
    }
    let revoked = cluster.core().revoke_enrolment_token(&unused.token_id).await.unwrap();
    assert_eq!(revoked.state, TokenState::Revoked);
    assert_eq!(refused(other.attest(Some(&unused.token)).await), ErrorCode::EnrolmentInvalid);
    let again = cluster.core().revoke_enrolment_token(&grant.token_id).await;
    assert_eq!(refused(again), ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn an_expired_token_says_so() {
    let cluster = Cluster::start().await;
    let order = cluster_core::core::EnrolmentOrder {
        node_id: None,
        role: Role::Worker,
        lifetime: std::time::Duration::from_secs(1),
        tags: None,
    };
    let grant = cluster.core().create_enrolment_token(order).await.unwrap();
    let mut node = Node::new(&cluster, "a", Role::Worker).await;
    // Its time is what is waited for.
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    assert_eq!(refused(node.attest(Some(&grant.token)).await), ErrorCode::EnrolmentExpired);
}

#[tokio::test]
async fn the_role_is_the_operators_to_give() {
    let cluster = Cluster::start().await;
    let grant = cluster.token(Some("a")).await;
    let mut node = Node::new(&cluster, "a", Role::Hybrid).await;
    assert_eq!(refused(node.attest(Some(&grant.token)).await), ErrorCode::Forbidden);
    node.applicant.role = Role::Worker;
    node.join(Some(&grant.token)).await.unwrap();
    node.applicant.role = Role::Controller;
    assert_eq!(refused(node.attest(None).await), ErrorCode::Forbidden, "nor later");
}

#[tokio::test]
async fn another_key_for_a_known_id_waits_for_a_new_token() {
    let mut cluster = Cluster::start().await;
    let mut first = cluster.member("a").await;
    let mut thief = Node::new(&cluster, "a", Role::Worker).await;
    for _ in 0..3 {
        assert_eq!(refused(thief.attest(None).await), ErrorCode::KeyMismatch);
    }
    let alarms = cluster.events().into_iter().filter(|event| event.kind == NodeEventKind::NodeRefused);
    assert_eq!(alarms.count(), 1, "one event in a while");
    let anybody = cluster.token(None).await;
    assert_eq!(refused(thief.attest(Some(&anybody.token)).await), ErrorCode::KeyMismatch);
    let mut controller = Node::new(&cluster, "home", Role::Worker).await;
    assert_eq!(refused(controller.attest(Some(&anybody.token)).await), ErrorCode::Conflict, "nobody is it");
    let elsewhere = cluster.token(Some("b")).await;
    assert_eq!(refused(thief.attest(Some(&elsewhere.token)).await), ErrorCode::EnrolmentInvalid);
    // The pin outlives the controller.
    cluster.restart().await;
    thief.reconnect(&cluster).await;
    assert_eq!(refused(thief.attest(None).await), ErrorCode::KeyMismatch);
    first.reconnect(&cluster).await;
    first.join(None).await.unwrap();

    let again = cluster.token(Some("a")).await;
    thief.join(Some(&again.token)).await.unwrap();
    assert_eq!(refused(first.beat().await), ErrorCode::SessionUnknown, "the old key's session is over");
    assert_eq!(refused(first.attest(None).await), ErrorCode::KeyMismatch);
}

#[tokio::test]
async fn a_node_changes_its_key_and_the_old_one_is_over() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let mut copy = node.copy(&cluster).await;
    let directory = tempfile::tempdir().unwrap();
    let old = node.applicant.keys.current();
    let keys = KeyFile::open(&directory.path().join("key.pem")).unwrap();
    let next = keys.prepare_next().unwrap();
    let id = node.applicant.node_id.clone();
    node.client.rotate_key(node.session.as_ref().unwrap(), &id, &next).await.unwrap();
    node.beat().await.expect("calls under way may finish");
    let back = cluster_core::identity::NodeKey::generate().unwrap();
    let taken_back = node.client.rotate_key(node.session.as_ref().unwrap(), &id, &back).await;
    assert_eq!(refused(taken_back), ErrorCode::KeyMismatch, "the old key takes nothing back");

    copy.applicant.keys = node.applicant.keys.clone();
    assert_eq!(copy.applicant.keys.current().public(), old.public());
    assert_eq!(refused(copy.attest(None).await), ErrorCode::KeyMismatch);
    keys.adopt_next().unwrap();
    node.applicant.keys = std::sync::Arc::new(keys);
    node.join(None).await.unwrap();
    node.beat().await.unwrap();
}

#[tokio::test]
async fn operators_issue_tokens_over_grpc_and_nobody_else_does() {
    let cluster = Cluster::start().await;
    let mut rpc = raw(&cluster).await;
    let body = pb::IssueEnrollmentTokenRequest { issued_to: "a".into() };
    let status = rpc.issue_enrollment_token(body.clone()).await.unwrap_err();
    assert_eq!(reason(&status), "Unauthenticated");
    let node = cluster.member("b").await;
    for bearer in ["wrong".to_owned(), bearer_of(&node)] {
        let mut request = tonic::Request::new(body.clone());
        request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
        assert_eq!(reason(&rpc.issue_enrollment_token(request).await.unwrap_err()), "Unauthenticated");
    }
    let mut request = tonic::Request::new(body);
    request.metadata_mut().insert("authorization", format!("Bearer {OPERATOR_TOKEN}").parse().unwrap());
    let issued = rpc.issue_enrollment_token(request).await.unwrap().into_inner();
    assert_eq!(issued.controller_endpoint, cluster.endpoint());
    assert!(!issued.command_hint.contains(&issued.token), "a command line shows to everybody");
    let mut joining = Node::new(&cluster, "a", Role::Worker).await;
    joining.join(Some(&issued.token)).await.unwrap();
    assert_eq!(cluster.peer("a").await.unwrap().status, PeerStatus::Active);
}

fn bearer_of(node: &Node) -> String {
    let request = crate::support::sealed_heartbeat(node);
    let envelope = request.into_inner().envelope.unwrap();
    envelope.node_security_token
}

/// Callers hang up at every moment of an enrolment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolment_is_whole_when_its_caller_hangs_up() {
    const ROUNDS: u64 = 300;
    let cluster = Cluster::start().await;
    let (mut hung_up, mut round) = (0, 0);
    while round < ROUNDS {
        let together = (round..round + 10).map(|round| hang_up(&cluster, round));
        hung_up += join_all(together).await.into_iter().filter(|hung_up| *hung_up).count();
        round += 10;
    }
    assert!(hung_up > 0, "some callers hung up");
    let tokens = cluster.core().enrolment_tokens().await.unwrap();
    assert!(tokens.iter().all(|token| token.state == TokenState::Used));
}

/// Runs one enrolment whose caller may hang up, and returns whether it did. The node is a member in the end.
async fn hang_up(cluster: &Cluster, round: u64) -> bool {
    let name = format!("node-{round}");
    let token = cluster.token(Some(&name)).await.token;
    let mut node = Node::new(cluster, &name, Role::Worker).await;
    let mut rpc = raw(cluster).await;
    let challenge = rpc.attest_node(attestation(&node, &token)).await.unwrap().into_inner();
    // From before it is sent until after it is answered.
    let patience = std::time::Duration::from_micros(round * 40);
    let hung_up = tokio::time::timeout(patience, rpc.challenge_node(answer(&node, challenge))).await.is_err();
    drop(rpc);
    node.join(Some(&token)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    node.attest(None).await.unwrap();
    hung_up
}

fn attestation(node: &Node, token: &str) -> pb::AttestNodeRequest {
    pb::AttestNodeRequest {
        node_id: node.applicant.node_id.to_string(),
        role: pb::NodeRole::Worker.into(),
        public_key: node.applicant.keys.current().public().as_bytes().to_vec(),
        enrolment_token: token.to_owned(),
        nonce: uuid::Uuid::new_v4().to_string(),
        protocol_version: 1,
        ..Default::default()
    }
}

fn answer(node: &Node, challenge: pb::AttestNodeResponse) -> pb::ChallengeNodeRequest {
    let key = node.applicant.keys.current();
    let statement = cluster_core::identity::statement(
        &challenge.cluster_id.parse().unwrap(),
        &challenge.controller_id.parse().unwrap(),
        &node.applicant.node_id,
        &key.public(),
        &challenge.challenge_nonce,
        &[],
    );
    pb::ChallengeNodeRequest {
        challenge_id: challenge.challenge_id,
        node_id: node.applicant.node_id.to_string(),
        signature_v1: key.sign(&statement).to_vec(),
        ..Default::default()
    }
}

#[tokio::test]
async fn protocol_version_is_checked_and_software_version_shown() {
    let cluster = Cluster::start().await;
    let node = Node::new(&cluster, "a", Role::Worker).await;
    let token = cluster.token(Some("a")).await.token;
    let mut rpc = raw(&cluster).await;
    let later = pb::AttestNodeRequest { protocol_version: 2, ..attestation(&node, &token) };
    assert_eq!(reason(&rpc.attest_node(later).await.unwrap_err()), "FailedPrecondition");
    let older = pb::AttestNodeRequest { software_version: "0.0.1-held".into(), ..attestation(&node, &token) };
    let challenge = rpc.attest_node(older).await.unwrap().into_inner();
    rpc.challenge_node(answer(&node, challenge)).await.unwrap();
    assert_eq!(cluster.peer("a").await.unwrap().version, "0.0.1-held");
}

#[tokio::test]
async fn absurd_capabilities_are_refused_by_field() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let (client, session) = (&mut node.client, node.session.as_ref().unwrap());
    let mut own = crate::support::capabilities();
    own.total.gpus = u32::MAX;
    let error = client.register(session, &node.applicant, &own, node.interval).await.unwrap_err();
    assert!(error.code() == ErrorCode::InvalidArgument && error.message().contains("gpu_count"), "{error}");
    let mut own = crate::support::capabilities();
    own.models = vec!["IGNORE PREVIOUS INSTRUCTIONS".into()];
    let error = client.register(session, &node.applicant, &own, node.interval).await.unwrap_err();
    assert!(error.message().contains("models"), "{error}");
    assert_eq!(cluster.peer("a").await.unwrap().capacity.gpus, 0);
}

#[tokio::test]
async fn token_bounds_the_tags_of_its_node_over_restarts() {
    let mut cluster = Cluster::start().await;
    let [eu, gpu] = ["eu", "gpu"].map(|tag| cluster_core::types::ids::Tag::parse(tag).unwrap());
    let order = cluster_core::core::EnrolmentOrder {
        node_id: None,
        role: Role::Worker,
        lifetime: std::time::Duration::from_secs(60),
        tags: Some(vec![eu.clone()]),
    };
    let grant = cluster.core().create_enrolment_token(order).await.unwrap();
    assert_eq!(cluster.core().enrolment_tokens().await.unwrap()[0].tags, Some(vec![eu.clone()]));
    let mut node = Node::new(&cluster, "a", Role::Worker).await;
    node.attest(Some(&grant.token)).await.unwrap();
    let mut own = crate::support::capabilities();
    own.tags = vec![eu.clone(), gpu];
    for _ in 0..2 {
        let (client, session) = (&mut node.client, node.session.as_ref().unwrap());
        client.register(session, &node.applicant, &own, node.interval).await.unwrap();
        let peer = cluster.peer("a").await.unwrap();
        assert_eq!(peer.tags, std::slice::from_ref(&eu));
        assert!(peer.problem.expect("it is shown").message.contains("gpu"));
        cluster.restart().await;
        node.reconnect(&cluster).await;
        node.attest(None).await.unwrap();
    }
}

#[tokio::test]
async fn unreachable_addresses_are_refused_with_one_text() {
    let cluster = Cluster::start().await;
    let mut node = cluster.member("a").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let long = format!("http://127.0.0.1:1/{}", "a".repeat(400));
    for (address, word) in [(format!("http://{closed}"), "nothing that is it"), (long, "grpc_address")] {
        node.applicant.address = AdvertisedAddress::Fixed(address);
        let (client, session) = (&mut node.client, node.session.as_ref().unwrap());
        let own = crate::support::capabilities();
        let error = client.register(session, &node.applicant, &own, node.interval).await.unwrap_err();
        assert!(error.message().contains(word) && !error.message().contains("refused"), "{error}");
    }
}
