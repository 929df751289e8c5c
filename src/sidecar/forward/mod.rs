//! Step `forward`: the upstream call, raced against the permit's end.
//!
//! The request goes out over a connection that no other (principal, credential) ever used. Whatever waits (connecting,
//! the first byte, the upload, the answer) ends when the permit does. A retry happens only when no byte of the request
//! left, and the permit is confirmed again before each try.
//!
//! Deliberately absent: redirects (never followed), any decision, any knowledge of what the credential is.

pub mod body;
pub mod connect;
pub mod pool;
pub mod response;
pub mod tunnel;
pub mod upstream;
