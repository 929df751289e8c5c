//! Guardrails: what forbids a call although a grant covers it.
//!
//! Both planes hold them. The control plane reads the Policy documents in force, says in `explain` what they would do, and
//! makes a [`GuardrailBundle`] of them: plain text and the little of other documents that they speak of. A sidecar loads
//! the bundle and asks at every call. Both read and evaluate by the code in this folder, so that what one foretells the
//! other does.
//!
//! A bundle is in force as a whole or not at all: whatever is wrong with one policy refuses it ([`LoadError`]), and the
//! caller keeps the last good one. What cannot be evaluated denies: Cedar passes over a policy that fails, which for a
//! `forbid` would let through.
//!
//! What a call costs: policies are sliced by backend and action when they are loaded. An empty slice is not asked. An
//! answer depends only on what policies can tell apart: on which of a few roles the principal has, on whether the resource
//! is one that they name, and, where they read the context, on the second. So Cedar is asked once for each of those, and
//! every other call finds the answer.
//!
//! Deliberately absent: anything that permits, anything of a request's life, and how a bundle travels.

pub mod bundle;

pub(crate) mod bounds;
pub(crate) mod check;
pub(crate) mod head;
pub(crate) mod schema;
pub(crate) mod words;

mod judge;
mod load;
mod people;

#[cfg(test)]
mod tests;

pub use bundle::{GuardrailBundle, GuardrailDocument, Mode};
pub use check::LoadError;
pub use judge::{Call, Guardrails, Judgement, Rule, Said};
pub use load::Needs;
pub use people::{Seat, SeatMemory};
pub use schema::Backends;
pub use words::Actor;
