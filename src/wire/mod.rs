//! What the planes say to each other, as `proto/` describes it; into the domain only by `TryFrom`.
//!
//! What cannot be read is an error that names the field, never a default: a grant without an end would be one for ever.

mod convert;

/// The messages and services of `leasehold.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "generated from proto/"
)]
pub mod v1 {
    tonic::include_proto!("leasehold.v1");
}

pub use convert::{Shared, Unreadable};
