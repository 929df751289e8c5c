//! What things are.
//!
//! The words of the product as types: who asks ([`principal`]), what is asked ([`action`]), what is permitted and until
//! when ([`grant`], [`time`]), what overrides it ([`lock`]). Everything here is pure: values in, values out.
//!
//! Deliberately absent: I/O, async, a clock (callers pass [`time::Now`]), configuration, and any type of the wire, of a
//! file or of a database. `domain` names no other module of this crate.

pub mod id;
pub mod json;
pub mod time;

pub mod action;
pub mod principal;
pub mod resource;

pub mod grant;
pub mod lock;
