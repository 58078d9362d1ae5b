use aegis_identity::{TOKEN_LIFETIME_SECS, TokenSigner};
use aegis_types::{ids::ClusterId, node::Role};

use super::*;

const NOW_MS: i64 = 1_700_000_000_000;

struct Setting {
    keys: TokenKeys,
    signer: TokenSigner,
    node: Arc<NodeKey>,
}

fn claims(key: &PublicKey) -> Claims {
    Claims {
        iss: NodeId::parse("ctrl").unwrap(),
        aud: ClusterId::parse("c1").unwrap(),
        sub: NodeId::parse("edge-1").unwrap(),
        role: Role::Worker,
        capabilities_hash: String::new(),
        cnf: key.thumbprint(),
        jti: "j".into(),
        iat: NOW_MS / 1000,
        nbf: NOW_MS / 1000,
        exp: NOW_MS / 1000 + TOKEN_LIFETIME_SECS,
    }
}

impl Setting {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cluster, issuer) = (ClusterId::parse("c1").unwrap(), NodeId::parse("ctrl").unwrap());
        let path = directory.path().join("k.pem");
        let signer = TokenSigner::local(&path, cluster.clone(), issuer.clone()).unwrap();
        let keys = TokenKeys::parse(&signer.key_set().unwrap(), cluster, issuer).unwrap();
        Self { keys, signer, node: Arc::new(NodeKey::generate().unwrap()) }
    }

    fn token(&self, claims: &Claims) -> String {
        futures::executor::block_on(self.signer.sign(claims)).unwrap()
    }

    fn sealer(&self) -> Sealer {
        let token = self.token(&claims(&self.node.public()));
        let clock = ClusterClock::new(NOW_MS, Instant::now());
        let sender = NodeId::parse("edge-1").unwrap();
        Sealer::new(self.node.clone(), sender, "c1".into(), token, SessionId::mint(), 1, clock)
    }

    fn open<M: Sealed>(&self, metadata: &MetadataMap, envelope: pb::SealNodeEnvelope) -> Result<Opened<M>> {
        let expected = Expected { keys: &self.keys, audiences: &["c1"], now_ms: NOW_MS };
        begin(Some(envelope), &expected)?.read::<M>()?.open(metadata, &expected, &self.node.public())
    }
}

fn heartbeat(node: &str) -> pb::NodeHeartbeatInner {
    pb::NodeHeartbeatInner { node_id: node.into(), ..Default::default() }
}

#[test]
fn a_sealed_call_opens_and_nothing_else_does() {
    let setting = Setting::new();
    let sealer = setting.sealer();
    let (metadata, _, envelope) = sealer.seal(heartbeat("edge-1"), |e| e).unwrap().into_parts();
    let opened = setting.open::<pb::NodeHeartbeatInner>(&metadata, envelope.clone()).unwrap();
    assert_eq!((opened.context.sequence, opened.context.sender.as_str()), (1, "edge-1"));

    // The same bytes decoded as another message of the same shape.
    let other = setting.open::<pb::DeregisterNodeInner>(&metadata, envelope.clone()).unwrap_err();
    assert_eq!(other.code(), ErrorCode::InvalidSignature, "{other}");
    assert!(other.to_string().contains("Heartbeat"));

    let without = setting.open::<pb::NodeHeartbeatInner>(&MetadataMap::new(), envelope.clone()).unwrap_err();
    assert_eq!(without.code(), ErrorCode::Unauthenticated);

    let mut changed = envelope.clone();
    changed.payload.extend_from_slice(&[0x18, 0x07]);
    let error = setting.open::<pb::NodeHeartbeatInner>(&metadata, changed).unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidSignature);
}

#[test]
fn a_node_speaks_only_for_itself() {
    let setting = Setting::new();
    let (metadata, _, envelope) = setting.sealer().seal(heartbeat("edge-2"), |e| e).unwrap().into_parts();
    let error = setting.open::<pb::NodeHeartbeatInner>(&metadata, envelope).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotYours);
}

#[test]
fn payload_without_context_or_with_another_token_is_refused() {
    let setting = Setting::new();
    let sealer = setting.sealer();
    let (metadata, _, mut envelope) = sealer.seal(heartbeat("edge-1"), |e| e).unwrap().into_parts();
    envelope.payload = heartbeat("edge-1").encode_to_vec();
    envelope.signature = setting.node.sign(&envelope.payload).to_vec();
    let error = setting.open::<pb::NodeHeartbeatInner>(&metadata, envelope).unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnsealedContext);

    let (_, _, first) = sealer.seal(heartbeat("edge-1"), |e| e).unwrap().into_parts();
    let fresh = setting.token(&Claims { jti: "k".into(), ..claims(&setting.node.public()) });
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {fresh}").parse().unwrap());
    let swapped = pb::SealNodeEnvelope { node_security_token: fresh, ..first };
    let error = setting.open::<pb::NodeHeartbeatInner>(&metadata, swapped).unwrap_err();
    assert!(error.to_string().contains("another token"), "{error}");
}

#[tokio::test]
async fn a_rotated_token_key_leaves_an_open_session_as_it_is() {
    let setting = Setting::new();
    let sealer = setting.sealer();
    let before = setting.signer.keys();
    setting.signer.rotate().await.unwrap();
    let (metadata, _, envelope) = sealer.seal(heartbeat("edge-1"), |e| e).unwrap().into_parts();
    let now = setting.signer.keys();
    // The controller with its new keys, and a worker that has only the keys of its attestation.
    for keys in [&*now, &*before] {
        let expected = Expected { keys, audiences: &["c1"], now_ms: NOW_MS };
        let unopened = begin(Some(envelope.clone()), &expected).unwrap();
        let unproven = unopened.read::<pb::NodeHeartbeatInner>().unwrap();
        unproven.open(&metadata, &expected, &setting.node.public()).unwrap();
    }
    // Later signatures are for later sessions: an older key set does not have their key.
    let claims = Claims { jti: "n".into(), ..claims(&setting.node.public()) };
    let fresh = setting.signer.sign(&claims).await.unwrap();
    assert!(now.verify(&fresh, NOW_MS / 1000).is_ok());
    assert!(before.verify(&fresh, NOW_MS / 1000).is_err());
}
