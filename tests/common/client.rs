//! A caller that sends bytes as they are and reads what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// One answer, as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body came as long as its head said.
    pub whole: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (given, value) = line.split_once(':')?;
            given.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The reason a refusal gives.
    pub fn reason(&self) -> String {
        self.json()["reason"].as_str().unwrap_or_default().to_owned()
    }
}

pub struct Client {
    stream: TcpStream,
    kept: Vec<u8>,
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, kept: Vec::new() }
    }

    /// Sends; the other side may have closed already, which is no fault of the caller's.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Says that nothing more comes.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Reads a piece; false at the end of the connection, however it came.
    fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(read) => {
                self.kept.extend_from_slice(&piece[..read]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came in time; so far: {}", String::from_utf8_lossy(&self.kept))
            }
            Err(_) => false,
        }
    }

    /// The next answer, or nothing where the connection ended before it. 1xx answers are passed over.
    pub fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub fn answer_to(&mut self, method: &str) -> Option<Answer> {
        loop {
            let answer = self.one(method)?;
            if answer.status >= 200 || answer.status == 101 {
                return Some(answer);
            }
        }
    }

    fn one(&mut self, method: &str) -> Option<Answer> {
        let end = loop {
            if let Some(end) = find(&self.kept, b"\r\n\r\n") {
                break end + 4;
            }
            if !self.more() {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.kept[..end]).into_owned();
        self.kept.drain(..end);
        let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Answer { status, head, body: Vec::new(), whole: true };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Some(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            answer.whole = self.chunks(&mut answer.body);
        } else if let Some(length) = answer.header("content-length").map(|length| length.parse::<usize>().unwrap()) {
            while self.kept.len() < length && self.more() {}
            answer.whole = self.kept.len() >= length;
            answer.body = self.kept.drain(..length.min(self.kept.len())).collect();
        } else {
            while self.more() {}
            answer.body = std::mem::take(&mut self.kept);
        }
        Some(answer)
    }

    /// Reads a chunked body; false where it ends before its last chunk.
    fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            let Some(line) = self.line() else { return false };
            let length = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
            while self.kept.len() < length + 2 {
                if !self.more() {
                    body.append(&mut self.kept);
                    return false;
                }
            }
            body.extend(self.kept.drain(..length));
            self.kept.drain(..2);
            if length == 0 {
                return true;
            }
        }
    }

    /// Reads a line of a stream, without its end.
    pub fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.kept, b"\r\n") {
                let line = String::from_utf8_lossy(&self.kept[..end]).into_owned();
                self.kept.drain(..end + 2);
                return Some(line);
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.kept)
    }

    /// Reads until `wanted` came; what came so far.
    pub fn until(&mut self, wanted: &[u8]) -> Vec<u8> {
        while find(&self.kept, wanted).is_none() {
            assert!(self.more(), "the connection ended before {:?}", String::from_utf8_lossy(wanted));
        }
        let end = find(&self.kept, wanted).unwrap() + wanted.len();
        self.kept.drain(..end).collect()
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
