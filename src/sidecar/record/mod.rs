//! Step `record` of a call.
