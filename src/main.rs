//! The `leasehold` program; everything is in the library.

fn main() {}
