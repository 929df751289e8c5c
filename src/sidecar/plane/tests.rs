use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;

use super::given::GivenMaps;
use super::*;
use crate::action_map::{BackendBundle, NamedMap, Packed};
use crate::domain::id::Revision;
use crate::domain::time::{Clock, Now, Timestamp, Uptime};
use crate::identity::Settings;
use crate::sidecar::canonical::{Hosts, Relaxations};
use crate::sidecar::decide::Mode;
use crate::sidecar::forward::connect::{Endpoint, Protocol, Target};
use crate::sidecar::forward::upstream::Timeouts;
use crate::sidecar::record::{self, Recorder};
use crate::sync::{Bundle, bundle_of};

#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { wall: Timestamp::from_seconds(1_000), uptime: Uptime::from_micros(1) }
    }
}

fn name(text: &str) -> BackendName {
    BackendName::new(text).unwrap()
}

fn backend(index: usize, of: &str, relaxations: Relaxations) -> Arc<Backend> {
    let target = Target {
        endpoint: Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 1 },
        protocol: Protocol::Http1,
        tls: None,
        authority: HeaderValue::from_static("127.0.0.1:1"),
    };
    let second = Duration::from_secs(1);
    let rules = BackendRules {
        name: name(of),
        mode: Mode::Enforce,
        baselines: Vec::new(),
        credential: None,
        serve_stale: false,
    };
    Arc::new(Backend {
        index,
        rules: Arc::new(rules),
        canonical: Rules::new(relaxations, 1_000, Hosts::new(&[], None).unwrap()),
        actions: None,
        upstream: Arc::new(Upstream::new(target, Timeouts { connect: second, first_byte: second, idle: second })),
        response: ResponseRules { set_cookie_keep: false, leak_guard: true, trailers: Vec::new() },
        body: BodyLimits {
            bytes_max: 1_000,
            arguments_max: 1_000,
            pause_max: second,
            rate_min: 0,
            answer_within: second,
        },
    })
}

fn plane(slash: bool) -> Plane {
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let verifier = runtime.block_on(Verifier::new(Settings::default(), Arc::clone(&clock))).unwrap();
    let relaxations = Relaxations { encoded_slash_keep: slash, ..Relaxations::default() };
    let limits = Limits {
        connections: 1,
        handshake: Duration::ZERO,
        head: Duration::ZERO,
        idle: Duration::ZERO,
        head_bytes: 1,
        headers: 1,
        streams: 1,
    };
    let offer =
        |name: &str, backends| Arc::new(Offer { name: name.into(), limits: limits.clone(), tls: None, backends });
    let shop = |_| backend(0, "shop", relaxations);
    let offers = vec![offer("a", vec![shop(0), backend(1, "bank", relaxations)]), offer("b", vec![shop(1)])];
    let credentials = Arc::new(Credentials::open(Vec::new(), clock).unwrap());
    Plane { verifier: Arc::new(verifier), credentials, offers }
}

struct Bench {
    plane: Arc<ArcSwap<Plane>>,
    maps: GivenMaps,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// The maps of `shop` are given, those of `bank` are not.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = record::Settings {
            directory: folder.path().to_owned(),
            segment_bytes: 4_096,
            bytes_max: 1 << 20,
            intent: record::IntentMode::EachCall,
            access_log: record::AccessLog::Off,
        };
        let registry = prometheus::Registry::new();
        let recorder = Recorder::open(settings, Catalogue::default(), &registry, Arc::new(Still)).unwrap();
        let plane = Arc::new(ArcSwap::from_pointee(plane(false)));
        let names = vec![name("shop"), name("bank")];
        let maps = GivenMaps::new(Arc::clone(&plane), recorder, names, [name("shop")].into_iter());
        Self { plane, maps, _folder: folder }
    }

    fn take(&self, of: &str, Packed { digest, content }: Packed) -> Result<bool, String> {
        self.maps.take(&Bundle { name: bundle_of(&name(of)), digest, revision: Revision(1), content })
    }

    /// The actions that are in force, listener by listener.
    fn actions(&self, of: &str) -> Vec<Option<Vec<String>>> {
        let plane = self.plane.load();
        let all = plane.offers.iter().flat_map(|offer| &offer.backends).filter(|b| b.rules.name == name(of));
        let names = |map: &Arc<ActionMap>| map.actions().iter().map(|action| action.name.to_string()).collect();
        all.map(|backend| backend.actions.as_ref().map(names)).collect()
    }

    fn error(&self) -> Option<String> {
        let [standing] = self.maps.standing().try_into().unwrap();
        standing.error
    }
}

fn map(action: &str, more: serde_json::Value) -> Packed {
    let mut map = serde_json::json!({
        "rules": [{"action": action, "class": "read", "method": "GET", "path": "/x", "resource": "x"}],
    });
    map.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let map = serde_json::from_value(map).unwrap();
    BackendBundle { action_map: Some(NamedMap { name: "m".to_owned(), map }) }.pack()
}

fn good(action: &str) -> Packed {
    map(action, serde_json::json!({}))
}

fn slashes(action: &str) -> Packed {
    map(action, serde_json::json!({"requires": {"encoded_slash": true}}))
}

fn on_both(action: &str) -> Vec<Option<Vec<String>>> {
    vec![Some(vec![action.to_owned()]); 2]
}

#[test]
fn a_map_is_in_force_on_every_listener_and_whoever_began_by_another_keeps_it() {
    let bench = Bench::new();
    assert_eq!((bench.actions("shop"), bench.error()), (vec![None, None], None));
    assert_eq!(bench.take("shop", good("a")), Ok(true));
    let begun = bench.plane.load_full();
    assert_eq!(bench.actions("shop"), on_both("a"));
    assert_eq!(bench.take("shop", good("a")), Ok(false));
    assert!(Arc::ptr_eq(&begun, &bench.plane.load_full()));
    assert_eq!(bench.take("shop", good("b")), Ok(true));
    assert_eq!(bench.actions("shop"), on_both("b"));
    let kept = begun.backend(&name("shop")).unwrap().actions.as_ref().unwrap();
    assert_eq!(kept.actions()[0].name.as_str(), "a");
    // Nobody says what the calls of this one do but its own file.
    assert_eq!(bench.take("bank", good("a")), Ok(false));
    assert_eq!(bench.actions("bank"), [None]);
}

#[test]
fn what_cannot_be_used_leaves_the_last_good_one_and_without_one_nothing() {
    let bench = Bench::new();
    let mut forged = good("a");
    forged.digest = good("b").digest;
    let upgrade = serde_json::json!({"rules": [
        {"action": "a", "class": "read", "method": "GET", "path": "/x", "resource": "x", "upgrade": "smtp"}]});
    let broken = [forged, map("a", upgrade), slashes("a"), map("a", serde_json::json!({"rules": []}))];
    for bad in broken.clone() {
        let error = bench.take("shop", bad).unwrap_err();
        assert!(error.ends_with("so the backend's calls are denied"), "{error}");
        assert_eq!((bench.actions("shop"), bench.error()), (vec![None, None], Some(error)));
    }
    assert_eq!(bench.take("shop", good("a")), Ok(true));
    assert_eq!(bench.error(), None);
    for bad in broken {
        let error = bench.take("shop", bad).unwrap_err();
        assert!(error.ends_with("the last good one stays in force"), "{error}");
        assert_eq!((bench.actions("shop"), bench.error()), (on_both("a"), Some(error)));
    }
    // It comes again, and nothing is wrong any more.
    assert_eq!(bench.take("shop", good("a")), Ok(false));
    assert_eq!(bench.error(), None);
}

#[test]
fn a_backend_that_names_no_map_any_more_has_none() {
    let bench = Bench::new();
    let none = BackendBundle::default().pack();
    assert!(bench.take("shop", none.clone()).unwrap_err().contains("names no action map"));
    assert_eq!(bench.take("shop", good("a")), Ok(true));
    assert!(bench.take("shop", none).unwrap_err().contains("names no action map"));
    assert_eq!(bench.actions("shop"), [None, None]);
    assert_eq!(bench.take("shop", good("a")), Ok(true));
    assert_eq!((bench.actions("shop"), bench.error()), (on_both("a"), None));
}

#[test]
fn a_changed_configuration_keeps_the_maps_and_may_not_take_away_what_they_need() {
    let bench = Bench::new();
    assert_eq!(bench.take("shop", good("a")), Ok(true));
    let error = bench.take("shop", slashes("b")).unwrap_err();
    assert!(error.contains("`m`") && error.contains("write `canonical: {encoded_slash: keep}`"), "{error}");
    bench.maps.replace(plane(false)).unwrap();
    assert_eq!((bench.actions("shop"), bench.error()), (on_both("a"), Some(error)));
    // What was refused fits the new settings, and is in force without being said again.
    bench.maps.replace(plane(true)).unwrap();
    assert_eq!((bench.actions("shop"), bench.error()), (on_both("b"), None));
    let error = bench.maps.replace(plane(false)).unwrap_err();
    assert!(error.contains("`canonical.encoded_slash` is refused"), "{error}");
    assert_eq!(bench.actions("shop"), on_both("b"));
    assert!(bench.plane.load().backend(&name("shop")).unwrap().canonical.relaxations().encoded_slash_keep);
}
