//! What each fuzz target does with arbitrary bytes. cargo-fuzz (`fuzz/`) and the property tests (`tests/fuzz.rs`) run
//! the same bodies.

use std::path::Path;
use std::sync::OnceLock;

use leasehold::sidecar::resolve::ActionMap;

/// A target has one canonical spelling, and that is its own.
pub fn canonical(bytes: &[u8]) {
    leasehold::sidecar::canonical::fuzz(bytes);
}

/// A map is refused or usable; a call and a body against the shipped maps are decided, never a panic.
pub fn action_map(bytes: &[u8]) {
    static MAPS: OnceLock<Vec<ActionMap>> = OnceLock::new();
    let maps = MAPS.get_or_init(|| {
        let builtin = |name| leasehold::sidecar::resolve::builtin(name).expect("a shipped map");
        ["etcd", "rabbitmq"].map(|name| ActionMap::from_yaml(builtin(name)).expect("it loads")).into()
    });
    for map in maps {
        leasehold::sidecar::resolve::fuzz(map, bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        match ActionMap::from_yaml(text) {
            Ok(map) => leasehold::sidecar::resolve::fuzz(&map, bytes),
            Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty()),
        }
    }
}

/// A configuration is refused with its mistakes, or taken.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(errors) = leasehold::config::parse(text, Path::new("/nonexistent/leasehold.yaml"))
    {
        assert!(!errors.0.is_empty() && errors.0.iter().all(|error| !error.to_string().is_empty()));
    }
}

/// A grants file is refused with a place, or taken.
pub fn grants(bytes: &[u8]) {
    use leasehold::sidecar::sync::document::{Format, read};
    for format in [Format::Yaml, Format::JsonLines] {
        if let Err(error) = read(format, bytes) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A bundle of guardrails is refused with its mistakes, or taken and asked, never a panic.
pub fn guardrails(bytes: &[u8]) {
    use leasehold::domain::{id, principal::Principal, resource::Resource, time::Timestamp};
    use leasehold::guardrail::{Call, GuardrailBundle, Guardrails};
    let Ok(bundle) = serde_json::from_slice::<GuardrailBundle>(bytes) else { return };
    let guardrails = match Guardrails::load(&bundle) {
        Ok(guardrails) => guardrails,
        Err(errors) => return assert!(!errors.0.is_empty() && errors.0.iter().all(|error| !error.is_empty())),
    };
    assert_eq!(guardrails.digest(), bundle.digest());
    let principal = Principal::parse("https://idp.test#bot").expect("a principal");
    for (backend, action, _) in guardrails.slices() {
        for resource in [Resource::exact("keys/secret"), Resource::under("keys/"), Resource::under("")] {
            let call = Call { principal: &principal, backend, action, resource: &resource };
            let now = Timestamp::from_seconds(1_767_614_400);
            let judged = guardrails.judge(call, |g| g.seat(&principal), now);
            assert_eq!(judged.said, guardrails.judge(call, |g| g.seat(&principal), now).said);
        }
    }
    let unknown = id::ActionName::new("no.such").expect("a name");
    let backend = id::BackendName::new("nowhere").expect("a name");
    let resource = Resource::exact("x");
    let call = Call { principal: &principal, backend: &backend, action: &unknown, resource: &resource };
    drop(guardrails.judge(call, |g| g.seat(&principal), Timestamp::MAX));
}

/// A verifier of one issuer whose key is known here, so that what is signed is what the input chose.
struct Issuing {
    verifier: leasehold::identity::Verifier,
    clock: std::sync::Arc<dyn leasehold::domain::time::Clock>,
    key: aws_lc_rs::signature::Ed25519KeyPair,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

const ISSUER: &str = "https://idp.test";
const AUDIENCE: &str = "leasehold://fuzz";

impl Issuing {
    fn new() -> Self {
        use aws_lc_rs::signature::KeyPair;
        use leasehold::identity::{IssuerSettings, KeySource, Preset, Settings, TokenAlgorithm, Verifier};
        let key = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed of 32 bytes");
        let folder = tempfile::tempdir().expect("a folder");
        let keys = folder.path().join("keys.json");
        let x = encode(key.public_key().as_ref());
        let set = serde_json::json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "k", "x": x}]});
        std::fs::write(&keys, set.to_string()).expect("a written file");
        let issuer = IssuerSettings {
            name: "idp".into(),
            issuer: ISSUER.into(),
            audience: vec![AUDIENCE.into()],
            algorithm: TokenAlgorithm::EdDsa,
            keys: KeySource::File(keys),
            preset: Preset::None,
            typ: None,
            leeway: std::time::Duration::ZERO,
            lifetime_max: std::time::Duration::from_secs(4_000_000_000),
            attributes: std::collections::BTreeMap::from([("branch".into(), "/ref".into())]),
            task: Some(leasehold::identity::TaskTemplate::parse("ci:{/repository}:{/run_id}").expect("a template")),
            required_claims: std::collections::BTreeMap::new(),
            single_use: false,
            own_client: None,
        };
        let settings = Settings {
            issuers: vec![issuer],
            token_cache_entries: 16,
            failures_per_second_max: u32::MAX,
            ..Settings::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let clock: std::sync::Arc<dyn leasehold::domain::time::Clock> =
            std::sync::Arc::new(leasehold::app::clock::SystemClock::new());
        let verifier = runtime.block_on(Verifier::new(settings, std::sync::Arc::clone(&clock))).expect("a verifier");
        Self { verifier, clock, key, runtime, _folder: folder }
    }

    fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let text = format!("{}.{}", encode(header), encode(claims));
        let signature = self.key.sign(text.as_bytes());
        format!("{text}.{}", encode(signature.as_ref()))
    }

    fn verify(&self, token: &str) -> Option<std::sync::Arc<leasehold::identity::Verified>> {
        let now = self.clock.now();
        self.runtime.block_on(self.verifier.token(token, "fuzz", now)).ok()
    }
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Nothing that was not signed is verified, and what was signed is only verified where its claims say so.
pub fn token(bytes: &[u8]) {
    thread_local!(static ISSUING: Issuing = Issuing::new());
    ISSUING.with(|issuing| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            assert!(issuing.verify(text).is_none(), "`{text}` was never signed");
        }
        // The input is the claims, and their head is good.
        believed(issuing, issuing.sign(br#"{"alg":"EdDSA","kid":"k"}"#, bytes), bytes);
        // The input is the head, and the claims are good.
        let good = format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"bot","exp":4102444800}}"#);
        believed(issuing, issuing.sign(bytes, good.as_bytes()), good.as_bytes());
        // A good token with one byte of it turned is none.
        let now = issuing.clock.now().wall.as_micros() / 1_000_000;
        let good = format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"bot","iat":{now},"exp":{}}}"#, now + 60);
        let mut token = issuing.sign(br#"{"alg":"EdDSA","kid":"k"}"#, good.as_bytes()).into_bytes();
        if let [place, more, turn, ..] = *bytes {
            let place = usize::from(u16::from_be_bytes([place, more])) % token.len();
            token[place] ^= turn & 0x7f;
            if turn & 0x7f != 0 {
                let text = String::from_utf8(token).expect("seven bits");
                assert!(issuing.verify(&text).is_none(), "`{text}` was changed");
            }
        }
    });
}

fn believed(issuing: &Issuing, token: String, claims: &[u8]) {
    let Some(verified) = issuing.verify(&token) else { return };
    let claims: serde_json::Value = serde_json::from_slice(claims).expect("what was verified is JSON");
    assert_eq!(claims["iss"], ISSUER);
    let aud = &claims["aud"];
    assert!(aud == AUDIENCE || aud.as_array().is_some_and(|all| all.iter().any(|one| one == AUDIENCE)));
    let subject = claims["sub"].as_str().expect("a subject");
    assert_eq!(verified.principal().as_str(), format!("{ISSUER}#{subject}"));
    let now = issuing.clock.now().wall.as_micros() / 1_000_000;
    assert!(claims["exp"].as_f64().expect("an end") >= now as f64, "it is over");
}
