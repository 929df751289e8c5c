//! What is sent upstream is put together by `inject` alone.
use leasehold::sidecar::inject::Injected;

fn main() {
    let _ = Injected { method: todo!(), target: todo!(), headers: todo!() };
}
