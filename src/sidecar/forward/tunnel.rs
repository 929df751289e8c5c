//! A WebSocket after its 101: bytes both ways, until one side ends or the permit does.
//!
//! What the backend sends is followed frame by frame (RFC 6455 section 5.2), so that when the permit ends a close frame
//! with code 1008 can be put between two frames and the caller learns why.

use std::io;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sidecar::accept::ResetSwitch;
use crate::sidecar::decide::Permit;
use crate::sidecar::decide::live::Watcher;
use crate::sidecar::reason::Reason;
use crate::sidecar::record::Ended;
use crate::sidecar::record::call::CallRecord;

/// Bytes taken from one side before they are given to the other.
const PIECE: usize = 16 * 1024;

/// Follows where one frame ends and the next begins.
#[derive(Debug, Default)]
pub struct FrameTracker {
    header: [u8; 14],
    filled: usize,
    payload_left: u64,
}

impl FrameTracker {
    /// Takes in the bytes that were passed on.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let taken = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
                self.payload_left -= taken as u64;
                bytes = &bytes[taken..];
                continue;
            }
            self.header[self.filled] = bytes[0];
            self.filled += 1;
            bytes = &bytes[1..];
            if let Some(length) = self.payload_length() {
                self.payload_left = length;
                self.filled = 0;
            }
        }
    }

    /// The length of the payload, once the whole header is there.
    fn payload_length(&self) -> Option<u64> {
        if self.filled < 2 {
            return None;
        }
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.filled < 2 + extended + mask {
            return None;
        }
        Some(match extended {
            0 => u64::from(self.header[1] & 0x7f),
            n => self.header[2..2 + n].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        })
    }

    /// Whether a frame may begin here.
    pub fn at_boundary(&self) -> bool {
        self.filled == 0 && self.payload_left == 0
    }
}

/// A close frame of a server (unmasked) with code 1008, policy violation, and the reason.
pub fn close_frame(reason: Reason) -> Vec<u8> {
    let text = reason.as_str().as_bytes();
    let mut frame = vec![0x88, u8::try_from(text.len() + 2).unwrap_or(2), 0x03, 0xf0];
    frame.extend_from_slice(text);
    frame
}

/// Relays until an end, and says which.
pub async fn relay(
    caller: Upgraded,
    backend: Upgraded,
    permit: Permit,
    mut record: Box<CallRecord>,
    reset: ResetSwitch,
) {
    permit.wait_for_ever();
    let (mut from_caller, mut to_caller) = tokio::io::split(TokioIo::new(caller));
    let (mut from_backend, mut to_backend) = tokio::io::split(TokioIo::new(backend));
    let mut frames = FrameTracker::default();
    let (mut up, mut down) = (0, 0);
    let ended = tokio::select! {
        biased;
        reason = permit.ended(Watcher::Head) => Some(reason),
        _ = async {
            tokio::join!(
                pass_on(&mut from_caller, &mut to_backend, |bytes| up += bytes.len() as u64),
                pass_on(&mut from_backend, &mut to_caller, |bytes| {
                    down += bytes.len() as u64;
                    frames.pass(bytes);
                }),
            )
        } => None,
    };
    record.received(up);
    record.sent(down);
    match ended {
        None => record.end(Ended::Complete),
        Some(reason) => {
            record.end(Ended::Cut(reason));
            let told = frames.at_boundary() && to_caller.write_all(&close_frame(reason)).await.is_ok();
            if told {
                let _ = to_caller.shutdown().await;
            } else {
                reset.set();
            }
        }
    }
}

/// Passes bytes on until the end, and counts those that were really written: the future may be dropped at any point.
async fn pass_on(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut passed: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        let mut left = &piece[..read];
        while !left.is_empty() {
            let written = to.write(left).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            passed(&left[..written]);
            left = &left[written..];
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x82];
        match length {
            0..=125 => frame.push(mask | u8::try_from(length).unwrap()),
            126..=65_535 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        if masked {
            frame.extend_from_slice(&[1, 2, 3, 4]);
        }
        frame.resize(frame.len() + length, 7);
        frame
    }

    #[test]
    fn a_close_frame_is_one_whole_frame() {
        for reason in Reason::ALL {
            let mut frames = FrameTracker::default();
            frames.pass(&close_frame(*reason));
            assert!(frames.at_boundary(), "{reason}");
        }
    }

    proptest! {
        /// However the bytes are cut into pieces, a boundary is where a frame ends and nowhere else.
        #[test]
        fn boundaries_are_found_in_any_pieces(lengths in proptest::collection::vec((prop_oneof![0usize..130, 65_530usize..65_540], any::<bool>()), 1..6), piece in 1usize..4_000) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (length, masked) in lengths {
                bytes.extend(frame(length, masked));
                ends.push(bytes.len());
            }
            let mut frames = FrameTracker::default();
            let mut at = 0;
            for chunk in bytes.chunks(piece) {
                frames.pass(chunk);
                at += chunk.len();
                prop_assert_eq!(frames.at_boundary(), ends.contains(&at));
            }
        }
    }
}
