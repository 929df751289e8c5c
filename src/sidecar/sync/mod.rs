//! Where the grants come from. The sole writer of the table, and the only one who says how fresh it is.
//!
//! Today there is one source, a file ([`file`]); the control plane's stream will stand beside it.

pub mod document;
pub mod file;
