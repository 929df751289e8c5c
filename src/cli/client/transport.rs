//! One HTTP call: bounded in time and size, never redirected, on a connection of its own.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Where distributions keep the authorities that the whole system trusts.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A server, and the path below which everything of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Origin {
    https: bool,
    host: String,
    port: u16,
    prefix: String,
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write `https://leasehold.example`";
        let uri: Uri = text.parse().map_err(|_| format!("it is not a URL; {hint}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("it begins with neither `https://` nor `http://`; {hint}")),
        };
        if uri.query().is_some() || text.contains('#') || uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(format!("it has more than a host, a port and a path; {hint}"));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("it names no host; {hint}"))?;
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let origin = Self { https, host: host.to_owned(), port, prefix };
        if !https && !origin.is_loopback() {
            return Err(format!(
                "plain http shows tokens to everybody on the way, so only loopback is asked that way; {hint}"
            ));
        }
        Ok(origin)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.https { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port != usual {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.prefix)
    }
}

impl Origin {
    /// The server of a whole URL, and the path and query on it.
    pub(in crate::cli) fn split(url: &str) -> Result<(Self, String), String> {
        let uri: Uri = url.parse().map_err(|_| "it is not a URL".to_owned())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let bare = format!(
            "{}://{}",
            uri.scheme_str().unwrap_or_default(),
            uri.authority().map_or("", |authority| authority.as_str())
        );
        Ok((bare.parse()?, path))
    }

    /// Whether it is this machine, and nothing on the way can listen.
    pub(in crate::cli) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.bare_host().parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    pub(in crate::cli) fn is_https(&self) -> bool {
        self.https
    }

    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    fn authority(&self) -> String {
        if self.port == if self.https { 443 } else { 80 } {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum Fault {
    /// Nobody was asked.
    #[error("{0}")]
    Unreachable(String),
    /// It was asked, and what came of that is not known.
    #[error("{0}")]
    Lost(String),
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(in crate::cli) struct Answer {
    pub(in crate::cli) status: StatusCode,
    pub(in crate::cli) headers: HeaderMap,
    pub(in crate::cli) body: Bytes,
}

/// Asks servers, trusting the authorities of a file or those of the system.
#[derive(Debug)]
pub(in crate::cli) struct Transport {
    ca: Option<PathBuf>,
    shown: Option<(PathBuf, PathBuf)>,
}

impl Transport {
    pub(in crate::cli) fn new(ca: Option<PathBuf>) -> Self {
        Self { ca, shown: None }
    }

    /// The same, showing a certificate with its key.
    pub(in crate::cli) fn showing(self, shown: Option<(PathBuf, PathBuf)>) -> Self {
        Self { shown, ..self }
    }

    /// Sends a request whose URI is a path on `origin`. Dropping the future closes the connection.
    pub(in crate::cli) async fn send(
        &self,
        origin: &Origin,
        request: Request<Bytes>,
        deadline: Duration,
    ) -> Result<Answer, Fault> {
        let late = || Fault::Lost(format!("{origin} did not answer within {} s", deadline.as_secs()));
        tokio::time::timeout(deadline, self.send_unbounded(origin, request)).await.map_err(|_| late())?
    }

    async fn send_unbounded(&self, origin: &Origin, request: Request<Bytes>) -> Result<Answer, Fault> {
        let unreachable = |reason: String| Fault::Unreachable(format!("{origin} cannot be reached: {reason}"));
        let connect = TcpStream::connect((origin.bare_host(), origin.port));
        let stream = match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
            Ok(stream) => stream.map_err(|error| unreachable(error.to_string().to_lowercase()))?,
            Err(_) => return Err(unreachable(format!("no connection within {} s", CONNECT_DEADLINE.as_secs()))),
        };
        // A request is small and waits for its answer; nothing is gained by waiting for more of it.
        let _ = stream.set_nodelay(true);
        if !origin.https {
            return exchange(stream, origin, request).await;
        }
        let config = self.tls().map_err(unreachable)?;
        let name =
            ServerName::try_from(origin.bare_host().to_owned()).map_err(|error| unreachable(error.to_string()))?;
        let connecting = tokio_rustls::TlsConnector::from(config).connect(name, stream);
        let stream = connecting.await.map_err(|error| {
            unreachable(format!("{error}; where its authority is not one of the system's, name it with `--ca FILE`"))
        })?;
        exchange(stream, origin, request).await
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = match &self.ca {
            Some(path) => roots(path).map_err(|error| format!("--ca {}: {error}", path.display()))?,
            None => {
                let found = SYSTEM_AUTHORITIES.iter().find_map(|path| roots(Path::new(path)).ok());
                found.ok_or("this system has no file of authorities; name the server's with `--ca FILE`")?
            }
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.shown else { return Ok(Arc::new(config.with_no_client_auth())) };
        let said = |path: &Path, error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| said(certificate, &error))?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| said(key, &error))?;
        let config = config.with_client_auth_cert(chain, private);
        Ok(Arc::new(config.map_err(|error| said(certificate, &error))?))
    }
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string().to_lowercase())? {
        let certificate = certificate.map_err(|error| error.to_string().to_lowercase())?;
        // A system's file has authorities that no verifier takes; one that is named has to serve.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() { Err("it holds no authority".to_owned()) } else { Ok(roots) }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    origin: &Origin,
    mut request: Request<Bytes>,
) -> Result<Answer, Fault> {
    let lost = |error: &dyn fmt::Display| Fault::Lost(format!("{origin} broke off: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| lost(&error))?;
    let connection = tokio::spawn(connection);
    let path = format!("{}{}", origin.prefix, request.uri());
    *request.uri_mut() = path.parse().map_err(|_| Fault::Unreachable(format!("`{path}` is no path")))?;
    let authority = origin.authority().parse().map_err(|_| Fault::Unreachable(format!("{origin} is no host")))?;
    request.headers_mut().insert(header::HOST, authority);
    let response = sender.send_request(request.map(Full::new)).await.map_err(|error| lost(&error))?;
    let answer = read(response).await.map_err(|error| lost(&error))?;
    connection.abort();
    Ok(answer)
}

async fn read(response: Response<Incoming>) -> Result<Answer, String> {
    let (head, mut body) = response.into_parts();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() {
            if all.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(format!("its answer is larger than {} MiB", ANSWER_BYTES_MAX >> 20));
            }
            all.extend_from_slice(&piece);
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, body: all.freeze() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_url_without_surprises() {
        for (text, expected) in [
            ("http://127.0.0.1:9902", "http://127.0.0.1:9902"),
            ("http://[::1]:9902/", "http://[::1]:9902"),
            ("http://localhost", "http://localhost"),
            ("https://leasehold.example:443/", "https://leasehold.example"),
            ("https://gate.example/leasehold/", "https://gate.example/leasehold"),
        ] {
            assert_eq!(Origin::from_str(text).map(|origin| origin.to_string()), Ok(expected.to_owned()));
        }
        for bad in ["", "127.0.0.1:9902", "ftp://x", "https://a@b", "https://a?b", "https://", "https://a#b"] {
            assert!(Origin::from_str(bad).is_err(), "`{bad}` was accepted");
        }
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for bad in ["http://leasehold.example", "http://10.0.0.1:9902", "http://127.0.0.1.example", "http://[::2]"] {
            assert!(Origin::from_str(bad).is_err_and(|error| error.contains("plain http")), "`{bad}` was accepted");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let (origin, path) = Origin::split("https://idp.example/a/b?c=d").expect("a URL");
        assert_eq!((origin.to_string().as_str(), path.as_str()), ("https://idp.example", "/a/b?c=d"));
        assert!(Origin::split("http://idp.example/").is_err());
    }
}
