//! A backend that writes down every byte it gets and answers as it is told.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::client::find;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub connection: usize,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn headers(&self, name: &str) -> Vec<&str> {
        let named = |line: &'_ str| line.split_once(':').is_some_and(|(given, _)| given.eq_ignore_ascii_case(name));
        self.head
            .lines()
            .skip(1)
            .filter(|line| named(line))
            .map(|line| line.split_once(':').unwrap().1.trim())
            .collect()
    }
}

/// What a connection does after one request.
pub enum Then {
    /// It is read for the next one.
    Keep,
    /// It is closed.
    Close,
}

type Script = dyn Fn(&Seen, &mut TcpStream) -> Then + Send + Sync;

#[derive(Clone)]
pub struct Backend {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Backend {
    /// One that answers 200 to everything.
    pub fn start() -> Self {
        Self::scripted(|_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\nok\n");
            Then::Keep
        })
    }

    /// One that answers the same bytes to everything and then closes.
    pub fn answering(bytes: Vec<u8>) -> Self {
        Self::scripted(move |_, stream| {
            let _ = stream.write_all(&bytes);
            Then::Close
        })
    }

    pub fn scripted(script: impl Fn(&Seen, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = Self { address: listener.local_addr().unwrap(), seen: Arc::default(), bytes: Arc::default() };
        let (kept, script): (_, Arc<Script>) = (backend.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (backend, script) = (kept.clone(), Arc::clone(&script));
                let Ok(stream) = stream else { return };
                std::thread::spawn(move || backend.serve(number, stream, &*script));
            }
        });
        backend
    }

    fn serve(&self, connection: usize, mut stream: TcpStream, script: &Script) {
        let mut kept = Vec::new();
        while let Some((head, body)) = self.read(&mut stream, &mut kept) {
            let seen = Seen { connection, head, body };
            self.seen.lock().unwrap().push(seen.clone());
            if matches!(script(&seen, &mut stream), Then::Close) {
                return;
            }
        }
    }

    /// Reads one request by the plain rules; nothing at the end of the connection.
    fn read(&self, stream: &mut TcpStream, kept: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
        let end = loop {
            if let Some(end) = find(kept, b"\r\n\r\n") {
                break end + 4;
            }
            self.more(stream, kept)?;
        };
        let head = String::from_utf8_lossy(&kept[..end]).into_owned();
        kept.drain(..end);
        let lower = head.to_ascii_lowercase();
        let value = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let mut body = Vec::new();
        if let Some(length) = value("content-length:") {
            let length: usize = length.parse().unwrap();
            while kept.len() < length {
                self.more(stream, kept)?;
            }
            body.extend(kept.drain(..length));
        } else if value("transfer-encoding:").is_some() {
            loop {
                let line = loop {
                    if let Some(end) = find(kept, b"\r\n") {
                        break kept.drain(..end + 2).collect::<Vec<_>>();
                    }
                    self.more(stream, kept)?;
                };
                let length = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
                while kept.len() < length + 2 {
                    self.more(stream, kept)?;
                }
                body.extend(kept.drain(..length));
                kept.drain(..2);
                if length == 0 {
                    break;
                }
            }
        }
        Some((head, body))
    }

    fn more(&self, stream: &mut TcpStream, kept: &mut Vec<u8>) -> Option<()> {
        let mut piece = [0; 64 * 1024];
        let read = stream.read(&mut piece).ok().filter(|read| *read > 0)?;
        kept.extend_from_slice(&piece[..read]);
        self.bytes.lock().unwrap().extend_from_slice(&piece[..read]);
        Some(())
    }

    /// The whole requests it got so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Every byte it got so far, on any connection.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
        self.bytes.lock().unwrap().clear();
    }
}
