//! A sidecar in a network of its own, whose way to the control plane is cut while callers still reach it.
//!
//! Needs the right to make network namespaces; where the machine does not give it, that is said and nothing is tested.

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::house::{BOT, House, STALENESS_MAX};
use crate::wait_for;

/// A network namespace with two cables to ours: one to the control plane, one for callers and the backend.
pub struct Network {
    name: String,
    net: String,
}

fn ip(words: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(words.split(' ')).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Network {
    /// None where the machine does not allow it.
    fn lay() -> Option<Self> {
        let id = std::process::id();
        let network = Self { name: format!("lh{id}"), net: format!("10.{}.{}", 64 + (id >> 8) % 64, id % 256) };
        if !ip(&format!("netns add {}", network.name)) {
            return None;
        }
        let Self { name, net } = &network;
        let laid = ["c", "b"].into_iter().zip([0, 4]).all(|(cable, first)| {
            ip(&format!("link add {name}{cable} type veth peer name {name}{cable}i"))
                && ip(&format!("link set {name}{cable}i netns {name}"))
                && ip(&format!("addr add {net}.{}/30 dev {name}{cable}", first + 1))
                && ip(&format!("-n {name} addr add {net}.{}/30 dev {name}{cable}i", first + 2))
                && ip(&format!("link set {name}{cable} up"))
                && ip(&format!("-n {name} link set {name}{cable}i up"))
        });
        (laid && ip(&format!("-n {name} link set lo up"))).then_some(network)
    }

    /// Where the control plane is reached from inside.
    pub fn control(&self) -> String {
        format!("{}.1:9903", self.net)
    }

    /// Where the backend is.
    pub fn backend(&self) -> String {
        format!("{}.5:8080", self.net)
    }

    /// Where the sidecar is reached from outside.
    pub fn sidecar(&self) -> String {
        format!("{}.6:8000", self.net)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn cut(&self) {
        assert!(ip(&format!("link set {}c down", self.name)));
    }

    fn mend(&self) {
        assert!(ip(&format!("link set {}c up", self.name)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&format!("link del {}c", self.name));
        ip(&format!("link del {}b", self.name));
        ip(&format!("netns del {}", self.name));
    }
}

/// Passes on what comes to `listen`.
fn pass_on(listen: &str, to: String) {
    let listener = TcpListener::bind(listen).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(there) = TcpStream::connect(&to) else { continue };
            let (mut from, mut into) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut into);
                let _ = into.shutdown(std::net::Shutdown::Both);
            });
            let (mut from, mut into) = (there, stream);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut into);
                let _ = into.shutdown(std::net::Shutdown::Both);
            });
        }
    });
}

#[test]
fn a_sidecar_that_is_cut_off_denies_within_the_bound_and_comes_back() {
    let Some(network) = Network::lay() else {
        eprintln!("skipped: this machine allows no network namespaces");
        return;
    };
    let mut house = House::build_for(&network);
    pass_on(&network.control(), house.sync(0));
    pass_on(&network.backend(), house.backend());
    house.start_inside(&network);
    let call = |house: &House| house.call_at(BOT, &network.sidecar());
    for round in 0..2 {
        let grant = house.grant(1, BOT, "read");
        wait_for("the sidecar inside lets the grant's holder through", || (call(&house) == Some(200)).then_some(()));
        network.cut();
        house.revoke(2, &grant);
        let revoked = Instant::now();
        let mut served_on = false;
        while revoked.elapsed() < STALENESS_MAX + Duration::from_millis(500) {
            let began = revoked.elapsed();
            let answer = call(&house);
            served_on |= answer == Some(200);
            assert!(
                answer != Some(200) || began <= STALENESS_MAX,
                "round {round}: let through {began:?} after the end"
            );
        }
        assert!(served_on, "round {round}: the cut was noticed at once, so it was none");
        assert_eq!(call(&house), Some(503), "round {round}: it has no evidence");
        network.mend();
        wait_for("the sidecar inside knows of the revocation", || (call(&house) == Some(403)).then_some(()));
    }
}
