//! Step `identify` of a call.
