//! Where the grants come from. The sole writer of the table, and the only one who says how fresh it is.
//!
//! A source is a file ([`file`](mod@file)), or whatever can fill a sink ([`sink`]): the control plane in the same process, or one
//! that is followed over a stream.

pub mod document;
pub mod file;
pub mod sink;
