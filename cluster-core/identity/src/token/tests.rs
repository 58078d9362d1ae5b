use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use aegis_types::{clock::now_ms, error::ErrorCode};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::*;

const NOW: i64 = 1_000;

struct Setting {
    signer: TokenSigner,
    claims: Claims,
    /// The private key itself, to sign what no real signer would.
    key: EncodingKey,
    kid: String,
    directory: tempfile::TempDir,
}

fn names() -> (ClusterId, NodeId) {
    (ClusterId::parse("c1").unwrap(), NodeId::parse("ctrl").unwrap())
}

fn local(path: &Path) -> TokenSigner {
    let (cluster, issuer) = names();
    TokenSigner::local(path, cluster, issuer).unwrap()
}

fn claims() -> Claims {
    let (cluster, issuer) = names();
    Claims {
        iss: issuer,
        aud: cluster,
        sub: NodeId::parse("edge-1").unwrap(),
        role: Role::Worker,
        capabilities_hash: "h".into(),
        cnf: "t".into(),
        jti: "j".into(),
        iat: NOW,
        nbf: NOW,
        exp: NOW + TOKEN_LIFETIME_SECS,
    }
}

fn setting() -> Setting {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token-key.pem");
    let made = local(&path).view();
    let signer = local(&path);
    assert_eq!(made.signs, signer.view().signs, "the file reads back");
    let key = EncodingKey::from_rsa_pem(&fs::read(&path).unwrap()).unwrap();
    let kid = made.signs.unwrap();
    Setting { signer, claims: claims(), key, kid, directory }
}

#[tokio::test]
async fn a_token_of_ours_verifies_until_it_expires() {
    let Setting { signer, claims, .. } = setting();
    let token = signer.sign(&claims).await.unwrap();
    let keys = signer.keys();
    assert_eq!(keys.verify(&token, NOW).unwrap(), claims);
    assert_eq!(keys.remembered(), 1);
    // Remembered as valid, but expired.
    assert_eq!(keys.verify(&token, 4_600).unwrap_err().code(), ErrorCode::TokenExpired);
    assert_eq!(keys.verify(&token, NOW - 60).unwrap_err().code(), ErrorCode::Unauthenticated);
}

#[test]
fn a_changed_copy_of_a_remembered_token_is_refused() {
    let Setting { signer, claims, .. } = setting();
    let token = futures::executor::block_on(signer.sign(&claims)).unwrap();
    let keys = signer.keys();
    keys.verify(&token, NOW).unwrap();
    let (body, signature) = token.rsplit_once('.').unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    bytes[0] ^= 1;
    assert!(keys.verify(&format!("{body}.{}", URL_SAFE_NO_PAD.encode(bytes)), NOW).is_err());
    assert_eq!(keys.remembered(), 1, "what is refused is not remembered");
}

#[test]
fn tokens_with_missing_wrong_or_excessive_claims_are_refused() {
    let Setting { signer, claims, key, kid, .. } = setting();
    let base = serde_json::to_value(&claims).unwrap();
    let changed = |name: &str, value: serde_json::Value| {
        let mut claims = base.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = base.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let bad = [
        without("aud"),
        without("iss"),
        without("sub"),
        without("exp"),
        without("nbf"),
        without("iat"),
        without("cnf"),
        changed("aud", json!("c2")),
        changed("aud", json!(["c1"])),
        changed("aud", json!(["c1", "c2"])),
        changed("iss", json!("other")),
        changed("sub", json!("../edge")),
        changed("sub", json!("EDGE-1")),
        changed("exp", json!("4600")),
        changed("exp", json!(NOW + TOKEN_LIFETIME_SECS + 1)),
        changed("exp", json!(NOW + 10 * 365 * 86_400)),
        changed("exp", json!(i64::MAX)),
        changed("exp", json!(1e300)),
        changed("nbf", json!(2_000)),
        changed("iat", json!(2_000)),
        changed("iat", json!(-1)),
        changed("role", json!("boss")),
    ];
    for claims in bad {
        let header = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::RS256) };
        let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
        assert_eq!(
            signer.keys().verify(&token, NOW).unwrap_err().code(),
            ErrorCode::Unauthenticated,
            "{claims}"
        );
    }
}

#[test]
fn headers_that_choose_the_check_are_refused() {
    let Setting { signer, claims, key, kid, .. } = setting();
    let sign = |header: &Header| jsonwebtoken::encode(header, &claims, &key).unwrap();
    let good = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::RS256) };
    let named = |kid: &str| sign(&Header { kid: Some(kid.into()), ..good.clone() });
    let token = sign(&good);
    let (head, body) = token.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","kid":"{kid}"}}"#));
    let twice = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","alg":"RS256","kid":"{kid}"}}"#));
    let public = signer.key_set().unwrap();
    let hs = Header { kid: Some(kid.clone()), ..Header::new(Algorithm::HS256) };
    let bad = [
        format!("{none}.{body}"),
        format!("{twice}.{body}"),
        jsonwebtoken::encode(&hs, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap(),
        sign(&Header { alg: Algorithm::PS256, ..good.clone() }),
        sign(&Header { alg: Algorithm::RS512, ..good.clone() }),
        sign(&Header { kid: None, ..good.clone() }),
        named(""),
        named("../../etc/passwd"),
        named("http://127.0.0.1/keys"),
        named("' OR 1=1 --"),
        named(&format!("{kid}\0")),
        named(&kid.to_uppercase()),
        sign(&Header { crit: Some(vec!["x".into()]), ..good.clone() }),
        sign(&Header { crit: Some(Vec::new()), ..good.clone() }),
        format!("{token}."),
        format!("{token}.."),
        format!("{token}.{head}.{body}"),
        format!("{head}.{head}.{body}"),
        token.split_once('.').unwrap().1.to_owned(),
        "..".to_owned(),
        String::new(),
        "x".repeat(1_000_000),
        format!("{}.{body}", "a".repeat(1_000_000)),
    ];
    for token in bad {
        assert!(signer.keys().verify(&token, NOW).is_err(), "{}", aegis_types::text::shown(&token));
    }
    assert!(signer.keys().verify(&token, NOW).is_ok());
}

#[tokio::test]
async fn rotated_key_signs_and_old_key_verifies_until_tokens_expire() {
    let Setting { signer, mut claims, directory, .. } = setting();
    let path = directory.path().join("token-key.pem");
    let now = now_ms() / 1000;
    (claims.iat, claims.nbf, claims.exp) = (now, now, now + TOKEN_LIFETIME_SECS);
    let old = signer.sign(&claims).await.unwrap();
    let before = signer.view();
    let after = signer.rotate().await.unwrap();
    assert_ne!(before.signs, after.signs);
    assert_eq!(after.verifies, [after.signs.clone().unwrap(), before.signs.unwrap()]);
    let new = signer.sign(&claims).await.unwrap();
    assert_ne!(old, new);
    // Here, after a restart, and for a worker that received the key set.
    let (cluster, issuer) = names();
    let again = local(&path);
    assert_eq!(again.view().verifies, after.verifies);
    let told = TokenKeys::parse(&signer.key_set().unwrap(), cluster, issuer).unwrap();
    for keys in [&*signer.keys(), &*again.keys(), &told] {
        assert!(keys.verify(&old, now).is_ok());
        assert!(keys.verify(&new, now).is_ok());
    }
    for file in ["token-key.pem", "token-keys.json"] {
        let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // An hour later no token of the old key can exist.
    signer.refresh(now_ms() + 3_500_000).await.unwrap();
    assert!(signer.keys().verify(&old, now).is_ok());
    signer.refresh(now_ms() + 3_606_000).await.unwrap();
    assert_eq!(signer.keys().verify(&old, now).unwrap_err().code(), ErrorCode::Unauthenticated);
    assert!(signer.keys().verify(&new, now).is_ok());
}

#[tokio::test]
async fn a_key_of_thirty_days_is_replaced_unasked() {
    let Setting { signer, kid, .. } = setting();
    let day_ms = 24 * 3600 * 1000;
    signer.refresh(now_ms() + 29 * day_ms).await.unwrap();
    assert_eq!(signer.view().signs.as_ref(), Some(&kid));
    signer.refresh(now_ms() + 31 * day_ms).await.unwrap();
    assert_ne!(signer.view().signs.as_ref(), Some(&kid));
}

#[tokio::test]
async fn interrupted_rotation_keeps_the_old_key() {
    let Setting { signer, kid, directory, .. } = setting();
    let path = directory.path().join("token-key.pem");
    let private = fs::read(&path).unwrap();
    signer.rotate().await.unwrap();
    // The record was written, but not the key.
    fs::write(&path, private).unwrap();
    let again = local(&path);
    assert_eq!(again.view().verifies, [kid]);
}

#[test]
fn old_key_file_loads_and_damaged_record_is_an_error() {
    let Setting { kid, directory, .. } = setting();
    let record = directory.path().join("token-keys.json");
    fs::remove_file(&record).unwrap();
    let again = local(&directory.path().join("token-key.pem"));
    assert_eq!(again.view().signs, Some(kid));
    fs::write(&record, b"{").unwrap();
    let (cluster, issuer) = names();
    let path = directory.path().join("token-key.pem");
    let error = TokenSigner::local(&path, cluster, issuer).unwrap_err();
    assert_eq!(error.code(), ErrorCode::ConfigInvalid);
    assert_eq!(fs::read(&record).unwrap(), b"{");
}

#[test]
fn checks_are_remembered_up_to_a_bound() {
    let Setting { signer, claims, .. } = setting();
    let keys = signer.keys();
    let token = futures::executor::block_on(signer.sign(&claims)).unwrap();
    keys.fill_memory(&claims);
    let full = keys.remembered();
    keys.verify(&token, NOW).unwrap();
    assert!(keys.remembered() <= full, "{} after {full}", keys.remembered());
}
