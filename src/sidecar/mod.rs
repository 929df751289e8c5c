//! The data plane, in the order a call meets it.

pub mod accept;

pub mod identify;

pub mod canonical;

pub mod inflow;

pub mod resolve;

pub mod decide;

pub mod consume;

pub mod credential;

pub mod inject;

pub mod forward;

pub mod record;

pub mod reason;

pub mod fields;

pub mod respond;

pub mod plane;

pub mod call;

pub mod worker;

pub mod sync;
