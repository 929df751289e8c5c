//! Connections to servers: several addresses, any of which may be gone.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::tls::{ClientTls, TlsError, TlsSettings};
use crate::domain::time::Timestamp;
use crate::wire::v1::policy_sync_client::PolicySyncClient;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Its name or address, an IPv6 address without brackets; its certificate has this name.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who serves, and how that is made sure of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    /// Where, at least one; all of them serve the same.
    pub addresses: Vec<Address>,
    /// What is shown and whom to believe. Without it everything is in the clear, which no configuration can ask for.
    pub tls: Option<TlsSettings>,
}

/// How long a connection may take, its handshake included.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Largest frame that is read.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// What is kept of an answer before it is read.
const WINDOW_BYTES: u32 = 1 << 20;

/// The servers, and which of them is asked next.
#[derive(Debug)]
pub struct Upstreams {
    addresses: Vec<Address>,
    tls: Option<Arc<ClientTls>>,
    next: AtomicUsize,
    /// The connection that is used besides the stream's own.
    open: Mutex<Option<Open>>,
}

pub(super) type Client = PolicySyncClient<Channel>;

/// A connection that is kept, and what it was begun with.
#[derive(Debug)]
struct Open {
    address: Address,
    certificate: u64,
    client: Client,
}

impl Upstreams {
    /// Reads the certificate; begins at a random address.
    ///
    /// # Errors
    /// [`TlsError`] for a file that is not what it should be.
    pub fn open(servers: Servers) -> Result<Arc<Self>, TlsError> {
        let tls = servers.tls.map(ClientTls::open).transpose()?.map(Arc::new);
        let next = AtomicUsize::new(usize::try_from(random()).unwrap_or(0));
        Ok(Arc::new(Self { addresses: servers.addresses, tls, next, open: Mutex::default() }))
    }

    /// The address that is asked now.
    pub(super) fn address(&self) -> &Address {
        &self.addresses[self.next.load(Ordering::Relaxed) % self.addresses.len()]
    }

    /// All addresses, from the one that is asked now.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Address> {
        let first = self.next.load(Ordering::Relaxed) % self.addresses.len();
        self.addresses.iter().cycle().skip(first).take(self.addresses.len())
    }

    /// Has the next address asked from now on, unless another than `address` is already.
    pub(super) fn leave(&self, address: &Address) {
        if self.address() == address {
            self.next.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The connection that is open, or a new one to the address that is asked now. Whoever comes meanwhile waits for it.
    pub(super) async fn connected(&self) -> Result<(Address, Client), String> {
        let mut open = self.open.lock().await;
        let certificate = self.certificate();
        if let Some(known) = &*open
            && known.address == *self.address()
            && known.certificate == certificate
        {
            return Ok((known.address.clone(), known.client.clone()));
        }
        let address = self.address().clone();
        let client = self.connect(&address).await.inspect_err(|_| self.leave(&address))?;
        *open = Some(Open { address: address.clone(), certificate: self.certificate(), client: client.clone() });
        Ok((address, client))
    }

    /// Lets go of a connection that is of no use, and has another address asked.
    pub(super) async fn disconnect(&self, address: &Address) {
        self.open.lock().await.take_if(|open| open.address == *address);
        self.leave(address);
    }

    /// Connects to an address. Nothing is sent before the server's certificate is verified.
    pub(super) async fn connect(&self, address: &Address) -> Result<Client, String> {
        connect(address, self.tls.as_ref().map(|tls| tls.current())).await
    }

    /// Looks whether the certificate changed, and warns of what is about to make connections impossible.
    pub(super) fn look(&self, now: Timestamp) {
        if let Some(tls) = &self.tls {
            tls.look(now);
        }
    }

    /// Changes whenever the certificate that is shown does.
    pub(super) fn certificate(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.changes())
    }
}

/// Connects to an address. Nothing is sent before the server's certificate is verified, by whatever `tls` has for it.
pub(super) async fn connect(address: &Address, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Client, String> {
    let invalid = |error: tonic::transport::Error| error.to_string();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let origin = format!("{scheme}://{address}").parse().map_err(|error| format!("{address}: {error}"))?;
    // Without a TLS of its own the library takes only `http`; ours is below it.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(invalid)?
        .origin(origin)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES);
    let to = address.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let (to, tls) = (to.clone(), tls.clone());
        async move { open(&to, tls).await.map(TokioIo::new) }
    });
    let channel = tokio::time::timeout(CONNECT_WITHIN, endpoint.connect_with_connector(connector)).await;
    let channel = channel.map_err(|_| "it did not answer in time".to_owned())?.map_err(|e| whole(&e))?;
    Ok(PolicySyncClient::new(channel).max_decoding_message_size(FRAME_BYTES_MAX))
}

/// An error with all its causes: the outermost of a connection says nothing.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Anything that bytes go in and out of.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn open(to: &Address, tls: Option<Arc<rustls::ClientConfig>>) -> io::Result<Box<dyn Io>> {
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await?;
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(to.host.clone()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the server does not offer HTTP/2"));
    }
    Ok(Box::new(stream))
}

/// A number that nobody guesses.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random bytes everybody tries again at once, which is a burden and no danger.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
