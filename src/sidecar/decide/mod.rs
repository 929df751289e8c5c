//! Step `decide` of a call.
