//! Sidecars that join by themselves, keep what they got, and renew it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leasehold::app::relay::follow;
use leasehold::config::{self, ControlConfig, SyncSigner};
use leasehold::domain::time::{Clock, Timestamp};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use crate::common::backend::Backend;
use crate::common::wait_for;
use crate::common::world::{Setup, World as Sidecar};
use crate::enrol::{enroll, own, token};
use crate::signer::Signer;
use crate::whole::{MAP, call, comes};
use crate::world::World;

/// A sidecar whose token is that text, with its identity in that folder.
fn start(world: &World, backend: &Backend, token: Option<&str>, folder: &Path) -> Result<Sidecar, String> {
    start_at(world.sync(), backend, token, folder)
}

/// The same at whoever is followed there.
pub fn start_at(to: SocketAddr, backend: &Backend, token: Option<&str>, folder: &Path) -> Result<Sidecar, String> {
    let mut setup = Setup::new(backend.address);
    setup.map = MAP.to_owned();
    setup.files.extend(token.map(|token| ("join-token".to_owned(), format!("{token}\n"))));
    let folder = folder.display();
    let join = format!("join: {{token: {{file: join-token}}, folder: {folder}}}");
    let control = format!("{{addresses: ['https://{to}'], {join}}}");
    Sidecar::try_start_with(&setup, &format!("grants: {{staleness_max: 3s, control: {control}}}"))
}

/// What the record says of that sidecar.
pub fn entries(world: &World, name: &str) -> Vec<Value> {
    let entries = world.done("local", "GET", "/v1/audit/entries?from=1&page_size=500", &Value::Null);
    let subject = format!("spiffe://prod.test/sidecar/{name}");
    entries["items"].as_array().unwrap().iter().filter(|entry| entry["subject"] == subject).cloned().collect()
}

/// What happened to that sidecar.
pub fn events(world: &World, name: &str) -> Vec<String> {
    entries(world, name).iter().map(|entry| entry["event"].as_str().unwrap().to_owned()).collect()
}

fn folder(world: &World) -> PathBuf {
    world.path().join("sidecar/identity")
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// When the certificate in that folder is over.
fn over(folder: &Path) -> Timestamp {
    let certificate = CertificateDer::from_pem_file(folder.join("identity.pem")).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    Timestamp::from_seconds(leaf.validity().not_after.timestamp())
}

/// The names of the files that are there.
fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_sidecar_joins_with_a_token_and_starts_again_without_one() {
    let ((world, _), backend) = (own(), Backend::start());
    let (made, folder) = (token(&world, "shop-1"), folder(&world));
    let sidecar = start(&world, &backend, Some(&made), &folder).unwrap();
    assert_eq!(call(&sidecar), "no_grant");
    world.grant("shop-read");
    comes(&sidecar, "passed");
    assert_eq!(files(&folder), ["ca.pem", "identity.pem"]);
    assert_eq!((mode(&folder), mode(&folder.join("identity.pem"))), (0o700, 0o600));
    let before = std::fs::read(folder.join("identity.pem")).unwrap();
    drop(sidecar);
    for token in [None, Some("nonsense"), Some(&*made)] {
        let again = start(&world, &backend, token, &folder).unwrap();
        comes(&again, "passed");
    }
    assert_eq!(std::fs::read(folder.join("identity.pem")).unwrap(), before);
    assert_eq!(events(&world, "shop-1"), ["sidecar.token_made", "sidecar.joined"]);
}

#[test]
fn a_token_that_was_used_ends_the_start_and_leaves_nothing() {
    let ((world, _), backend) = (own(), Backend::start());
    let made = token(&world, "shop-1");
    drop(start(&world, &backend, Some(&made), &folder(&world)).unwrap());
    let other = world.path().join("other");
    for (token, says) in [
        (Some(&*made), "the join token is not good, or not any more"),
        (Some("nonsense"), "it is no join token"),
        (None, "join-token: No such file"),
    ] {
        let error = start(&world, &backend, token, &other).err().unwrap();
        assert!(error.contains(says) && error.contains("`leasehold sidecar join-token NAME`"), "{error}");
        assert!(!error.contains(&made[..20]), "{error}");
        assert_eq!((files(&other), mode(&other)), (Vec::new(), 0o700));
    }
}

#[test]
fn to_an_authority_that_is_not_the_tokens_nothing_is_sent() {
    let ((world, _), (other, _), backend) = (own(), own(), Backend::start());
    let (made, foreign) = (token(&world, "shop-1"), token(&other, "shop-1"));
    let secret = |token: &str| token.split_once('.').unwrap().0.to_owned();
    let pin = |token: &str| token.split_once('.').unwrap().1.to_owned();
    let wrong = format!("{}.{}", secret(&made), pin(&foreign));
    let error = start(&world, &backend, Some(&wrong), &folder(&world)).err().unwrap();
    assert!(error.contains("another authority") && error.contains("was not sent"), "{error}");
    assert_eq!(files(&folder(&world)), [""; 0]);
    assert_eq!(events(&world, "shop-1"), ["sidecar.token_made"]);
    let sidecar = start(&world, &backend, Some(&made), &folder(&world)).unwrap();
    assert_eq!(call(&sidecar), "no_grant", "it is as good as it was");
}

#[test]
fn a_control_plane_that_is_set_up_anew_is_joined_anew() {
    let ((old, _), (new, _), backend) = (own(), own(), Backend::start());
    let folder = folder(&old);
    let used = token(&old, "shop-1");
    drop(start(&old, &backend, Some(&used), &folder).unwrap());
    let sidecar = start(&new, &backend, Some(&token(&new, "shop-2")), &folder).unwrap();
    new.grant("shop-read");
    comes(&sidecar, "passed");
    drop(sidecar);
    assert_eq!(events(&new, "shop-2"), ["sidecar.token_made", "sidecar.joined"]);
    // A token that is of no use takes nothing that is.
    let again = start(&new, &backend, Some(&used), &folder).unwrap();
    comes(&again, "passed");
}

/// A control plane that signs for so long. The clocks of sidecars may be minutes behind, so what lives for less than five
/// minutes has half of its life behind it, and is renewed at once.
pub fn signing_for(lives: Duration) -> World {
    let sync = "  sync: {address: '127.0.0.1:0', trust_domain: prod.test}\n";
    let short = |config: &mut ControlConfig| {
        let Some(sync) = &mut config.control.sync else { panic!("no sync") };
        let SyncSigner::Own { lives: of_sidecars, .. } = &mut sync.signer else { panic!("no own authority") };
        *of_sidecars = Some(lives);
    };
    World::start_so(sync, None, short)
}

#[test]
fn past_half_of_its_life_a_certificate_is_renewed() {
    let backend = Backend::start();
    let world = signing_for(Duration::from_secs(120));
    let folder = folder(&world);
    let sidecar = start(&world, &backend, Some(&token(&world, "shop-1")), &folder).unwrap();
    world.grant("shop-read");
    comes(&sidecar, "passed");
    wait_for("a renewal", || events(&world, "shop-1").contains(&"sidecar.renewed".to_owned()).then_some(()));
    comes(&sidecar, "passed");
    drop(sidecar);
    assert_eq!(
        (files(&folder), mode(&folder.join("identity.pem"))),
        (vec!["ca.pem".into(), "identity.pem".into()], 0o600)
    );
    let again = start(&world, &backend, None, &folder).unwrap();
    comes(&again, "passed");
}

#[test]
fn a_certificate_that_ran_out_is_followed_by_one_for_a_new_token_without_a_restart() {
    let ((world, root), backend) = (own(), Backend::start());
    let folder = folder(&world);
    world.grant("shop-read");
    // Nobody renews for it, as if nobody could be reached.
    world.sidecars(&[]);
    let used = token(&world, "shop-1");
    enroll(&world, &root, &used, None).unwrap();
    let sidecar = wait_for("a start while it is good", || {
        Signer::of(&world).sidecar("shop-1", 8).keep(&folder);
        start(&world, &backend, Some(&used), &folder).ok()
    });
    let until = over(&folder);
    wait_for("the end of its certificate", || (world.clock.now().wall > until).then_some(()));
    world.sidecars(&["spiffe://prod.test/sidecar/shop-*"]);
    assert_eq!(call(&sidecar), "stale_source", "its certificate is over, and its token was used");
    std::fs::write(sidecar.path("join-token"), token(&world, "shop-1")).unwrap();
    comes(&sidecar, "passed");
    assert!(over(&folder) > until);
    assert_eq!(
        events(&world, "shop-1"),
        ["sidecar.token_made", "sidecar.joined", "sidecar.token_made", "sidecar.joined"]
    );
}

#[test]
fn a_relay_joins_as_a_sidecar_does() {
    let (world, _) = own();
    let write = |name: &str, text: &str| std::fs::write(world.path().join(name), text).unwrap();
    write("join-token", &token(&world, "shop-relay"));
    let relay = format!(
        "relay:
  upstream: {{addresses: ['https://{}'], join: {{token: {{file: join-token}}, folder: relay}}}}
  trust_domain: prod.test
  address: 127.0.0.1:0
  tls: {{certificate: server.pem, key: server.key, client_ca: ca.pem}}
  sidecars: ['spiffe://prod.test/sidecar/*']
  backends: [shop]
",
        world.sync()
    );
    write("relay.yaml", &relay);
    let config = config::load_relay(&world.path().join("relay.yaml")).unwrap_or_else(|errors| panic!("{errors}"));
    let mut following = world.runtime.block_on(follow(&config)).unwrap();
    wait_for("a view", || following.hub.head());
    assert_eq!(files(&world.path().join("relay")), ["ca.pem", "identity.pem"]);
    world.runtime.block_on(following.stop());
}
