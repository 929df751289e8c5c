//! Sidecars join with a token and renew what they got, where the control plane signs itself.

use std::os::unix::fs::PermissionsExt;

use leasehold::wire::v1;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::follower::{Follower, Shown, subscribe};
use crate::world::World;

pub fn own() -> (World, CertificateDer<'static>) {
    let world = World::start_with("  sync: {address: '127.0.0.1:0', trust_domain: prod.test}\n", None);
    let root = CertificateDer::from_pem_file(world.path().join("leasehold.data/authority/ca.pem")).unwrap();
    (world, root)
}

/// Asks for a certificate, with a token or with a certificate.
pub fn enroll(
    world: &World,
    root: &CertificateDer<'static>,
    token: &str,
    shown: Option<Shown>,
) -> Result<(Shown, v1::EnrollReply), Status> {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec().into();
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), root, shown).await.unwrap();
        let request = v1::EnrollRequest { csr, join_token: token.to_owned(), renewal: None };
        let reply = follower.client.enroll(request).await?.into_inner();
        let chain = reply.certificates.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Ok((Shown { chain, key: key.serialize_der() }, reply))
    })
}

pub fn token(world: &World, name: &str) -> String {
    let made = world.done("local", "POST", "/v1/sidecars/join-tokens", &json!({"name": name}));
    assert_eq!(made["sidecar"], format!("spiffe://prod.test/sidecar/{name}"));
    made["token"].as_str().unwrap().to_owned()
}

/// The same, of a relay that others follow at this machine.
pub fn token_of_relay(world: &World, name: &str) -> String {
    let asked = json!({"name": name, "serves": ["127.0.0.1", "relay.prod.test"]});
    let made = world.done("local", "POST", "/v1/sidecars/join-tokens", &asked);
    made["token"].as_str().unwrap().to_owned()
}

fn follow(world: &World, root: &CertificateDer<'static>, shown: Option<Shown>) -> Result<(), Code> {
    world.runtime.block_on(async {
        let mut follower = Follower::connect(world.sync(), root, shown).await.unwrap();
        follower.follow(subscribe(&["shop"])).await.map_err(|status| status.code())?;
        follower.snapshot().await;
        follower.ping().await;
        Ok(())
    })
}

#[test]
fn a_token_is_good_for_one_certificate() {
    let (world, root) = own();
    let made = token(&world, "shop-1");
    let (shown, reply) = enroll(&world, &root, &made, None).unwrap();
    assert_eq!(reply.roots, [root.to_vec()], "it learns whom to believe");
    let pinned = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &root);
    let pinned: String = pinned.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(made.ends_with(&format!(".{pinned}")), "it knew before: {made}");
    assert_eq!(follow(&world, &root, Some(shown.clone())), Ok(()));
    let served = world.path().join("leasehold.data/sync.pem");
    let served: Vec<_> = CertificateDer::pem_file_iter(served).unwrap().map(Result::unwrap).collect();
    assert_eq!((served.len(), &served[1]), (2, &root), "the authority is shown, to be held to the digest");
    let again = enroll(&world, &root, &made, None).unwrap_err();
    assert_eq!(again.code(), Code::PermissionDenied);
    for wrong in ["x", "lhj_", "lhj_x.y", &made.replace("lhj_", "lhj_x")] {
        let refused = enroll(&world, &root, wrong, None).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{wrong}");
    }
    let (renewed, _) = enroll(&world, &root, "", Some(shown)).unwrap();
    assert_eq!(follow(&world, &root, Some(renewed)), Ok(()));
}

#[test]
fn without_a_certificate_only_a_token_is_heard() {
    let (world, root) = own();
    assert_eq!(follow(&world, &root, None), Err(Code::Unauthenticated));
    assert_eq!(enroll(&world, &root, "", None).unwrap_err().code(), Code::Unauthenticated);
    let mut nobody = world.runtime.block_on(Follower::connect(world.sync(), &root, None)).unwrap();
    let grant = world.grant("twice");
    let used = world.runtime.block_on(nobody.consume(&grant, "u1"));
    assert_eq!(used.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(world.call("bot", "POST", "/v1/sidecars/join-tokens", &json!({"name": "shop-1"})).status, 403);
    assert_eq!(world.call("local", "POST", "/v1/sidecars/join-tokens", &json!({"name": "a/b"})).status, 400);
}

#[test]
fn what_no_backend_names_is_not_renewed() {
    let (world, root) = own();
    let (shown, _) = enroll(&world, &root, &token(&world, "other"), None).unwrap();
    assert_eq!(follow(&world, &root, Some(shown.clone())), Err(Code::PermissionDenied));
    assert_eq!(enroll(&world, &root, "", Some(shown)).unwrap_err().code(), Code::PermissionDenied);
}

#[test]
fn who_joins_is_in_the_record_and_the_key_is_its_owners() {
    let (world, root) = own();
    let (shown, _) = enroll(&world, &root, &token(&world, "shop-1"), None).unwrap();
    enroll(&world, &root, "", Some(shown)).unwrap();
    let entries = world.done("local", "GET", "/v1/audit/entries?from=1&page_size=500", &Value::Null);
    let of = |entry: &&Value| entry["subject"] == "spiffe://prod.test/sidecar/shop-1";
    let events: Vec<&str> =
        entries["items"].as_array().unwrap().iter().filter(of).map(|entry| entry["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["sidecar.token_made", "sidecar.joined", "sidecar.renewed"]);
    let folder = world.path().join("leasehold.data");
    for name in ["authority/authority.pem", "sync.key"] {
        assert_eq!(std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert!(!std::fs::read_to_string(folder.join("authority/ca.pem")).unwrap().contains("PRIVATE"));
}

#[test]
fn two_control_planes_with_one_folder_sign_as_one() {
    let (one, root) = own();
    let folder = one.path().join("leasehold.data/authority");
    let sync =
        format!("  sync: {{address: '127.0.0.1:0', trust_domain: prod.test, authority: {}}}\n", folder.display());
    let two = World::start_with(&sync, None);
    let (shown, _) = enroll(&one, &root, &token(&one, "shop-1"), None).unwrap();
    assert_eq!(follow(&two, &root, Some(shown)), Ok(()));
}
