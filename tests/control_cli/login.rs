//! People log in at a real OpenID provider, and what they get there is what the control plane believes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::issuer::{Issuer, now};
use crate::tools::{Server, curl, free, program};
use crate::world::{Control, Person};

/// A provider whose ID tokens live that long, and a control plane that believes it.
struct Place {
    control: Control,
    issuer: String,
    provider: Option<Server>,
}

impl Place {
    fn new(id_token_seconds: u32) -> Self {
        let port = free().port();
        let issuer = format!("http://127.0.0.1:{port}");
        let provider = provider(port, id_token_seconds);
        let control = Control::start(
            &format!(
                "identity: {{issuers: [{{name: people, issuer: '{issuer}', audience: [leasehold-cli], algorithm: ES256, keys: {{url: '{issuer}/jwks'}}}}]}}\n"
            ),
            &format!(", login: {{issuer: '{issuer}', client_id: leasehold-cli, scopes: [openid, offline_access]}}"),
        );
        let document = format!(
            "apiVersion: leasehold/v1\nkind: Principal\nmetadata: {{name: ada}}\nspec: {{principal: '{issuer}#ada', type: user, groups: [engines]}}\n"
        );
        control.write("ada.yaml", &document);
        control.admin().ok(&["apply", "-f", "ada.yaml"]);
        Self { control, issuer, provider: Some(provider) }
    }

    /// Somebody with a home of their own, and nothing in it.
    fn ada(&self, home: &str) -> Person {
        let home = self.control.folder().join(home);
        std::fs::create_dir_all(&home).unwrap();
        Person::at(&home).with("LEASEHOLD_SERVER", &self.control.url)
    }
}

fn provider(port: u16, id_token_seconds: u32) -> Server {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/node");
    assert!(
        folder.join("node_modules/oidc-provider").exists(),
        "oidc-provider is not installed; run scripts/test once, it installs what the tests need"
    );
    // Where it stands, so that it finds its modules.
    let script = folder.join("oidc_people.mjs");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/oidc_people.mjs");
    // Several tests put it there at once, each as a whole.
    let beside = folder.join(format!("oidc_people.{port}.mjs"));
    std::fs::copy(source, &beside).unwrap();
    std::fs::rename(beside, &script).unwrap();
    let mut command = Command::new(program("node"));
    command.arg(script).args([port.to_string(), id_token_seconds.to_string()]);
    let mut server = Server::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let (mut line, mut lines) = (String::new(), BufReader::new(server.stdout()));
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // It says more later, and must have somebody to say it to.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    server
}

/// A login that waits for somebody to do something in a browser.
struct Waiting {
    child: Child,
    asked: String,
}

impl Waiting {
    /// Starts it, and reads until it has said where to go.
    fn start(person: &Person, words: &[&str], until: &str) -> Self {
        let mut command = person.command();
        let mut child = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut asked = String::new();
        while !asked.contains(until) {
            assert!(lines.read_line(&mut asked).unwrap() > 0, "it ended: {asked}");
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, asked }
    }

    /// The address that it named last.
    fn address(&self) -> String {
        self.asked.split_whitespace().rfind(|word| word.starts_with("http://")).unwrap().to_owned()
    }

    fn ends(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        (code, out)
    }
}

/// Sends every form of the pages that follow on `url` as somebody would who agrees; the last page.
fn browse(place: &Place, url: &str) -> String {
    let jar = place.control.folder().join(format!("cookies-{}", free().port()));
    let jar = jar.to_str().unwrap();
    let mut page = curl(&["-L", "-b", jar, "-c", jar, url]).body;
    for _ in 0..8 {
        let Some(form) = page.split("<form").nth(1).map(|rest| rest.split("</form>").next().unwrap()) else { break };
        let action = attribute(form, "action").replace("&amp;", "&");
        let mut fields = Vec::new();
        for input in form.split("<input").skip(1) {
            let input = input.split('>').next().unwrap();
            let value = match attribute(input, "name").as_str() {
                "" => continue,
                "login" => "ada".to_owned(),
                "password" => "engine".to_owned(),
                _ => attribute(input, "value"),
            };
            fields.push(format!("{}={value}", attribute(input, "name")));
        }
        let mut words = vec!["-L", "-b", jar, "-c", jar];
        for field in &fields {
            words.extend(["--data-urlencode", field]);
        }
        let action = if action.starts_with('/') { format!("{}{action}", place.issuer) } else { action };
        words.push(&action);
        page = curl(&words).body;
    }
    page
}

fn attribute(tag: &str, name: &str) -> String {
    let found = tag.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
    found.unwrap_or_default().to_owned()
}

fn saved(person: &Person) -> Value {
    let path = person.folder.join(".config/leasehold/login.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn log_in(place: &Place, person: &Person) {
    let waiting = Waiting::start(person, &["login", "--device"], "or open ");
    browse(place, &waiting.address());
    let (code, out) = waiting.ends();
    assert_eq!((code, out), (Some(0), format!("logged in as {}#ada\n", place.issuer)));
}

#[test]
fn by_a_code_on_another_machine() {
    let place = Place::new(3_600);
    let ada = place.ada("ada");
    ada.fails(1, &["whoami"], "leasehold login");
    let waiting = Waiting::start(&ada, &["login", "--device"], "or open ");
    assert!(waiting.asked.contains(&format!("Open {}/device on any machine", place.issuer)), "{}", waiting.asked);
    let page = browse(&place, &waiting.address());
    assert!(page.contains("Continue on your device") || page.contains("Sign-in Success"), "{page}");
    let (code, out) = waiting.ends();
    assert_eq!((code, out), (Some(0), format!("logged in as {}#ada\n", place.issuer)));
    let me = ada.ok(&["whoami"]);
    assert!(me.starts_with(&format!("{}#ada\n", place.issuer)) && me.contains("engines"), "{me}");
    let kept = saved(&ada);
    assert!(kept["refresh_token"].is_string() && kept["server"] == place.control.url.as_str(), "{kept}");
    // It is for this control plane, and no other is shown it.
    let other = Control::start("identity: {spiffe: []}\n", "");
    ada.fails(1, &["whoami", "--server", &other.url], "leasehold login");
    assert_eq!(ada.ok(&["logout"]), "logged out\n");
    assert_eq!(ada.ok(&["logout"]), "there was no login\n");
    ada.fails(1, &["whoami"], "leasehold login");
}

#[test]
fn by_a_browser_on_this_machine() {
    let place = Place::new(3_600);
    let ada = place.ada("ada");
    let waiting = Waiting::start(&ada, &["login"], "--device");
    let address = waiting.address();
    assert!(address.contains("code_challenge_method=S256") && address.contains("nonce="), "{address}");
    let back = address.split("redirect_uri=").nth(1).unwrap().split('&').next().unwrap();
    let back = back.replace("%3A", ":").replace("%2F", "/");
    assert_eq!(curl(&[&format!("{back}?code=stolen&state=guessed")]).status, 400, "an answer to another login");
    let page = browse(&place, &address);
    assert!(page.contains("Go back to the terminal"), "{page}");
    let (code, out) = waiting.ends();
    assert_eq!((code, out), (Some(0), format!("logged in as {}#ada\n", place.issuer)));
    assert!(ada.ok(&["whoami"]).contains("engines"));
    assert!(saved(&ada)["refresh_token"].is_string());
}

#[test]
fn a_login_is_renewed_before_its_end_and_over_after_it() {
    let mut place = Place::new(30);
    let ada = place.ada("ada");
    log_in(&place, &ada);
    let first = saved(&ada);
    // Many at once: a refresh token is good for one use, and each finds what another one got or renews by itself.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| ada.ok(&["whoami"]));
        }
    });
    let second = saved(&ada);
    assert_ne!(first["refresh_token"], second["refresh_token"]);
    assert_ne!(first["id_token"], second["id_token"]);
    drop(place.provider.take());
    ada.ok(&["whoami"]);
    let mut over = second;
    let claims = URL_SAFE_NO_PAD.encode(json!({"iss": place.issuer, "sub": "ada", "exp": 1}).to_string());
    over["id_token"] = format!("e30.{claims}.e30").into();
    std::fs::write(ada.folder.join(".config/leasehold/login.json"), over.to_string()).unwrap();
    ada.fails(1, &["whoami"], "the login is over and was not renewed");
}

#[test]
fn who_logs_out_is_out_at_the_issuer_too() {
    let mut place = Place::new(3_600);
    let ada = place.ada("ada");
    let file = ada.folder.join(".config/leasehold/login.json");
    log_in(&place, &ada);
    let mut copied = saved(&ada);
    // Somebody may have copied it, which is when taking it back counts.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = ada.says(&["logout"]);
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "logged out\n", ""));
    assert!(!file.exists());
    let claims = URL_SAFE_NO_PAD.encode(json!({"iss": place.issuer, "sub": "ada", "exp": 1}).to_string());
    copied["id_token"] = format!("e30.{claims}.e30").into();
    std::fs::write(&file, copied.to_string()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    ada.fails(1, &["whoami"], "invalid_grant");
    ada.ok(&["logout"]);

    log_in(&place, &ada);
    let kept = saved(&ada);
    drop(place.provider.take());
    // An issuer that is away, one that cannot, one that must not be asked: it is said, and forgotten all the same.
    let cannot = bad_issuer(|_, _| Value::Null);
    for (issuer, why) in [
        (place.issuer.as_str(), "connection refused"),
        (&cannot, "takes no login back"),
        ("http://idp.example", "plain http"),
    ] {
        let mut login = kept.clone();
        login["issuer"] = issuer.into();
        std::fs::write(&file, login.to_string()).unwrap();
        let said = ada.says(&["logout"]);
        assert_eq!((said.code, said.out.as_str()), (Some(0), "logged out\n"), "{said:?}");
        assert!(said.err.contains(why) && said.err.contains("it is forgotten here only"), "{why}: {said:?}");
        assert!(!said.err.contains(kept["refresh_token"].as_str().unwrap()), "{said:?}");
        assert!(!file.exists());
    }
    std::fs::write(&file, "{").unwrap();
    assert!(ada.says(&["logout"]).err.contains("is damaged"));
    assert_eq!(ada.ok(&["logout"]), "there was no login\n");
}

#[test]
fn what_cannot_be_is_refused() {
    let place = Place::new(3_600);
    let ada = place.ada("ada");
    let issuer = place.issuer.as_str();
    let slash = format!("{issuer}/");
    ada.fails(1, &["login", "--issuer", &slash, "--client-id", "leasehold-cli"], "write it exactly so");
    ada.fails(1, &["login", "--device", "--issuer", issuer, "--client-id", "nobody"], "invalid_client");
    ada.fails(1, &["login", "--issuer", "http://idp.example", "--client-id", "x"], "plain http");
    ada.fails(2, &["login", "--issuer", issuer], "--client-id");
    let other = Control::start("identity: {spiffe: []}\n", "");
    ada.fails(1, &["login", "--server", &other.url], "name where people log in");
    // Somebody says no in the browser.
    let waiting = Waiting::start(&ada, &["login"], "--device");
    let address = waiting.address();
    let of = |name: &str| address.split(&format!("{name}=")).nth(1).unwrap().split('&').next().unwrap().to_owned();
    let back = of("redirect_uri").replace("%3A", ":").replace("%2F", "/");
    curl(&[&format!("{back}?error=access_denied&state={}", of("state"))]);
    assert_eq!(waiting.ends().0, Some(1));
}

/// An issuer that gives whatever `token` makes of the nonce it was asked with.
fn bad_issuer(token: impl Fn(&str, &str) -> Value + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let said = issuer.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = crate::faults::request(&mut stream);
            let body = if asked.starts_with("GET /.well-known/") {
                let of = |path: &str| format!("{said}/{path}");
                json!({"issuer": said, "authorization_endpoint": of("auth"), "token_endpoint": of("token")})
            } else {
                // The code is the nonce, so that this needs no memory.
                let code = asked.split("code=").nth(1).unwrap().split('&').next().unwrap();
                let claims = URL_SAFE_NO_PAD.encode(token(&said, code).to_string());
                json!({"access_token": "a", "token_type": "bearer", "id_token": format!("e30.{claims}.e30")})
            };
            let answer = crate::faults::answer("200 OK", &body.to_string())
                .replace("\r\n\r\n", "\r\ncontent-type: application/json\r\n\r\n");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        }
    });
    issuer
}

#[test]
fn a_token_for_somebody_or_something_else_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let person = Person::at(folder.path());
    let kept = folder.path().join(".config/leasehold/login.json");
    let try_out = |change: fn(&mut Value), answer: &str| {
        let issuer = bad_issuer(move |issuer, nonce| {
            let mut claims =
                json!({"iss": issuer, "sub": "ada", "aud": "cli", "exp": 4_000_000_000_u64, "nonce": nonce});
            change(&mut claims);
            claims
        });
        let waiting = Waiting::start(&person, &["login", "--issuer", &issuer, "--client-id", "cli"], "--device");
        let address = waiting.address();
        let of = |name: &str| address.split(&format!("{name}=")).nth(1).unwrap().split('&').next().unwrap().to_owned();
        let back = of("redirect_uri").replace("%3A", ":").replace("%2F", "/");
        curl(&[&format!("{back}?code={}&state={}{answer}", of("nonce"), of("state"))]);
        (waiting.ends().0, kept.exists())
    };
    for change in [
        (|claims| claims["nonce"] = "another".into()) as fn(&mut Value),
        |claims| claims["iss"] = "https://other.example".into(),
        |claims| claims["aud"] = json!(["other"]),
        |claims| claims["azp"] = "other".into(),
        |claims| claims["exp"] = 1.into(),
    ] {
        assert_eq!(try_out(change, ""), (Some(1), false));
    }
    assert_eq!(try_out(|_| {}, "&iss=https://other.example"), (Some(1), false));
    assert_eq!(try_out(|_| {}, ""), (Some(0), true), "and without a change it is taken");
}

#[test]
fn an_id_token_is_good_from_our_own_client_only() {
    let (people, machines) = (Issuer::new("people"), Issuer::new("machines"));
    let keys = tempfile::tempdir().unwrap();
    let file = |name: &str, issuer: &Issuer| {
        std::fs::write(keys.path().join(name), issuer.jwks()).unwrap();
        keys.path().join(name).display().to_string()
    };
    let issuer = |name: &str, file: String| {
        format!(
            "{{name: {name}, issuer: 'https://{name}.test', audience: [cli, leasehold], algorithm: EdDSA, keys: {{file: '{file}'}}}}"
        )
    };
    let issuers = [issuer("people", file("people", &people)), issuer("machines", file("machines", &machines))];
    let control = Control::start(
        &format!("identity: {{issuers: [{}]}}\n", issuers.join(", ")),
        ", login: {issuer: 'https://people.test', client_id: cli, scopes: [openid]}",
    );
    let says = |issuer: &Issuer, more: Value| {
        let mut claims =
            json!({"iss": "https://people.test", "sub": "ada", "aud": "cli", "iat": now(), "exp": now() + 60});
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let person = Person::at(keys.path()).with("LEASEHOLD_SERVER", &control.url);
        person.with("LEASEHOLD_TOKEN", &issuer.sign(&claims)).says(&["whoami"]).code
    };
    for (more, code) in [
        (json!({}), 0),
        (json!({"nonce": "n", "at_hash": "h"}), 0),
        (json!({"nonce": "n", "aud": ["cli"], "azp": "cli"}), 0),
        (json!({"nonce": "n", "aud": ["cli", "leasehold"]}), 1),
        (json!({"nonce": "n", "aud": "leasehold"}), 1),
        (json!({"nonce": "n", "azp": "another"}), 1),
        (json!({"nonce": "n", "events": {}}), 1),
        (json!({"events": {}}), 1),
    ] {
        assert_eq!(says(&people, more.clone()), Some(code), "{more}");
    }
    assert_eq!(says(&machines, json!({"iss": "https://machines.test"})), Some(0));
    assert_eq!(says(&machines, json!({"iss": "https://machines.test", "nonce": "n"})), Some(1));
}
