//! Step `canonical` of a call.
