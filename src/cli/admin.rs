//! A small client of a running proxy's admin listener.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// How long the admin listener may take; with a million grants it has much to write.
const DEADLINE: Duration = Duration::from_secs(60);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Where the admin listener is.
#[derive(Debug, Clone)]
pub(super) struct AdminUrl {
    host: String,
    port: u16,
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write `http://127.0.0.1:9901`";
        let uri: Uri = text.parse().map_err(|_| format!("it is not a URL; {hint}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("the admin listener speaks plain HTTP; {hint}"));
        }
        if uri.path() != "/" || uri.query().is_some() || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(format!("it has more than a host and a port; {hint}"));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("it names no host; {hint}"))?;
        Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(80) })
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

/// Asks the admin listener for a JSON document.
pub(super) fn get(admin: &AdminUrl, path_and_query: &str) -> anyhow::Result<serde_json::Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let (status, body) = runtime
        .block_on(async { tokio::time::timeout(DEADLINE, fetch(admin, path_and_query)).await })
        .with_context(|| format!("{admin} did not answer within {} s", DEADLINE.as_secs()))??;
    let document: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    match (status, document) {
        (StatusCode::OK, Some(document)) => Ok(document),
        (StatusCode::OK, None) => {
            bail!("what answers at {admin} sends no JSON; is that the admin listener, and not a listener for calls?")
        }
        (StatusCode::NOT_FOUND, None) => {
            let path = path_and_query.split('?').next().unwrap_or_default();
            bail!("what answers at {admin} knows no `{path}`; is that the admin listener of this version?")
        }
        (status, document) => {
            let detail = document.as_ref().and_then(|d| d.get("detail").or_else(|| d.get("error"))?.as_str());
            bail!("{admin} answered {status}: {}", detail.unwrap_or("it gave no reason"))
        }
    }
}

async fn fetch(admin: &AdminUrl, path_and_query: &str) -> anyhow::Result<(StatusCode, bytes::Bytes)> {
    let hint = "is `leasehold proxy` running, and is this the `admin.address` of its configuration? Name another with `--admin URL`";
    let bare = admin.host.trim_start_matches('[').trim_end_matches(']');
    let stream = match tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect((bare, admin.port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => bail!("{admin} cannot be reached: {}; {hint}", error.to_string().to_lowercase()),
        Err(_) => bail!("{admin} cannot be reached within {} s; {hint}", CONNECT_DEADLINE.as_secs()),
    };
    let broken = || format!("{admin} broke off; is that the admin listener?");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(broken)?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path_and_query)
        .header(header::HOST, format!("{}:{}", admin.host, admin.port))
        .header(header::ACCEPT, "application/json")
        .body(Empty::<bytes::Bytes>::new())
        .context("the call cannot be put into a URL")?;
    let response = sender.send_request(request).await.with_context(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!("{admin} broke off in its answer: {e}"))?.to_bytes();
    connection.abort();
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_and_port_only() {
        for (text, expected) in [
            ("http://127.0.0.1:9901", "http://127.0.0.1:9901"),
            ("http://127.0.0.1:9901/", "http://127.0.0.1:9901"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://localhost", "http://localhost:80"),
        ] {
            assert_eq!(AdminUrl::from_str(text).map(|u| u.to_string()), Ok(expected.to_owned()));
        }
        for bad in ["", "127.0.0.1:9901", "https://127.0.0.1", "http://a@b", "http://a/b", "http://a?b"] {
            assert!(AdminUrl::from_str(bad).is_err(), "`{bad}` was accepted");
        }
    }
}
