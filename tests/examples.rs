//! Every file in `config/` loads, and the reference shows every option at its default.

#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use leasehold::config::{self, Config, ConfigErrors, ControlConfig};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn parse(text: &str, folder: &Path) -> Result<Config, ConfigErrors> {
    let environment = |name: &str| matches!(name, "RABBIT_PASSWORD" | "LEGACY_PASSWORD").then(|| "example".to_owned());
    config::parse_with(text, &folder.join("leasehold.yaml"), &environment)
}

fn parse_control(text: &str, folder: &Path) -> Result<ControlConfig, ConfigErrors> {
    let environment = |name: &str| matches!(name, "RABBIT_PASSWORD" | "LEGACY_PASSWORD").then(|| "example".to_owned());
    config::parse_control_with(text, &folder.join("leasehold.yaml"), &environment)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).expect("a readable example")
}

#[test]
fn every_example_loads() {
    let (_, beside) = uncommented();
    let mut seen = 0;
    for entry in std::fs::read_dir(folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.ends_with(".yaml") || name == "grants.yaml" {
            continue;
        }
        let loaded = match name.as_str() {
            "relay.yaml" => config::parse_relay_with(&read(&name), &beside.path().join(&name), &|_| None).map(drop),
            _ => parse(&read(&name), beside.path()).map(drop),
        };
        loaded.unwrap_or_else(|errors| panic!("{name} does not load:\n{errors}"));
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} examples were found");
}

#[test]
fn the_reference_relaxes_nothing() {
    let config = parse(&read("leasehold.yaml"), &folder()).expect("valid");
    assert_eq!(config.relaxations(), []);
    assert!(config.listeners.iter().all(|l| l.address.to_string().starts_with("127.0.0.1")));
}

/// The reference with everything that is commented out put back in, and the files it names beside it.
fn uncommented() -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    std::fs::create_dir(folder.path().join("example")).expect("a folder");
    write("example/jwks.json", &read("example/jwks.json"));
    write("grants.yaml", &read("grants.yaml"));
    write("secret", "example\n");
    write("documents.yaml", "");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let key = rcgen::KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("a certificate").pem();
    write("ca.pem", &authority);
    write("control-ca.pem", &authority);
    let issuer = rcgen::Issuer::new(params, key);
    let revoked = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2027, 1, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    write("ca.crl", &revoked.signed_by(&issuer).expect("a list").pem().expect("a list"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate").pem();
    for name in ["tls", "sidecar"] {
        write(&format!("{name}.crt"), &leaf);
        write(&format!("{name}.key"), &key.serialize_pem());
    }
    write("key.pem", &key.serialize_pem());

    (put_back("leasehold.yaml"), folder)
}

/// An example with everything that is commented out put back in.
fn put_back(name: &str) -> String {
    let mut text = String::new();
    for line in read(name).lines() {
        let indent = line.len() - line.trim_start().len();
        match line.trim_start().strip_prefix("# ") {
            Some(rest) if is_option(rest.trim_start()) => text.push_str(&format!("{}{rest}\n", &line[..indent])),
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    text
}

#[test]
fn a_sidecar_that_joins_is_shown() {
    let (_, folder) = uncommented();
    let text = put_back("sidecar.yaml");
    let shown: String =
        text.lines().filter(|line| !line.starts_with("    tls:")).map(|line| format!("{line}\n")).collect();
    let config = parse(&shown, folder.path()).unwrap_or_else(|errors| panic!("{errors}\nin:\n{shown}"));
    assert!(matches!(config.grants.source, config::GrantSource::Remote { join: Some(_), .. }));
}

/// `key: value` or `key:`, after a `- ` or not; a sentence is none.
fn is_option(text: &str) -> bool {
    let text = text.strip_prefix("- ").unwrap_or(text);
    let word = text.bytes().take_while(|b| b.is_ascii_lowercase() || *b == b'_').count();
    word > 0 && (text[word..] == *":" || text[word..].starts_with(": "))
}

#[test]
fn what_is_commented_out_is_valid_too() {
    let (text, folder) = uncommented();
    let config = parse(&text, folder.path()).unwrap_or_else(|errors| panic!("{errors}\nin:\n{text}"));
    assert_eq!((config.backends.len(), config.credentials.len(), config.identity.issuers.len()), (2, 3, 2));
}

#[test]
fn every_option_is_shown() {
    let (text, _folder) = uncommented();
    // Two sources of grants cannot stand in one file, and a relay is neither plane.
    let text = format!("{text}{}{}", put_back("sidecar.yaml"), read("relay.yaml"));
    let mut shown = BTreeSet::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with('#')) {
        for word in line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')) {
            shown.extend(word.strip_suffix(':').map(str::to_owned));
        }
    }
    for key in config::keys() {
        let last = key.rsplit('.').next().unwrap_or_default();
        assert!(shown.contains(last), "`{key}` is not in config/leasehold.yaml");
    }
}

/// Options that mean something by their absence; all others have a default, which the reference shows.
const WITHOUT_DEFAULT: &[&str] = &[
    "attributes",
    "claims",
    "client_crl",
    "credential",
    "documents",
    "hosts",
    "key_id",
    "required_claims",
    "store_password",
    "task",
    "tls",
    "typ",
];

#[test]
fn every_default_is_the_one_shown() {
    let (text, folder) = uncommented();
    let both = |text: &str| {
        let sidecar = parse(text, folder.path())?;
        parse_control(text, folder.path()).map(|control| format!("{sidecar:?}\n{control:?}"))
    };
    let whole = both(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let lines: Vec<&str> = text.lines().collect();
    let mut defaults = 0;
    for (index, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.trim_start().split_once(':') else { continue };
        if !is_option(line.trim_start()) || line.trim_start().starts_with("- ") || value.is_empty() {
            continue;
        }
        let without: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, l)| *l).collect();
        // A line whose loss is an error is required, and has no default.
        let Ok(config) = both(&without.join("\n")) else { continue };
        if WITHOUT_DEFAULT.contains(&key) {
            continue;
        }
        assert_eq!(config, whole, "`{}` is not the default", line.trim());
        defaults += 1;
    }
    assert!(defaults > 40, "only {defaults} defaults were found");
}
