//! What a decision makes of its source: a view that is stale, and a clock that is not ours.

use super::*;

/// A bench whose backend is served while the view is stale.
fn serving() -> Bench {
    let mut bench = Bench::new();
    let baseline =
        Baseline { principals: [principal("reader")].into(), scope: scope("queue.read", "**"), credential: None };
    bench.rules = Arc::new(BackendRules { serve_stale: true, baselines: vec![baseline], ..(*bench.rules).clone() });
    bench.state(vec![grant("g1", "queue.delete", "**", 0, 1_100)]);
    bench
}

fn is_stale(permit: &Permit) -> bool {
    permit.watch().subject().is_stale()
}

#[test]
fn where_it_is_asked_for_granted_calls_pass_while_stale_until_the_grants_own_end_and_are_marked() {
    let bench = serving();
    let early = bench.ask("queue.delete", ORDERS).unwrap();
    assert!(!is_stale(&early));
    bench.clock.pass(31);
    bench.decider.recheck();
    assert_eq!(early.confirm(), Ok(()));
    assert!(is_stale(&early), "what goes on is marked too");
    let late = bench.ask("queue.delete", ORDERS).unwrap();
    assert!(is_stale(&late));
    // What else there may be is not known: nothing that needs no grant, and no word of what is missing.
    assert_eq!(bench.ask("queue.purge", ORDERS).unwrap_err(), Reason::StaleSource);
    let reader = bench.ask_as(&principal("reader"), "queue.read", ORDERS);
    assert_eq!(reader.unwrap_err().reason, Reason::StaleSource);
    bench.decider.set_locks(vec![lock("l1")]);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Lock);
    bench.decider.set_locks(Vec::new());
    let late = bench.ask("queue.delete", ORDERS).unwrap();
    bench.clock.pass(69);
    bench.decider.recheck();
    assert_eq!(late.confirm(), Err(Reason::Expired));
}

#[test]
fn a_view_that_was_never_proved_holds_nothing_to_serve() {
    let clock = TestClock::at(1);
    let decider = Decider::new(clock, Duration::from_secs(30), 1);
    let bench = Bench { worker: decider.worker(), decider, ..serving() };
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::StaleSource);
}

#[test]
fn a_grant_ends_by_the_later_of_two_clocks_whenever_the_difference_becomes_known() {
    let mut bench = Bench::new();
    bench.state(vec![grant("g1", "queue.delete", "**", 0, 1_020)]);
    let permit = bench.ask("queue.delete", ORDERS).unwrap();
    // By the source's clock it is 1,010 already.
    bench.decider.ahead(Duration::from_secs(10));
    bench.decider.state(grant("g2", "queue.purge", "**", 0, 1_020)).unwrap();
    assert!(bench.ask("queue.purge", ORDERS).is_ok());
    bench.clock.pass(9);
    assert_eq!(permit.confirm(), Ok(()));
    bench.clock.pass(1);
    assert_eq!(permit.confirm(), Err(Reason::Expired));
    assert_eq!(bench.ask("queue.purge", ORDERS).unwrap_err(), Reason::Expired);
    // A source whose clock is behind lengthens nothing.
    bench.decider.ahead(Duration::ZERO);
    assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Expired);
}
