//! An OpenID provider: what it says of itself, and the tokens it gives.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, CsrfToken, DeviceAuthorizationUrl, EndpointNotSet, EndpointSet,
    ExtraTokenFields, HttpRequest, HttpResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken,
    RequestTokenError, Scope, StandardDeviceAuthorizationResponse, StandardRevocableToken, StandardTokenResponse,
    TokenResponse, TokenUrl,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::loopback::Parameters;
use super::now_seconds;
use crate::cli::Failure;
use crate::cli::client::{DEADLINE, Fault, Origin, Transport};

/// Longest that somebody may take to enter a code.
const DEVICE_PATIENCE: Duration = Duration::from_secs(900);

/// What OpenID adds to a token response.
#[derive(Clone, Serialize, Deserialize)]
struct IdToken {
    id_token: Option<String>,
}

impl std::fmt::Debug for IdToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdToken").finish_non_exhaustive()
    }
}

impl ExtraTokenFields for IdToken {}

type Response = StandardTokenResponse<IdToken, BasicTokenType>;

type OauthClient = oauth2::Client<
    BasicErrorResponse,
    Response,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

/// What came of a login.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) id_token: SecretString,
    pub(super) refresh_token: Option<SecretString>,
}

/// Whom an ID token speaks of. Its signature is looked at by the control plane, which is who must believe it; we had it
/// from the issuer itself (OpenID Connect Core 3.1.3.7, 6).
#[derive(Debug)]
pub(super) struct Claims {
    issuer: String,
    pub(super) subject: String,
    audiences: Vec<String>,
    authorized: Option<String>,
    nonce: Option<String>,
    /// Seconds since 1970.
    pub(super) expires: i64,
}

/// Reads the claims of an ID token.
pub(super) fn claims(token: &SecretString) -> anyhow::Result<Claims> {
    let payload = token.expose_secret().split('.').nth(1).context("the ID token is none")?;
    let payload = URL_SAFE_NO_PAD.decode(payload).ok().context("the ID token is none")?;
    let claims: Value = serde_json::from_slice(&payload).ok().context("the ID token is none")?;
    let of = |key: &str| claims.get(key).and_then(Value::as_str).map(str::to_owned);
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let expires = claims.get("exp").and_then(|exp| exp.as_i64().or_else(|| Some(exp.as_f64()? as i64)));
    Ok(Claims {
        issuer: of("iss").context("the ID token names no issuer")?,
        subject: of("sub").context("the ID token names nobody")?,
        audiences,
        authorized: of("azp"),
        nonce: of("nonce"),
        expires: expires.context("the ID token has no end")?,
    })
}

/// A provider, as it describes itself.
pub(super) struct Provider<'a> {
    issuer: String,
    client: OauthClient,
    device: Option<DeviceAuthorizationUrl>,
    /// As it is written: only who logs out needs it to be good.
    revocation: Option<String>,
    client_id: String,
    transport: &'a Transport,
    runtime: &'a Runtime,
}

impl<'a> Provider<'a> {
    /// Asks the issuer where its endpoints are (OpenID Connect Discovery 1.0).
    pub(super) fn discover(
        issuer: &str,
        client_id: &str,
        transport: &'a Transport,
        runtime: &'a Runtime,
    ) -> anyhow::Result<Self> {
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let request = Request::get(&url).header(header::ACCEPT, "application/json").body(Vec::new())?;
        let answer = exchange(transport, runtime, request).with_context(|| format!("issuer {issuer}"))?;
        ensure!(answer.status() == StatusCode::OK, "issuer {issuer}: {url} answered {}", answer.status());
        let document: Value = serde_json::from_slice(answer.body())
            .ok()
            .with_context(|| format!("issuer {issuer}: {url} has no JSON; is that an OpenID issuer?"))?;
        let of = |key: &str| document.get(key).and_then(Value::as_str).map(str::to_owned);
        let said = of("issuer").unwrap_or_default();
        ensure!(said == issuer, "issuer {issuer} calls itself `{}`: write it exactly so", said.escape_debug());
        let need = |key: &str| of(key).with_context(|| format!("issuer {issuer} has no `{key}`"));
        let (authorize, token) = (endpoint(&need("authorization_endpoint")?)?, endpoint(&need("token_endpoint")?)?);
        let device = of("device_authorization_endpoint").map(|url| endpoint(&url)).transpose()?;
        let client = oauth2::Client::new(ClientId::new(client_id.to_owned()))
            .set_auth_uri(AuthUrl::new(authorize)?)
            .set_token_uri(TokenUrl::new(token)?);
        let device = device.map(DeviceAuthorizationUrl::new).transpose()?;
        let (issuer, client_id) = (issuer.to_owned(), client_id.to_owned());
        Ok(Self { issuer, client, device, revocation: of("revocation_endpoint"), client_id, transport, runtime })
    }

    pub(super) fn runtime(&self) -> &Runtime {
        self.runtime
    }

    fn http(&self) -> impl Fn(HttpRequest) -> Result<HttpResponse, Fault> {
        |request| exchange(self.transport, self.runtime, request)
    }

    /// The claims of a token that this provider gave to this client, and that is not over.
    pub(super) fn claims(&self, token: &SecretString) -> anyhow::Result<Claims> {
        let claims = claims(token)?;
        ensure!(claims.issuer == self.issuer, "the ID token is of issuer `{}`", claims.issuer.escape_debug());
        ensure!(claims.audiences.contains(&self.client_id), "the ID token is for another client");
        ensure!(
            claims.authorized.as_ref().is_none_or(|party| *party == self.client_id),
            "the ID token was given to another client"
        );
        ensure!(claims.expires > now_seconds(), "the ID token is over already: is the clock of this machine right?");
        Ok(claims)
    }

    /// Begins the device grant.
    pub(super) fn ask_device(&self, scopes: &[String]) -> anyhow::Result<DeviceAsked> {
        let Some(device) = &self.device else {
            bail!("issuer {} has no device grant: log in without `--device`", self.issuer)
        };
        let client = self.client.clone().set_device_authorization_url(device.clone());
        let asked = client.exchange_device_code().add_scopes(scopes.iter().cloned().map(Scope::new));
        let details = asked.request(&self.http()).map_err(|error| self.refused(error))?;
        Ok(DeviceAsked { details })
    }

    /// Begins the authorization code grant.
    pub(super) fn ask_browser(&self, scopes: &[String], back: String) -> anyhow::Result<BrowserAsked> {
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let nonce = CsrfToken::new_random();
        let back = RedirectUrl::new(back)?;
        let client = self.client.clone().set_redirect_uri(back.clone());
        let mut asked = client
            .authorize_url(CsrfToken::new_random)
            .add_scopes(scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .add_extra_param("nonce", nonce.secret());
        if scopes.iter().any(|scope| scope == "offline_access") {
            // Without it an issuer leaves `offline_access` out (OpenID Connect Core 11).
            asked = asked.add_extra_param("prompt", "consent");
        }
        let (address, state) = asked.url();
        Ok(BrowserAsked { address: address.into(), back, state, nonce, verifier })
    }

    /// New tokens for a refresh token.
    pub(super) fn renew(&self, refresh: &str) -> anyhow::Result<Tokens> {
        let refresh = RefreshToken::new(refresh.to_owned());
        let response = self.client.exchange_refresh_token(&refresh).request(&self.http());
        tokens(&response.map_err(|error| self.refused(error))?)
    }

    /// Takes a refresh token back, and with it what it was renewed to (RFC 7009); the client is a public one.
    pub(super) fn revoke(&self, refresh: &SecretString) -> anyhow::Result<()> {
        let Some(revocation) = &self.revocation else {
            bail!("issuer {} takes no login back", self.issuer);
        };
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (token, client_id) = (encode(refresh.expose_secret()), encode(&self.client_id));
        let form = format!("token={token}&token_type_hint=refresh_token&client_id={client_id}");
        let request = Request::post(endpoint(revocation)?)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(form.into_bytes())?;
        let answer = self.http()(request).map_err(|fault| self.said(fault.to_string()))?;
        ensure!(answer.status() == StatusCode::OK, "issuer {}: {revocation} answered {}", self.issuer, answer.status());
        Ok(())
    }

    /// What the provider says, without what it sent: that may hold a token.
    fn refused(&self, error: RequestTokenError<Fault, BasicErrorResponse>) -> anyhow::Error {
        self.said(match error {
            RequestTokenError::ServerResponse(response) => response.to_string(),
            RequestTokenError::Request(fault) => fault.to_string(),
            RequestTokenError::Parse(..) => "its answer is no token response".to_owned(),
            RequestTokenError::Other(other) => other,
        })
    }

    fn said(&self, what: String) -> anyhow::Error {
        anyhow!("issuer {}: {what}", self.issuer)
    }
}

/// An endpoint is on TLS or on loopback, as whatever is asked.
fn endpoint(url: &str) -> anyhow::Result<String> {
    Origin::split(url).map_err(|error| anyhow!("endpoint `{}`: {error}", url.escape_debug()))?;
    Ok(url.to_owned())
}

fn tokens(response: &Response) -> anyhow::Result<Tokens> {
    let id_token = response.extra_fields().id_token.clone();
    let id_token = id_token.context("the issuer gave no ID token: does it allow this client the scope `openid`?")?;
    let refresh_token = response.refresh_token().map(|token| token.secret().clone().into());
    Ok(Tokens { id_token: id_token.into(), refresh_token })
}

fn exchange(transport: &Transport, runtime: &Runtime, request: HttpRequest) -> Result<HttpResponse, Fault> {
    let refuse = |error: String| Fault::Unreachable(error);
    let (origin, path) = Origin::split(&request.uri().to_string()).map_err(refuse)?;
    let (mut head, body) = request.into_parts();
    head.uri = path.parse().map_err(|_| refuse(format!("`{path}` is no path")))?;
    let request = Request::from_parts(head, Bytes::from(body));
    let answer = runtime.block_on(transport.send(&origin, request, DEADLINE))?;
    let mut response = HttpResponse::new(answer.body.to_vec());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// A code that somebody has to enter.
pub(super) struct DeviceAsked {
    details: StandardDeviceAuthorizationResponse,
}

impl DeviceAsked {
    pub(super) fn address(&self) -> &str {
        self.details.verification_uri().as_str()
    }

    pub(super) fn code(&self) -> &str {
        self.details.user_code().secret()
    }

    /// The address that has the code in it already.
    pub(super) fn whole_address(&self) -> Option<&str> {
        self.details.verification_uri_complete().map(|address| address.secret().as_str())
    }

    /// Asks as often as the provider allows, until somebody entered the code.
    pub(super) fn wait(&self, provider: &Provider<'_>) -> anyhow::Result<Tokens> {
        let pause = |time| provider.runtime.block_on(async { tokio::time::sleep(time).await });
        let patience = self.details.expires_in().min(DEVICE_PATIENCE);
        let asked = provider.client.exchange_device_access_token(&self.details);
        let response = asked.request(&provider.http(), pause, Some(patience)).map_err(|error| match error {
            RequestTokenError::ServerResponse(response) => provider.said(response.to_string()),
            RequestTokenError::Request(fault) => provider.said(fault.to_string()),
            RequestTokenError::Parse(..) => provider.said("its answer is no token response".to_owned()),
            RequestTokenError::Other(other) => provider.said(other),
        })?;
        tokens(&response)
    }
}

/// An address that somebody has to open.
pub(super) struct BrowserAsked {
    address: String,
    back: RedirectUrl,
    state: CsrfToken,
    nonce: CsrfToken,
    verifier: PkceCodeVerifier,
}

impl BrowserAsked {
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn state(&self) -> &str {
        self.state.secret()
    }

    /// The tokens for the code that came back.
    pub(super) fn redeem(self, provider: &Provider<'_>, answer: &Parameters) -> anyhow::Result<Tokens> {
        // An answer of another issuer is not taken to this one (RFC 9207).
        if let Some(issuer) = answer.get("iss") {
            ensure!(*issuer == provider.issuer, "the answer is of issuer `{}`", issuer.escape_debug());
        }
        let code = answer.get("code").context("the issuer's answer has no code")?;
        let client = provider.client.clone().set_redirect_uri(self.back);
        let asked = client.exchange_code(AuthorizationCode::new(code.clone())).set_pkce_verifier(self.verifier);
        let response = asked.request(&provider.http()).map_err(|error| provider.refused(error))?;
        let tokens = tokens(&response)?;
        let nonce = provider.claims(&tokens.id_token)?.nonce;
        ensure!(nonce.as_deref() == Some(self.nonce.secret()), "the ID token is not for this login: its nonce differs");
        Ok(tokens)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Unreachable(fault.into())
    }
}
