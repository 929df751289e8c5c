//! A permit is for one call: it cannot be cloned for a second.
use leasehold::sidecar::decide::Permit;

fn twice(permit: Permit) -> (Permit, Permit) {
    (permit.clone(), permit)
}

fn main() {}
