//! Step `inject` of a call.
