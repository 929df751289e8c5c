//! Tokens that are none, over the wire: each is answered 401, and all with the same words.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::common::backend::Backend;
use super::common::client::Answer;
use super::common::issuer::{AUDIENCE, ISSUER, Issuer, now};
use super::common::wait_for;
use super::common::world::{Setup, World};

const STRICT: &str = "https://strict.test";
const ONCE: &str = "https://once.test";

/// With a second issuer that demands a type of its tokens.
fn start() -> (World, Issuer, Backend) {
    let strict = Issuer::new("s1");
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.identity = format!(
        "    - {{name: strict, issuer: '{STRICT}', audience: ['{AUDIENCE}'], algorithm: EdDSA, typ: at+jwt, keys: {{file: strict.json}}}}\n"
    );
    setup.files.push(("strict.json".to_owned(), strict.jwks()));
    (World::start(&setup), strict, backend)
}

fn claims(more: Value) -> Value {
    let now = now();
    let mut claims = json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "ci-bot", "iat": now, "nbf": now, "exp": now + 300});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn call(world: &World, authorization: &str) -> Answer {
    let mut client = world.connect();
    let host = world.address;
    client
        .send(format!("GET /allowed/a HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\n\r\n").as_bytes());
    client.answer().expect("an answer")
}

/// A good token, and what bad ones are made of.
struct Made<'w> {
    issuer: &'w Issuer,
    strict: &'w Issuer,
    good: Value,
    token: String,
}

impl Made<'_> {
    fn header(more: &str) -> String {
        format!(r#"{{"alg":"EdDSA","kid":"k1"{more}}}"#)
    }

    fn with(&self, more: Value) -> String {
        self.issuer.sign(&claims(more))
    }

    fn without(&self, name: &str) -> String {
        let mut claims = self.good.clone();
        claims.as_object_mut().unwrap().remove(name);
        self.issuer.sign(&claims)
    }

    fn unsigned(&self, header: &str) -> String {
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(self.good.to_string()))
    }

    fn parts(&self) -> Vec<&str> {
        self.token.split('.').collect()
    }

    fn keyed_by_public_key(&self) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k1"}"#), self.parts()[1]);
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.issuer.jwks().as_bytes());
        let tag = aws_lc_rs::hmac::sign(&key, text.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    /// Signed by nobody, or by somebody else.
    fn forged(&self) -> Vec<(&'static str, String)> {
        let (issuer, good, parts, header) = (self.issuer, &self.good, self.parts(), Self::header);
        let other = self.with(json!({"sub": "other"}));
        let attacker = Issuer::new("k1");
        vec![
            ("BI-JWT-001", self.unsigned(r#"{"alg":"none","kid":"k1"}"#)),
            ("BI-JWT-003", self.unsigned(r#"{"alg":"NONE","kid":"k1"}"#)),
            ("BI-JWT-004", self.unsigned(r#"{"alg":"nOnE","kid":"k1"}"#)),
            ("BI-JWT-006", self.keyed_by_public_key()),
            ("BI-JWT-010", format!("{}.{}.{}", parts[0], parts[1], other.rsplit('.').next().unwrap())),
            ("BI-JWT-011", format!("{}.{}.", parts[0], parts[1])),
            ("BI-JWT-014", issuer.sign_text(r#"{"alg":"EdDSA","kid":"k1' UNION SELECT 'x'--"}"#, &good.to_string())),
            ("BI-JWT-016", attacker.sign_text(r#"{"alg":"EdDSA"}"#, &good.to_string())),
            ("BI-JWT-017", attacker.sign_text(&header(r#","jku":"http://127.0.0.1:1/jwks.json""#), &good.to_string())),
            ("BI-JWT-020", attacker.sign_text(&header(r#","x5c":["MIIB"]"#), &good.to_string())),
            ("embedded key", attacker.sign_text(&header(r#","jwk":{"kty":"OKP"}"#), &good.to_string())),
            ("unknown crit", issuer.sign_text(&header(r#","crit":["x"],"x":1"#), &good.to_string())),
        ]
    }

    /// Signed, and not for this place or time.
    fn misplaced(&self) -> Vec<(&'static str, String)> {
        let now = now();
        vec![
            ("BI-JWT-024", self.with(json!({"exp": "never"}))),
            ("BI-JWT-025", self.with(json!({"exp": "99999999999"}))),
            ("BI-JWT-027", self.with(json!({"exp": [1]}))),
            ("BI-JWT-028", self.with(json!({"exp": 1e300}))),
            ("BI-JWT-029", self.with(json!({"exp": null}))),
            ("no exp", self.without("exp")),
            ("BI-JWT-030", self.with(json!({"exp": -1}))),
            ("just expired", self.with(json!({"exp": now - 31, "iat": now - 60, "nbf": now - 60}))),
            ("BI-JWT-033", self.with(json!({"nbf": now + 33}))),
            ("BI-JWT-034", self.with(json!({"iat": now + 86_400}))),
            ("BI-JWT-035", self.with(json!({"exp": now + 31_536_000}))),
            ("BI-JWT-040", self.with(json!({"aud": 1}))),
            ("no aud", self.without("aud")),
            ("other aud", self.with(json!({"aud": ["leasehold://db-admin/", "x"]}))),
            ("BI-JWT-041", self.with(json!({"iss": format!("{ISSUER}/")}))),
            ("no iss", self.without("iss")),
        ]
    }

    /// Signed, and no token of the kind that is wanted.
    fn misshapen(&self) -> Vec<(&'static str, String)> {
        let (issuer, strict, good, parts, token) = (self.issuer, self.strict, &self.good, self.parts(), &self.token);
        let header = Self::header;
        let twice = good.to_string().replacen("\"sub\":\"ci-bot\"", "\"sub\":\"ci-bot\",\"sub\":\"root\"", 1);
        let deep = good.to_string().replacen('{', &format!("{{\"x\":{}{},", "[".repeat(3_000), "]".repeat(3_000)), 1);
        vec![
            ("BI-JWT-044", strict.sign(&claims(json!({"iss": STRICT, "nonce": "x", "at_hash": "y"})))),
            (
                "BI-JWT-045",
                strict.sign_text(
                    r#"{"alg":"EdDSA","typ":"secevent+jwt","kid":"s1"}"#,
                    &claims(json!({"iss": STRICT})).to_string(),
                ),
            ),
            ("one issuer's key for another", strict.sign_text(&header(""), &good.to_string())),
            ("BI-JWT-046", format!("{token}.{}.{}", parts[1], parts[2])),
            ("BI-JWT-049 padding", format!("{token}==")),
            ("BI-JWT-049 alphabet", format!("{}.{}", parts[..2].join("."), STANDARD.encode([0xff; 64]))),
            ("BI-JWT-049 blank", format!("{} {}", &token[..20], &token[20..])),
            ("BI-JWT-050", issuer.sign_text(&header(""), &twice)),
            ("duplicate in the header", issuer.sign_text(&header(r#","kid":"k1""#), &good.to_string())),
            ("BI-JWT-052", issuer.sign_text(&header(""), &deep)),
            ("BI-JWT-055", self.with(json!({"sub": ""}))),
            ("sub as array", self.with(json!({"sub": ["ci-bot"]}))),
            ("no sub", self.without("sub")),
            ("BI-JWT-057", issuer.sign_text(r#"{"alg":"EdDSA","kid":"k0"}"#, &good.to_string())),
            ("claims are no object", issuer.sign_text(&header(""), "[]")),
            ("no text", issuer.sign_text("\u{0}", "\u{0}")),
            ("four parts", format!("{token}.x")),
            ("empty parts", "..".to_owned()),
        ]
    }
}

#[test]
fn a_token_that_is_not_right_in_every_part_proves_nobody() {
    let (world, strict, backend) = start();
    let good = claims(json!({}));
    let token = world.issuer.sign(&good);
    let made = Made { issuer: &world.issuer, strict: &strict, good: good.clone(), token: token.clone() };
    let cases = [made.forged(), made.misplaced(), made.misshapen()].concat();
    let mut words = Vec::new();
    for (id, token) in cases {
        let answer = call(&world, &format!("Bearer {token}"));
        assert_eq!(answer.status, 401, "{id}: {answer:?}");
        assert!(answer.header("www-authenticate").is_some(), "{id}");
        words.push(answer.text());
    }
    for (id, value) in
        [("BI-JWT-063", "Basic cm9vdDpyb290".to_owned()), ("scheme", format!("JWT {token}")), ("bare", token.clone())]
    {
        let answer = call(&world, &value);
        assert_eq!(answer.status, 401, "{id}");
        words.push(answer.text());
    }
    words.dedup();
    assert_eq!(words.len(), 1, "all are told the same: {words:?}");
    assert!(backend.seen().is_empty());
    // BI-JWT-015: a head that no limit allows.
    let long =
        world.issuer.sign_text(&format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, "k".repeat(65_536)), &good.to_string());
    assert!(matches!(call(&world, &format!("Bearer {long}")).status, 400 | 401 | 431));
    assert_eq!(call(&world, &format!("Bearer {token}")).status, 200, "the good one is good");
    assert_eq!(call(&world, &format!("bearer {token}")).status, 200, "the scheme has no case");
}

#[test]
fn somebody_else_is_somebody_else() {
    // BI-JWT-043, -053, -054, -056
    let (world, strict, backend) = start();
    let typed = r#"{"alg":"EdDSA","typ":"at+jwt","kid":"s1"}"#;
    for (id, token) in [
        ("BI-JWT-043", strict.sign_text(typed, &claims(json!({"iss": STRICT})).to_string())),
        ("BI-JWT-053", world.issuer.sign(&claims(json!({"sub": "ci-bot\u{202e}\n\u{1b}[2J"})))),
        ("BI-JWT-054", world.issuer.sign(&claims(json!({"sub": "ci-bot\u{301}"})))),
        ("BI-JWT-056", world.issuer.sign(&claims(json!({"sub": "*"})))),
        ("case", world.issuer.sign(&claims(json!({"sub": "CI-bot"})))),
        ("blank", world.issuer.sign(&claims(json!({"sub": "ci-bot "})))),
    ] {
        let answer = call(&world, &format!("Bearer {token}"));
        assert!(matches!(answer.status, 401 | 403), "{id}: {answer:?}");
    }
    assert!(backend.seen().is_empty());
    for record in world.calls(6) {
        let text = record.to_string();
        assert!(!text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn a_token_for_one_call_is_good_for_one() {
    // BI-JWT-061
    let once = Issuer::new("o1");
    let backend = Backend::start();
    let mut setup = Setup::new(backend.address);
    setup.identity = format!(
        "    - {{name: once, issuer: '{ONCE}', audience: ['{AUDIENCE}'], algorithm: EdDSA, single_use: true, keys: {{file: once.json}}}}\n"
    );
    setup.files.push(("once.json".to_owned(), once.jwks()));
    setup.grants = setup.grants.replace(ISSUER, ONCE);
    let world = World::start(&setup);
    let token = |id: Value| format!("Bearer {}", once.sign(&claims(json!({"iss": ONCE, "jti": id}))));
    let first = token(json!("a"));
    assert_eq!(call(&world, &first).status, 200);
    assert_eq!(call(&world, &first).status, 401, "the same again");
    assert_eq!(call(&world, &token(json!("a"))).status, 401, "another token of the same id");
    assert_eq!(call(&world, &token(json!("b"))).status, 200);
    for id in [json!(null), json!(""), json!(7)] {
        assert_eq!(call(&world, &token(id.clone())).status, 401, "{id}");
    }
    let contended = token(json!("c"));
    let passed = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| call(&world, &contended).status)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).filter(|status| *status == 200).count()
    });
    assert_eq!(passed, 1, "of sixteen at once");
    assert_eq!(backend.seen().len(), 3);
}

/// A key set with an RSA key of so many bits; nobody has its other half.
fn rsa(bits: usize) -> String {
    let mut modulus = vec![0xc5; bits / 8];
    modulus[bits / 8 - 1] |= 1;
    let n = URL_SAFE_NO_PAD.encode(&modulus);
    json!({"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "r1", "n": n, "e": "AQAB"}]}).to_string()
}

#[test]
fn an_rsa_key_too_short_or_too_long_is_no_key() {
    // BI-JWT-058, -059
    for (bits, good) in [(1_024, false), (2_047, false), (2_048, true), (8_192, true), (16_384, false)] {
        let mut setup = Setup::new(Backend::start().address);
        setup.identity = format!(
            "    - {{name: rsa, issuer: '{STRICT}', audience: ['{AUDIENCE}'], algorithm: RS256, keys: {{file: rsa.json}}}}\n"
        );
        setup.files.push(("rsa.json".to_owned(), rsa(bits)));
        // A listener does not start on an issuer without any key.
        assert_eq!(World::try_start(&setup).is_ok(), good, "{bits} bits");
    }
}

#[test]
fn keys_that_became_wrong_are_not_taken() {
    // BI-JWK-004, -010, -011
    let (world, _strict, _backend) = start();
    let good = std::fs::read_to_string(world.path("keys.json")).unwrap();
    assert_eq!(world.call("GET", "/allowed/a").status, 200);
    let twice =
        good.replace("{\"keys\":[", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\",\"kid\":\"k1\",\"alg\":\"HS256\"},");
    for bad in ["{\"keys\":[]}", "<html>maintenance</html>", "", "{\"keys\":", &twice] {
        std::fs::write(world.path("new"), bad).unwrap();
        std::fs::rename(world.path("new"), world.path("keys.json")).unwrap();
        // A token that was not seen before needs the keys.
        let token = world.issuer.sign(&claims(json!({"jti": bad.len()})));
        assert_eq!(call(&world, &format!("Bearer {token}")).status, 200, "{bad:?}");
    }
    let next = Issuer::new("k2");
    std::fs::write(world.path("new"), next.jwks()).unwrap();
    std::fs::rename(world.path("new"), world.path("keys.json")).unwrap();
    let token = next.sign(&claims(json!({})));
    wait_for("the new key", || (call(&world, &format!("Bearer {token}")).status == 200).then_some(()));
    assert_eq!(world.call("GET", "/allowed/a").status, 401, "what the old key signed is over, remembered or not");
}
