//! Step `forward` of a call.
