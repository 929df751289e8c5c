//! Proof in, `Verified` out; both planes use it.
