//! Step `credential` of a call.
