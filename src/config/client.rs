//! Where a command finds the control plane, and what it shows to prove who asks: flag over environment over file.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use super::{ConfigErrors, Environment, files, yaml};
use crate::domain::yaml::{Size, options};

/// Where the control plane is when nobody says.
pub const SERVER_DEFAULT: &str = "http://127.0.0.1:9902";

/// Where `leasehold up` leaves the token of the local admin, seen from where it was started.
pub const LOCAL_ADMIN_TOKEN: &str = "leasehold.data/admin.token";

/// Longest token that is read.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// Most documents in a text.
const DOCUMENTS_MAX: usize = 1_000;

/// What was said on the command line.
#[derive(Debug, Clone, Default)]
pub struct ClientFlags {
    /// Where the control plane is.
    pub server: Option<String>,
    /// A file with the token.
    pub token_file: Option<PathBuf>,
    /// The authorities that vouch for the control plane.
    pub ca: Option<PathBuf>,
    /// A certificate that says who asks.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}

/// What a command needs to ask a control plane.
#[derive(Debug)]
pub struct Client {
    /// Where the control plane is.
    pub server: String,
    /// The token that was named; none where a saved login or the local admin's token may serve.
    pub token: Option<Token>,
    /// The authorities that vouch for the control plane, in PEM; without it the system's.
    pub ca: Option<PathBuf>,
    /// A certificate that says who asks, and its key, both in PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Who logs people in, where the control plane need not be asked.
    pub issuer: Option<String>,
    /// As what the issuer knows us.
    pub client_id: Option<String>,
    /// Where a login is kept; none where there is no home.
    pub login: Option<PathBuf>,
}

/// A token and where it came from.
#[derive(Debug, Clone)]
pub struct Token {
    /// What is sent.
    pub secret: SecretString,
    /// Where it came from, for messages.
    pub origin: String,
}

/// `cli.yaml` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    issuer: Option<String>,
    client_id: Option<String>,
}

/// The settings of this process: flags over environment over `cli.yaml`.
///
/// # Errors
/// What is wrong with the file, or what is named and cannot be read.
pub fn client(flags: ClientFlags) -> Result<Client, ConfigErrors> {
    #[allow(clippy::disallowed_methods, reason = "this is the module that reads the environment")]
    let environment = |name: &str| std::env::var(name).ok();
    client_with(flags, &environment)
}

/// Whether the environment asks for output without colours (<https://no-color.org>).
#[allow(clippy::disallowed_methods, reason = "this is the module that reads the environment")]
pub fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// As [`client`], with an environment of the caller's.
///
/// # Errors
/// As [`client`].
pub fn client_with(flags: ClientFlags, environment: &Environment<'_>) -> Result<Client, ConfigErrors> {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let home = set("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = home.or_else(|| Some(PathBuf::from(set("HOME")?).join(".config"))).map(|home| home.join("leasehold"));
    let file = match &folder {
        Some(folder) => read_file(&folder.join("cli.yaml"))?,
        None => File::default(),
    };
    let below = |path: PathBuf| folder.as_ref().map_or(path.clone(), |folder| folder.join(path));
    let said = flags.server.or_else(|| set("LEASEHOLD_SERVER"));
    // A token of the file is for the server of the file: it is not sent to another one.
    let same_server = said.is_none() || said == file.server;
    let named = match (flags.token_file, set("LEASEHOLD_TOKEN"), set("LEASEHOLD_TOKEN_FILE").map(PathBuf::from)) {
        (Some(path), _, _) => Some(read_token(&path)?),
        (None, Some(_), Some(_)) => {
            let message = "both LEASEHOLD_TOKEN and LEASEHOLD_TOKEN_FILE are set".to_owned();
            return Err(ConfigErrors::whole(Path::new("environment"), message, Some("unset one of them")));
        }
        (None, Some(text), None) => Some(token(&text, Path::new("LEASEHOLD_TOKEN"))?),
        (None, None, Some(path)) => Some(read_token(&path)?),
        (None, None, None) => {
            file.token_file.filter(|_| same_server).map(|path| read_token(&below(path))).transpose()?
        }
    };
    let path = |flag: Option<PathBuf>, name: &str, file: Option<PathBuf>| {
        flag.or_else(|| set(name).map(PathBuf::from)).or_else(|| file.map(below))
    };
    let ca = path(flags.ca, "LEASEHOLD_CA", file.ca);
    let certificate = path(flags.certificate, "LEASEHOLD_CERTIFICATE", file.certificate.filter(|_| same_server));
    let key = path(flags.key, "LEASEHOLD_KEY", file.key.filter(|_| same_server));
    let certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(alone), None) | (None, Some(alone)) => {
            let message = "a certificate and its key go together, and this is one of them".to_owned();
            return Err(ConfigErrors::whole(&alone, message, Some("name the other with `--certificate` or `--key`")));
        }
    };
    Ok(Client {
        server: said.or(file.server).unwrap_or_else(|| SERVER_DEFAULT.to_owned()),
        token: named,
        ca,
        certificate,
        issuer: file.issuer.filter(|_| same_server),
        client_id: file.client_id.filter(|_| same_server),
        login: folder.map(|folder| folder.join("login.json")),
    })
}

/// The token in a file; one that is there and holds none is an error.
///
/// # Errors
/// Why it cannot be used.
pub fn read_token(path: &Path) -> Result<Token, ConfigErrors> {
    let hint = Some("it holds a token and nothing else");
    let text = files::text(path).map_err(|message| ConfigErrors::whole(path, message, hint))?;
    token(&text, path)
}

fn token(text: &str, origin: &Path) -> Result<Token, ConfigErrors> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
    if text.is_empty() || text.len() > TOKEN_BYTES_MAX || !text.bytes().all(plain) {
        let hint = "a token is one word of letters, digits and `-._~+/=` (RFC 6750)";
        return Err(ConfigErrors::whole(origin, "this is no token".to_owned(), Some(hint)));
    }
    Ok(Token { secret: SecretString::from(text), origin: origin.display().to_string() })
}

/// The documents of a text in YAML or JSON, as `leasehold apply` takes them; `origin` is where it came from.
///
/// # Errors
/// What is wrong with it, with its line.
pub fn documents(text: &str, origin: &Path) -> Result<Vec<serde_json::Value>, ConfigErrors> {
    let read: Result<Vec<serde_json::Value>, _> =
        serde_saphyr::from_multiple_with_options(text, options(Size::Small, DOCUMENTS_MAX));
    let read = read.map_err(|error| ConfigErrors::from_yaml(origin, text, &error))?;
    Ok(read.into_iter().filter(|document| !document.is_null()).collect())
}

fn read_file(path: &Path) -> Result<File, ConfigErrors> {
    if !path.exists() {
        return Ok(File::default());
    }
    let text = files::text(path).map_err(|message| ConfigErrors::whole(path, message, None))?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    yaml(&text).map_err(|error| ConfigErrors::from_yaml(path, &text, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(yaml: &str) -> Self {
            let home = Self(tempfile::tempdir().expect("a folder"));
            let folder = home.0.path().join(".config/leasehold");
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join("cli.yaml"), yaml).expect("written");
            for name in ["file", "flag", "env"] {
                std::fs::write(folder.join(name), format!("token-of-{name}\n")).expect("written");
            }
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(".config/leasehold").join(name)
        }

        fn read(&self, flags: ClientFlags, variables: &[(&str, &str)]) -> Result<Client, ConfigErrors> {
            let home = self.0.path().display().to_string();
            client_with(flags, &|name| match name {
                "HOME" => Some(home.clone()),
                name => variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()),
            })
        }
    }

    fn token_of(client: &Client) -> Option<&str> {
        client.token.as_ref().map(|token| token.secret.expose_secret())
    }

    #[test]
    fn flag_over_environment_over_file_over_default() {
        let home = Home::new("server: http://127.0.0.1:1\ntoken_file: file\nca: ca.pem\n");
        let client = home.read(ClientFlags::default(), &[]).expect("settings");
        assert_eq!((client.server.as_str(), token_of(&client)), ("http://127.0.0.1:1", Some("token-of-file")));
        assert_eq!(client.ca, Some(home.path("ca.pem")));

        let env_file = home.path("env").display().to_string();
        let variables = [("LEASEHOLD_SERVER", "http://127.0.0.1:2"), ("LEASEHOLD_TOKEN_FILE", env_file.as_str())];
        let client = home.read(ClientFlags::default(), &variables).expect("settings");
        assert_eq!((client.server.as_str(), token_of(&client)), ("http://127.0.0.1:2", Some("token-of-env")));

        let flags = ClientFlags {
            server: Some("http://127.0.0.1:3".into()),
            token_file: Some(home.path("flag")),
            ca: Some("x".into()),
            ..ClientFlags::default()
        };
        let client = home.read(flags, &variables).expect("settings");
        assert_eq!((client.server.as_str(), token_of(&client)), ("http://127.0.0.1:3", Some("token-of-flag")));
        assert_eq!(client.ca, Some("x".into()));

        let client = Home::new("").read(ClientFlags::default(), &[]).expect("settings");
        assert_eq!((client.server.as_str(), token_of(&client)), (SERVER_DEFAULT, None));
    }

    #[test]
    fn a_token_of_the_file_goes_to_no_other_server() {
        let home = Home::new("server: https://a.example\ntoken_file: file\nissuer: https://i.example\n");
        let client = home.read(ClientFlags::default(), &[("LEASEHOLD_SERVER", "https://b.example")]).expect("settings");
        assert_eq!((token_of(&client), &client.issuer), (None, &None));
        let client = home.read(ClientFlags::default(), &[("LEASEHOLD_SERVER", "https://a.example")]).expect("settings");
        assert_eq!(token_of(&client), Some("token-of-file"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |home: &Home, variables: &[(&str, &str)]| {
            home.read(ClientFlags::default(), variables).expect_err("refused").to_string()
        };
        assert!(error(&Home::new("sever: x\n"), &[]).contains("no such key"));
        assert!(error(&Home::new("token_file: nothing\n"), &[]).contains("no such file"));
        assert!(error(&Home::new(""), &[("LEASEHOLD_KEY", "a.key")]).contains("go together"));
        let both = [("LEASEHOLD_TOKEN", "a"), ("LEASEHOLD_TOKEN_FILE", "b")];
        assert!(error(&Home::new(""), &both).contains("both"));
        let bad = error(&Home::new(""), &[("LEASEHOLD_TOKEN", "two words-secret")]);
        assert!(bad.contains("no token") && !bad.contains("secret"), "{bad}");
    }

    #[test]
    fn a_token_is_not_shown() {
        let home = Home::new("");
        let client = home.read(ClientFlags::default(), &[("LEASEHOLD_TOKEN", "s3cret")]).expect("settings");
        assert!(!format!("{client:?}").contains("s3cret"));
    }
}
