//! From a revocation applied in a sidecar with very many grants to the last call let through, and to the end of an open
//! stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leasehold::domain::grant::GrantState;
use leasehold::domain::id::GrantId;

use super::setup::{self, Folder};

pub struct Plan {
    pub grants: usize,
    pub rounds: usize,
}

pub fn run(plan: &Plan) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = Folder::new();
    let backend = streaming_backend();
    let (config, token) = setup::in_process(&folder, backend, plan);
    let running = runtime.block_on(leasehold::app::start(config)).unwrap();
    let address = running.address("main").unwrap();
    let decider = Arc::clone(running.decider());
    let mut cuts = Vec::new();
    let mut lasts = Vec::new();
    for round in 0..plan.rounds {
        let stream = open_stream(address, &token, round);
        let cut = Arc::new(Mutex::new(None));
        let reader = follow(stream, Arc::clone(&cut));
        let id = GrantId::new(&format!("grt_stream_{round}")).unwrap();
        let at = Instant::now();
        assert!(decider.end(&id, GrantState::Revoked));
        reader.join().unwrap();
        cuts.push(cut.lock().unwrap().unwrap().duration_since(at));
        lasts.push(last_allowed(&decider, address, &token, round));
    }
    println!("\n| a revocation among {} grants | median | longest |\n|---|---|---|", plan.grants);
    print("applied → an open stream is cut", &mut cuts);
    print("applied → the last call that got through began", &mut lasts);
    let _inside = runtime.enter();
    drop(running);
}

fn print(name: &str, times: &mut [Duration]) {
    times.sort();
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!("| {name} | {:.0} µs | {:.0} µs |", micros(times[times.len() / 2]), micros(times[times.len() - 1]));
}

fn request(path: &str, address: SocketAddr, token: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\r\n").into_bytes()
}

fn open_stream(address: SocketAddr, token: &str, round: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&request(&format!("/events/{round}"), address, token)).unwrap();
    let mut piece = [0; 4096];
    let mut kept = Vec::new();
    while !kept.windows(5).any(|window| window == b"begun") {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&kept));
        kept.extend_from_slice(&piece[..read]);
    }
    stream
}

/// Reads until the stream ends, and says when.
fn follow(mut stream: TcpStream, cut: Arc<Mutex<Option<Instant>>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while matches!(stream.read(&mut piece), Ok(read) if read > 0) {}
        *cut.lock().unwrap() = Some(Instant::now());
    })
}

/// Calls without pause while the grant ends; how long after that the last call began that was let through.
fn last_allowed(
    decider: &Arc<leasehold::sidecar::decide::Decider>,
    address: SocketAddr,
    token: &str,
    round: usize,
) -> Duration {
    let zero = Instant::now();
    let last = Arc::new(AtomicU64::new(0));
    let refused = Arc::new(AtomicBool::new(false));
    let caller = {
        let (last, refused) = (Arc::clone(&last), Arc::clone(&refused));
        let request = request(&format!("/things/{round}"), address, token);
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut piece = [0; 4096];
            loop {
                let began = zero.elapsed();
                stream.write_all(&request).unwrap();
                let read = stream.read(&mut piece).unwrap();
                if !piece[..read].starts_with(b"HTTP/1.1 200") {
                    refused.store(true, Ordering::SeqCst);
                    return;
                }
                last.store(u64::try_from(began.as_nanos()).unwrap(), Ordering::SeqCst);
            }
        })
    };
    while last.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let id = GrantId::new(&format!("grt_call_{round}")).unwrap();
    assert!(decider.end(&id, GrantState::Revoked));
    let applied = zero.elapsed();
    caller.join().unwrap();
    assert!(refused.load(Ordering::SeqCst));
    Duration::from_nanos(last.load(Ordering::SeqCst)).saturating_sub(applied)
}

/// Streams that say that they began and then nothing; everything else is answered at once.
fn streaming_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while matches!(stream.read(&mut piece), Ok(read) if read > 0) {
                    let answer = if piece.starts_with(b"GET /events/") {
                        &b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n"[..]
                    } else {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
                    };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}
