use super::*;
use crate::domain::time::{Timestamp, Uptime};

fn at(seconds: i64) -> Now {
    Now { wall: Timestamp::from_seconds(1_000 + seconds), uptime: Uptime::from_micros(seconds * 1_000_000) }
}

#[test]
fn failures_of_one_source_are_limited_and_no_others() {
    let limit = FailureLimit::new(3);
    for _ in 0..3 {
        assert!(limit.allows("10.0.0.1", at(5)));
        limit.count("10.0.0.1", at(5));
    }
    assert!(!limit.allows("10.0.0.1", at(5)));
    assert!(limit.allows("10.0.0.1", at(6)), "the next second is another");
    // Sources share counters by chance; most of these do not share that one.
    let others = (0..100).filter(|n| limit.allows(&format!("10.0.1.{n}"), at(5))).count();
    assert!(others > 90, "{others}");
}

#[test]
fn a_limit_counts_no_further_than_it_can() {
    let limit = FailureLimit::new(u32::MAX);
    for _ in 0..10 {
        limit.count("a", at(1));
    }
    assert!(limit.allows("a", at(1)));
}
