//! Step `resolve` of a call.
