//! What is said on a stream: a few frames at most, so that a server that reads nothing is noticed and not waited for.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::wire::v1::ClientFrame;

/// Frames that wait for the connection.
const WAITING_MAX: usize = 64;

/// Where frames are put.
pub(super) struct Outgoing(mpsc::Sender<ClientFrame>);

/// Where the connection takes them from.
pub(super) struct Said(mpsc::Receiver<ClientFrame>);

impl Outgoing {
    pub(super) fn new() -> (Self, Said) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), Said(receiver))
    }

    pub(super) fn has_room(&self) -> bool {
        self.0.capacity() > 0
    }

    /// Puts a frame; where there is no room, or no connection any more, it is lost, which silence tells soon enough.
    pub(super) fn send(&self, frame: ClientFrame) {
        let _ = self.0.try_send(frame);
    }
}

impl futures_core::Stream for Said {
    type Item = ClientFrame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ClientFrame>> {
        self.0.poll_recv(cx)
    }
}
