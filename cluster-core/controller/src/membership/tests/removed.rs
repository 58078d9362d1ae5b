//! Keys of removed nodes, which admit no node again.

use super::*;

fn with_removed(node: &str) -> (Membership, PublicKey) {
    let mut membership = Membership::default();
    let key = NodeKey::generate().unwrap().public();
    let changes = membership.admit(&id(node), &key, site("host-1")).unwrap();
    apply(&mut membership, changes, 0);
    apply(&mut membership, vec![Change::Remove { node_id: id(node) }], 0);
    (membership, key)
}

#[test]
fn key_of_a_removed_node_admits_no_node() {
    let (mut membership, old) = with_removed("one");
    let fresh = NodeKey::generate().unwrap().public();
    let deployed = membership.admit(&id("one"), &old, site("host-1")).unwrap_err();
    assert!(deployed.remedy_text().unwrap().starts_with("deploy it again"), "{deployed}");
    let joined = membership.check_key(&id("one"), &old, Enrolment::Bound).unwrap_err();
    let renamed = membership.check_key(&id("two"), &old, Enrolment::Anybody).unwrap_err();
    for error in [deployed, joined, renamed] {
        assert_eq!(error.code(), ErrorCode::NodeRemoved);
        let thumbprint = &old.thumbprint()[..16];
        assert!(error.message().contains(thumbprint) && error.message().contains("node one"), "{error}");
    }
    membership.check_key(&id("one"), &fresh, Enrolment::Bound).unwrap();
    let changes = membership.admit(&id("one"), &fresh, site("host-1")).unwrap();
    apply(&mut membership, changes, 0);
    let rotated = membership.rotate_key(&id("one"), &fresh, &old).unwrap_err();
    assert_eq!(rotated.code(), ErrorCode::NodeRemoved);
}

#[test]
fn deployment_is_told_the_newest_revoked_keys() {
    let (membership, old) = with_removed("one");
    assert_eq!(membership.revoked_keys(&id("one")), [old.thumbprint()]);
    assert!(membership.revoked_keys(&id("two")).is_empty());
    let keys: Vec<_> = (0..20).map(|_| NodeKey::generate().unwrap().public()).collect();
    let stored = keys.iter().map(|key| (id("one"), *key.as_bytes())).collect();
    let revoked = RevokedKeys::new(stored);
    let restored = Membership::restore(Vec::new(), Vec::new(), Vec::new(), revoked, 0);
    let newest: Vec<_> = keys[4..].iter().map(PublicKey::thumbprint).collect();
    assert_eq!(restored.revoked_keys(&id("one")), newest);
}
