//! Step `accept` of a call.
