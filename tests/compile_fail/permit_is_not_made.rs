//! A permit has private fields: only the decision makes one.
use leasehold::sidecar::decide::Permit;

fn main() {
    let _ = Permit { registered: todo!(), decider: todo!() };
}
