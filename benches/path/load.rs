//! Callers that send one request after another, each over a connection of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::process::Process;
use super::setup::Proxied;

const CONNECTIONS: usize = 32;

/// What is sent, in turn.
pub struct Load {
    address: SocketAddr,
    requests: Arc<[Vec<u8>]>,
    status: u16,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub cpu_us: f64,
    pub per_second: f64,
}

fn request(address: SocketAddr, path: &str, token: Option<&str>) -> Vec<u8> {
    let token = token.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: bench\r\naccept: */*\r\n{token}\r\n").into_bytes()
}

impl Load {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, requests: [request(address, "/things/1", Some(&"t".repeat(300)))].into(), status: 200 }
    }

    pub fn tokens(address: SocketAddr, tokens: &[String]) -> Self {
        let requests = tokens.iter().map(|token| request(address, "/things/1", Some(token))).collect();
        Self { address, requests, status: 200 }
    }

    pub fn refused(address: SocketAddr, token: Option<&str>, path: &str, status: u16) -> Self {
        Self { address, requests: [request(address, path, token)].into(), status }
    }
}

/// Calls for so long, and what the proxy spent on it.
pub fn run(load: &Load, process: &Process, duration: Duration) -> Rate {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let until = Instant::now() + duration;
        let before = process.cpu_ns();
        let started = Instant::now();
        let callers: Vec<_> = (0..CONNECTIONS)
            .map(|number| tokio::spawn(call(load.address, Arc::clone(&load.requests), load.status, number, until)))
            .collect();
        let mut calls = 0;
        for caller in callers {
            calls += caller.await.unwrap();
        }
        let elapsed = started.elapsed().as_secs_f64();
        let cpu_us = (process.cpu_ns() - before) as f64 / 1e3 / calls as f64;
        Rate { cpu_us, per_second: calls as f64 / elapsed }
    })
}

async fn call(address: SocketAddr, requests: Arc<[Vec<u8>]>, status: u16, number: usize, until: Instant) -> u64 {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut piece = vec![0; 4096];
    let mut calls = 0;
    // Apart from each other, so that no two callers use one token at a time.
    let mut turn = number * requests.len() / CONNECTIONS;
    while Instant::now() < until {
        turn = (turn + 1) % requests.len();
        stream.write_all(&requests[turn]).await.unwrap();
        let mut kept = 0;
        loop {
            let read = stream.read(&mut piece[kept..]).await.unwrap();
            assert!(read > 0, "the proxy closed the connection");
            kept += read;
            if is_whole(&piece[..kept]) {
                break;
            }
        }
        assert_eq!(&piece[9..12], status.to_string().as_bytes(), "{}", String::from_utf8_lossy(&piece[..kept]));
        calls += 1;
    }
    calls
}

/// Whether an answer with a content-length is all there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let name = b"content-length: ";
    let at = answer[..head].windows(name.len()).position(|window| window.eq_ignore_ascii_case(name)).unwrap();
    let length = answer[at + name.len()..].iter().take_while(|b| b.is_ascii_digit());
    let length = length.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    answer.len() == head + 4 + length
}

/// A connection that made one call and stays open.
pub fn hold(proxied: &Proxied) -> TcpStream {
    let mut stream = TcpStream::connect(proxied.address).unwrap();
    one(&mut stream, proxied).unwrap();
    stream
}

/// One call over a connection; nothing where it was refused or not served yet.
pub fn one(stream: &mut TcpStream, proxied: &Proxied) -> Option<()> {
    stream.write_all(&request(proxied.address, "/things/1", Some(&proxied.tokens[0]))).ok()?;
    let mut piece = [0; 4096];
    let read = stream.read(&mut piece).ok()?;
    piece[..read].starts_with(b"HTTP/1.1 200").then_some(())
}
