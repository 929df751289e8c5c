//! Who calls is proved by `identity` and by nobody else.
use leasehold::identity::Verified;

fn main() {
    let _ = Verified { principal: todo!(), ..todo!() };
}
