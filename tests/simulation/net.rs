//! A connection: frames under way in both directions, and what can become of them.

use std::collections::VecDeque;

use leasehold::sync::stream::Stream;
use leasehold::wire::v1::{ClientFrame, ServerFrame};

use crate::random::Random;

/// Frames in one direction, each with when it arrives.
#[derive(Debug)]
pub struct Pipe<T> {
    frames: VecDeque<(i64, T)>,
}

impl<T: Clone> Pipe<T> {
    fn new() -> Self {
        Self { frames: VecDeque::new() }
    }

    pub fn send(&mut self, now: i64, random: &mut Random, slowest: i64, frame: T) {
        let earliest = self.frames.back().map_or(0, |(at, _)| *at);
        self.frames.push_back(((now + random.between(100, slowest)).max(earliest), frame));
    }

    pub fn receive(&mut self, now: i64) -> Option<T> {
        self.frames.front().is_some_and(|(at, _)| *at <= now).then(|| self.frames.pop_front().unwrap().1)
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// What no connection does: a frame twice, or two in each other's place, or one not at all.
    pub fn spoil(&mut self, random: &mut Random) {
        if self.frames.len() < 2 {
            return;
        }
        let place = random.index(self.frames.len() - 1);
        match random.below(3) {
            0 => {
                let twice = self.frames[place].clone();
                self.frames.insert(place, twice);
            }
            1 => {
                let (at, next) = (self.frames[place].0, self.frames[place + 1].0);
                self.frames.swap(place, place + 1);
                (self.frames[place].0, self.frames[place + 1].0) = (at, next);
            }
            _ => drop(self.frames.remove(place)),
        }
    }
}

/// One connection of a follower to a server.
#[derive(Debug)]
pub struct Connection {
    pub server: usize,
    pub to_server: Pipe<ClientFrame>,
    pub to_client: Pipe<ServerFrame>,
    /// The server's end, once it has read the first frame.
    pub stream: Option<Stream>,
    /// Nothing moves before then.
    pub held_until: i64,
}

impl Connection {
    pub fn new(server: usize) -> Self {
        Self { server, to_server: Pipe::new(), to_client: Pipe::new(), stream: None, held_until: 0 }
    }
}
