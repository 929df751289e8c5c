//! One GET for a set of keys: bounded in time and size, never redirected.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::settings::{SettingsError, UrlKeys};

/// Longest time for all of it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Reads an authority file, to refuse a broken one when it is configured.
pub(super) fn check_ca(path: &Path) -> Result<(), SettingsError> {
    roots(path).map(|_| ()).map_err(|error| SettingsError::new(path, error))
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(roots) }
}

/// The answer's body. Dropping the future closes the connection.
pub(super) async fn get(keys: &UrlKeys) -> Result<Bytes, String> {
    tokio::time::timeout(TIMEOUT, get_unbounded(keys)).await.map_err(|_| "it took longer than 5 s".to_owned())?
}

async fn get_unbounded(keys: &UrlKeys) -> Result<Bytes, String> {
    let host = keys.url.host().ok_or("the URL names no host")?;
    let https = keys.url.scheme_str() == Some("https");
    let port = keys.url.port_u16().unwrap_or(if https { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(|error| error.to_string())?;
    if !https {
        return exchange(stream, keys).await;
    }
    let ca = keys.ca.as_ref().ok_or("https needs `ca`")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    exchange(stream, keys).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    keys: &UrlKeys,
) -> Result<Bytes, String> {
    let say = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(say)?;
    let connection = tokio::spawn(connection);
    let target = keys.url.path_and_query().map_or("/", |target| target.as_str());
    let authority = keys.url.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(target)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(say)?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answered {}", response.status().as_u16()));
    }
    let mut body = response.into_body();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.map_err(say)?.into_data() {
            if all.len() + piece.len() > keys.bytes_max {
                return Err(format!("it is larger than {} bytes", keys.bytes_max));
            }
            all.extend_from_slice(&piece);
        }
    }
    connection.abort();
    Ok(all.freeze())
}
