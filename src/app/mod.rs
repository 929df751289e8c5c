//! The only module that knows everything: configuration in, a running program out.
