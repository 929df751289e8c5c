//! `leasehold login` and `logout`: people prove who they are at an OpenID issuer that the control plane trusts.
//!
//! On a machine with a browser by the authorization code with PKCE on a loopback redirect (RFC 7636, RFC 8252), on one
//! without by the device grant (RFC 8628). What is kept is the ID token, which is what the control plane is shown, and
//! the refresh token that renews it; both in a file that only its owner reads. Who logs out has the issuer take the
//! refresh token back (RFC 7009).

mod loopback;
mod provider;
mod saved;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::client::{Call, Client, Origin, ServerArgs, Transport, origin};
use super::{Failure, print};
use crate::app::clock::SystemClock;
use crate::config::client as settings;
use crate::domain::time::Clock;
use loopback::Loopback;
use provider::{Provider, Tokens};
use saved::Saved;

/// What is asked for where the control plane does not say: who it is, and a way to renew it.
const SCOPES: [&str; 2] = ["openid", "offline_access"];

/// A token that ends sooner is renewed before it is sent.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// How to log in.
#[derive(Debug, Args)]
pub(super) struct Login {
    /// The OpenID issuer; without it the one that the control plane names
    #[arg(long, value_name = "URL", requires = "client_id")]
    issuer: Option<String>,
    /// As what the issuer knows this program
    #[arg(long, value_name = "ID", requires = "issuer")]
    client_id: Option<String>,
    /// Where the browser is on another machine: shows a code to enter there
    #[arg(long)]
    device: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Where people log in, and as what.
struct Place {
    issuer: String,
    client_id: String,
    scopes: Vec<String>,
}

impl Login {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let settings = self.server.settings()?;
        let path = settings.login.clone();
        let path = path.context("there is no home to keep the login in: set HOME").map_err(Failure::Usage)?;
        let place = self.place(&settings)?;
        let (transport, runtime) = (Transport::new(settings.ca.clone()), super::client::runtime()?);
        let provider = Provider::discover(&place.issuer, &place.client_id, &transport, &runtime)?;
        let tokens = if self.device { by_device(&provider, &place)? } else { by_browser(&provider, &place)? };
        let claims = provider.claims(&tokens.id_token)?;
        let saved = Saved {
            server: origin(&settings)?.to_string(),
            issuer: place.issuer,
            client_id: place.client_id,
            subject: claims.subject.clone(),
            id_token: tokens.id_token,
            refresh_token: tokens.refresh_token,
        };
        saved.write(&path)?;
        print::out(&print::safe(&format!("logged in as {}#{}\n", saved.issuer, saved.subject)));
        if saved.refresh_token.is_none() {
            print::aside("the issuer gave nothing to renew it with: log in again when it ends");
        }
        Ok(())
    }

    /// By flag, by file, or as the control plane says.
    fn place(&self, settings: &settings::Client) -> Result<Place, Failure> {
        let scopes = || SCOPES.map(str::to_owned).to_vec();
        if let (Some(issuer), Some(client_id)) = (&self.issuer, &self.client_id) {
            return Ok(Place { issuer: issuer.clone(), client_id: client_id.clone(), scopes: scopes() });
        }
        if let (Some(issuer), Some(client_id)) = (&settings.issuer, &settings.client_id) {
            return Ok(Place { issuer: issuer.clone(), client_id: client_id.clone(), scopes: scopes() });
        }
        let client = Client::anonymous(settings)?;
        let said = match client.send(&Call::get(&["v1", "login"])) {
            Ok(reply) => reply.body,
            Err(Failure::Refused(problem)) => {
                let hint = "name where people log in with `--issuer URL --client-id ID`";
                return Err(Failure::Running(anyhow!(
                    "{} does not say where people log in: {problem}\n  {hint}",
                    client.origin()
                )));
            }
            Err(failure) => return Err(failure),
        };
        let of = |key: &str| said.get(key).and_then(Value::as_str).map(str::to_owned);
        let (issuer, client_id) = (of("issuer"), of("client_id"));
        let (Some(issuer), Some(client_id)) = (issuer, client_id) else {
            return Err(Failure::Running(anyhow!("{} has nowhere for people to log in", client.origin())));
        };
        let named = said.get("scopes").and_then(Value::as_array);
        let named = named.map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        Ok(Place { issuer, client_id, scopes: named.unwrap_or_else(scopes) })
    }
}

fn by_device(provider: &Provider<'_>, place: &Place) -> Result<Tokens, Failure> {
    let asked = provider.ask_device(&place.scopes)?;
    print::aside(&format!("Open {} on any machine and enter the code {}", asked.address(), asked.code()));
    if let Some(whole) = asked.whole_address() {
        print::aside(&format!("or open {whole}"));
    }
    Ok(asked.wait(provider)?)
}

fn by_browser(provider: &Provider<'_>, place: &Place) -> Result<Tokens, Failure> {
    let loopback = Loopback::bind(provider.runtime())?;
    let asked = provider.ask_browser(&place.scopes, loopback.address())?;
    print::aside(&format!("Open this address in a browser on this machine:\n\n  {}\n", asked.address()));
    print::aside("Where there is none, interrupt this and say `leasehold login --device`");
    let answer = loopback.answer(provider.runtime(), asked.state())?;
    Ok(asked.redeem(provider, &answer)?)
}

/// The token of a login for this control plane; renewed where it is near its end.
pub(super) fn saved_token(
    settings: &settings::Client,
    origin: &Origin,
    transport: &Transport,
    runtime: &Runtime,
) -> Result<Option<SecretString>, Failure> {
    let Some(path) = &settings.login else { return Ok(None) };
    let read = || -> Result<Option<Saved>, Failure> {
        Ok(Saved::read(path)?.filter(|saved| saved.server == origin.to_string()))
    };
    let Some(saved) = read()? else { return Ok(None) };
    if saved.lasts(now_seconds(), RENEW_BEFORE) {
        return Ok(Some(saved.id_token));
    }
    // A refresh token is good for one use: of two commands at once, the second takes what the first one got.
    let _lock = saved::lock(path)?;
    let Some(saved) = read()? else { return Ok(None) };
    if saved.lasts(now_seconds(), RENEW_BEFORE) {
        return Ok(Some(saved.id_token));
    }
    match renew(&saved, transport, runtime) {
        Ok(tokens) => {
            let refresh_token = tokens.refresh_token.or_else(|| saved.refresh_token.clone());
            let renewed = Saved { id_token: tokens.id_token, refresh_token, ..saved };
            renewed.write(path)?;
            Ok(Some(renewed.id_token))
        }
        Err(_) if saved.lasts(now_seconds(), Duration::ZERO) => Ok(Some(saved.id_token)),
        Err(error) => Err(Failure::Running(anyhow!(
            "the login is over and was not renewed: {error:#}\n  log in again with `leasehold login`"
        ))),
    }
}

fn renew(saved: &Saved, transport: &Transport, runtime: &Runtime) -> anyhow::Result<Tokens> {
    let refresh = saved.refresh_token.as_ref().context("there is nothing to renew it with")?;
    let provider = Provider::discover(&saved.issuer, &saved.client_id, transport, runtime)?;
    let tokens = provider.renew(refresh.expose_secret())?;
    let claims = provider.claims(&tokens.id_token)?;
    anyhow::ensure!(claims.subject == saved.subject, "the issuer renewed it for somebody else");
    Ok(tokens)
}

/// Seconds since 1970.
fn now_seconds() -> i64 {
    SystemClock::new().now().wall.as_seconds()
}

/// Which login to forget.
#[derive(Debug, Args)]
pub(super) struct Logout {
    #[command(flatten)]
    server: ServerArgs,
}

impl Logout {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let settings = self.server.settings()?;
        let Some(path) = settings.login.as_deref().filter(|path| path.exists()) else {
            print::out("there was no login\n");
            return Ok(());
        };
        // Another command may be renewing it just now, and would put it back.
        let lock = saved::lock(path);
        let taken_back = super::client::runtime().map(|runtime| take_back(path, &settings, &runtime));
        std::fs::remove_file(path).with_context(|| format!("{} cannot be removed", path.display()))?;
        drop(lock);
        if let Err(error) = taken_back? {
            print::notice("warning", &format!("{error:#}"));
            print::aside("  it is forgotten here only; what was given out is good until it ends by itself");
        }
        print::out("logged out\n");
        Ok(())
    }
}

/// Has the issuer end what the login could be renewed with.
fn take_back(path: &Path, settings: &settings::Client, runtime: &Runtime) -> anyhow::Result<()> {
    let Some(saved) = Saved::read_to_forget(path)? else { return Ok(()) };
    let Some(refresh) = &saved.refresh_token else { return Ok(()) };
    let transport = Transport::new(settings.ca.clone());
    Provider::discover(&saved.issuer, &saved.client_id, &transport, runtime)?.revoke(refresh)
}
