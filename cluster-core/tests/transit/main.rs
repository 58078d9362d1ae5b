//! Node security tokens signed by OpenBao, against a strict fake of its endpoints.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fake;

use std::time::{Duration, Instant};

use cluster_core::{
    identity::{Claims, TOKEN_LIFETIME_SECS, TokenKeys, TokenSigner, TransitAuth, TransitSettings},
    types::{
        error::ErrorCode,
        ids::{ClusterId, NodeId},
        node::Role,
    },
};
use fake::{Fake, KEY, NAMESPACE, ROLE_ID, SECRET_ID};

const NOW: i64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(20);

fn names() -> (ClusterId, NodeId) {
    (ClusterId::parse("c1").unwrap(), NodeId::parse("ctrl").unwrap())
}

fn claims() -> Claims {
    let (cluster, issuer) = names();
    Claims {
        iss: issuer,
        aud: cluster,
        sub: NodeId::parse("edge-1").unwrap(),
        role: Role::Worker,
        capabilities_hash: String::new(),
        cnf: "t".into(),
        jti: "j".into(),
        iat: NOW,
        nbf: NOW,
        exp: NOW + TOKEN_LIFETIME_SECS,
    }
}

fn approle(secret_id: &str) -> TransitAuth {
    TransitAuth::AppRole { role_id: ROLE_ID.into(), secret_id: secret_id.into() }
}

fn settings(fake: &Fake, auth: TransitAuth) -> TransitSettings {
    TransitSettings {
        address: format!("http://{}", fake.address).parse().unwrap(),
        auth,
        namespace: Some(NAMESPACE.into()),
        mount: "transit".into(),
        key_name: KEY.into(),
        ca_cert: None,
    }
}

fn signer_with(settings: TransitSettings) -> TokenSigner {
    let (cluster, issuer) = names();
    TokenSigner::transit(settings, cluster, issuer).unwrap()
}

fn signer(fake: &Fake) -> TokenSigner {
    signer_with(settings(fake, approle(SECRET_ID)))
}

async fn sign(signer: &TokenSigner) -> String {
    signer.sign(&claims()).await.unwrap()
}

#[tokio::test]
async fn what_transit_signs_verifies_here_and_where_the_keys_are_sent() {
    let fake = Fake::start().await;
    let signer = signer(&fake);
    assert_eq!(signer.view().signs, None, "nothing is asked before it is needed");
    let token = sign(&signer).await;
    let (cluster, issuer) = names();
    let told = TokenKeys::parse(&signer.key_set().unwrap(), cluster, issuer).unwrap();
    for keys in [&*signer.keys(), &told] {
        assert_eq!(keys.verify(&token, NOW).unwrap(), claims());
        let error = keys.verify(&token, NOW + TOKEN_LIFETIME_SECS).unwrap_err();
        assert_eq!(error.code(), ErrorCode::TokenExpired);
    }
    for _ in 0..20 {
        sign(&signer).await;
    }
    let inside = fake.inside();
    assert_eq!((inside.logins, inside.signatures), (1, 21), "one login for all");
}

#[tokio::test]
async fn a_rotation_is_followed_and_old_tokens_stay_valid() {
    let fake = Fake::start().await;
    let signer = signer(&fake);
    let old = sign(&signer).await;
    let first = signer.view().signs.unwrap();
    fake.rotate();
    // Until the next look the version that is known signs.
    assert!(signer.keys().verify(&sign(&signer).await, NOW).is_ok());
    signer.refresh(0).await.unwrap();
    let view = signer.view();
    assert_ne!(view.signs.as_ref(), Some(&first));
    assert_eq!(view.verifies, [view.signs.clone().unwrap(), first.clone()]);
    let new = sign(&signer).await;
    for token in [&old, &new] {
        assert!(signer.keys().verify(token, NOW).is_ok());
    }
    // The operator ends the old version: signing goes on at once, and its tokens are refused.
    fake.rotate();
    fake.inside().min_encryption_version = 3;
    let newest = sign(&signer).await;
    assert!(signer.keys().verify(&newest, NOW).is_ok(), "a version that may not sign any more is left");
    fake.inside().min_decryption_version = 3;
    signer.refresh(0).await.unwrap();
    assert_eq!(signer.keys().verify(&old, NOW).unwrap_err().code(), ErrorCode::Unauthenticated);
    assert!(signer.keys().verify(&newest, NOW).is_ok());
    let refused = signer.rotate().await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::FailedPrecondition, "Transit's key is rotated there");
}

#[tokio::test]
async fn lease_is_renewed_in_time_and_refused_token_is_replaced() {
    let fake = Fake::start().await;
    fake.inside().lease = Duration::from_secs(2);
    let signer = signer(&fake);
    let begun = Instant::now();
    while fake.inside().renewals < 2 {
        sign(&signer).await;
        assert!(begun.elapsed() < LIMIT, "not renewed");
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.inside().logins, 1);
    fake.revoke_all();
    sign(&signer).await;
    assert_eq!(fake.inside().logins, 2, "logged in anew after a 403");
}

#[tokio::test]
async fn at_the_end_of_its_longest_life_a_lease_gives_way_to_a_login() {
    let fake = Fake::start().await;
    fake.inside().lease = Duration::from_secs(2);
    fake.inside().longest_lease = Duration::from_secs(2);
    let signer = signer(&fake);
    let begun = Instant::now();
    while fake.inside().logins < 2 {
        sign(&signer).await;
        assert!(begun.elapsed() < LIMIT, "no new login");
        tokio::task::yield_now().await;
    }
    assert!(fake.inside().renewals <= 3, "{}", fake.inside().renewals);
}

#[tokio::test]
async fn a_token_of_the_operators_is_renewed_too() {
    let fake = Fake::start().await;
    fake.inside().lease = Duration::from_secs(2);
    fake.grant("s.operators", Duration::from_secs(2));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "s.operators\n").unwrap();
    let signer = signer_with(settings(&fake, TransitAuth::Token(format!("file:{}", path.display()))));
    let begun = Instant::now();
    while fake.inside().renewals < 1 {
        sign(&signer).await;
        assert!(begun.elapsed() < LIMIT, "not renewed");
        tokio::task::yield_now().await;
    }
    // Revoked, and replaced in its file: the new one is read.
    fake.revoke_all();
    let error = signer.sign(&claims()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(!error.chain().contains("s.operators"), "{}", error.chain());
    fake.grant("s.second", Duration::from_secs(60));
    std::fs::write(&path, "s.second\n").unwrap();
    sign(&signer).await;
}

#[tokio::test]
async fn while_openbao_is_away_tokens_verify_and_new_ones_wait() {
    let fake = Fake::start().await;
    let signer = signer(&fake);
    let token = sign(&signer).await;
    fake.inside().sealed = true;
    let error = signer.sign(&claims()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.remedy_text().is_some_and(|remedy| remedy.contains("by itself")), "{error}");
    assert!(signer.refresh(0).await.is_err());
    assert!(signer.keys().verify(&token, NOW).is_ok(), "what is out stays valid");
    fake.inside().sealed = false;
    assert!(signer.keys().verify(&sign(&signer).await, NOW).is_ok(), "and it goes on by itself");
    // A controller that starts in the middle of an outage.
    fake.inside().sealed = true;
    let started = signer_with(settings(&fake, approle(SECRET_ID)));
    assert_eq!(started.sign(&claims()).await.unwrap_err().code(), ErrorCode::Unavailable);
    fake.inside().sealed = false;
    sign(&started).await;
}

#[tokio::test]
async fn a_server_that_never_answers_or_never_ends_is_given_up() {
    let fake = Fake::start().await;
    let signer = signer(&fake);
    sign(&signer).await;
    fake.inside().flood = true;
    let error = signer.sign(&claims()).await.unwrap_err();
    assert!(error.message().contains("too large"), "{error}");
    fake.inside().flood = false;
    fake.inside().silent = true;
    let begun = Instant::now();
    assert_eq!(signer.sign(&claims()).await.unwrap_err().code(), ErrorCode::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
    fake.inside().silent = false;
    sign(&signer).await;
}

#[tokio::test]
async fn a_wrong_login_namespace_or_key_is_told_and_no_secret_with_it() {
    let fake = Fake::start().await;
    let wrong = "secret-of-somebody-else";
    for echo in [false, true] {
        fake.inside().echo = echo;
        let signer = signer_with(settings(&fake, approle(wrong)));
        let error = signer.sign(&claims()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(error.message().contains("AppRole"), "{error}");
        let everything = format!("{} {error:?} {signer:?}", error.chain());
        assert!(!everything.contains(wrong) && !everything.contains(ROLE_ID), "{everything}");
    }
    for change in [
        |settings: &mut TransitSettings| settings.namespace = None,
        |settings: &mut TransitSettings| settings.key_name = "another".into(),
        |settings: &mut TransitSettings| settings.mount = "elsewhere/transit".into(),
        |settings: &mut TransitSettings| settings.auth = TransitAuth::Token("s.made-up".into()),
        |settings: &mut TransitSettings| settings.auth = approle("env:AEGIS_SURELY_NOT_SET"),
    ] {
        let mut settings = settings(&fake, approle(SECRET_ID));
        change(&mut settings);
        let shown = format!("{settings:?}");
        assert!(!shown.contains(SECRET_ID), "{shown}");
        let error = signer_with(settings).sign(&claims()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
        assert!(!error.chain().contains(SECRET_ID) && !error.chain().contains("s.made-up"));
    }
}

#[tokio::test]
async fn a_signature_by_another_version_than_asked_is_refused() {
    let fake = Fake::start().await;
    let signer = signer(&fake);
    sign(&signer).await;
    fake.inside().claims_version = Some(7);
    let error = signer.sign(&claims()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.message().contains("another version"), "{error}");
}
