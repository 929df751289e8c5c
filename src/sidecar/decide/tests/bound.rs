//! Grants that are bound to the arguments of one call.

use super::*;

fn digest(byte: u8) -> ArgumentDigest {
    ArgumentDigest::from_bytes([byte; 32])
}

/// A grant for one call.
fn bound(id: &str, byte: u8) -> StatedGrant {
    let mut stated = grant(id, "queue.*", "**", 0, 2_000);
    stated.grant.scope = scope("queue.*", "**").bound_to(Some(digest(byte))).into();
    stated
}

impl Bench {
    fn ask_known(&self, byte: u8) -> Result<Permit, Denial> {
        self.ask_with(&principal("bot"), "queue.delete", ORDERS, Arguments::Known(digest(byte)))
    }

    fn ask_hidden(&self, reason: Reason) -> Denial {
        self.ask_with(&principal("bot"), "queue.delete", ORDERS, Arguments::Hidden(reason)).unwrap_err()
    }

    fn ask_unread(&self) -> Result<Permit, Denial> {
        self.ask_as(&principal("bot"), "queue.delete", ORDERS)
    }
}

fn used(permit: &Permit) -> &str {
    permit.grant().unwrap().id().as_str()
}

#[test]
fn a_bound_grant_covers_its_call_and_no_other_and_loses_no_use_to_another() {
    let mut bench = Bench::new();
    bench.state(vec![counted(bound("g1", 1), 1)]);
    let open = bench.ask_unread().unwrap_err();
    assert!(open.is_open() && open.arguments.is_none());
    let denial = bench.ask_known(2).unwrap_err();
    assert_eq!((denial.reason, denial.arguments.as_deref()), (Reason::ArgumentsDiffer, Some(&digest(2))));
    assert_eq!((denial.grant, denial.open), (Some(GrantId::new("g1").unwrap()), false));
    for reason in [Reason::BodyTooLarge, Reason::BodyUnreadable] {
        let denial = bench.ask_hidden(reason);
        assert_eq!((denial.reason, denial.is_open()), (reason, false));
    }
    assert_eq!(used(&bench.ask_known(1).unwrap()), "g1");
    let over = bench.ask_known(1).unwrap_err();
    assert_eq!(over.reasons.as_slice(), [Reason::Exhausted]);
    assert!(!bench.ask_unread().unwrap_err().is_open(), "what is over is not worth a look at the body");
}

#[test]
fn where_another_grant_covers_the_call_its_body_does_not_matter() {
    let mut bench = Bench::new();
    bench.state(vec![bound("g1", 1), counted(grant("g2", "queue.delete", "**", 0, 1_900), 1), bound("g3", 3)]);
    assert_eq!(used(&bench.ask_unread().unwrap()), "g2", "it needs no look at the body");
    assert!(bench.ask_unread().unwrap_err().is_open(), "now the others may still do");
    assert_eq!(used(&bench.ask_known(3).unwrap()), "g3");
    assert_eq!(used(&bench.ask_known(1).unwrap()), "g1");
    let denial = bench.ask_known(2).unwrap_err();
    assert_eq!(denial.reasons.as_slice(), [Reason::ArgumentsDiffer, Reason::Exhausted]);
}

#[test]
fn a_body_is_asked_for_only_where_it_can_matter() {
    let mut bench = Bench::new();
    bench.state(vec![bound("g1", 1)]);
    let reason = |bench: &Bench, who: &str, action: &str| {
        let denial = bench.ask_as(&principal(who), action, ORDERS).unwrap_err();
        assert!(!denial.is_open());
        denial.reason
    };
    assert_eq!(reason(&bench, "eve", "queue.delete"), Reason::NoGrant);
    assert_eq!(reason(&bench, "bot", "vhost.delete"), Reason::OutOfScope);
    bench.decider.set_locks(vec![Lock { grant: Some(GrantId::new("g1").unwrap()), ..lock("l1") }]);
    assert_eq!(reason(&bench, "bot", "queue.delete"), Reason::Lock);
    bench.decider.set_locks(Vec::new());
    bench.decider.end(&GrantId::new("g1").unwrap(), GrantState::Revoked);
    assert_eq!(reason(&bench, "bot", "queue.delete"), Reason::Revoked);
}

#[test]
fn where_it_is_only_observed_it_is_decided_all_the_same() {
    let mut bench = Bench::new();
    bench.state(vec![bound("g1", 1)]);
    bench.rules = Arc::new(BackendRules { mode: Mode::Observe, ..(*bench.rules).clone() });
    assert!(bench.ask_unread().unwrap_err().is_open());
    assert_eq!(used(&bench.ask_known(1).unwrap()), "g1");
    let passed = bench.ask_known(2).unwrap();
    assert!(matches!(passed.basis(), Basis::Observed(denial) if denial.reason == Reason::ArgumentsDiffer));
}

#[test]
fn what_a_grant_is_bound_to_never_changes_under_its_id() {
    let mut bench = Bench::new();
    bench.state(vec![bound("g1", 1)]);
    for other in [bound("g1", 2), grant("g1", "queue.*", "**", 0, 2_000)] {
        let refused = bench.decider.state(other).unwrap_err();
        assert!(matches!(refused, Refused::Changed { what: "scope", .. }), "{refused}");
    }
    assert!(bench.decider.state(bound("g1", 1)).is_ok() && bench.ask_known(1).is_ok());
    assert_eq!(bench.ask_known(2).unwrap_err().reason, Reason::ArgumentsDiffer);
}

proptest! {
    /// Whatever grants there are: only one that is bound to nothing, or to exactly this call, carries it.
    #[test]
    fn no_call_is_carried_by_a_grant_for_another(
        grants in prop::collection::vec((prop::option::of(0u8..3), prop::option::of(1u32..3)), 0..6),
        calls in prop::collection::vec(prop::option::of(0u8..3), 0..12),
    ) {
        let mut bench = Bench::new();
        let stated = grants.iter().enumerate().map(|(number, (byte, uses))| {
            let id = format!("g{number}");
            let stated = byte.map_or_else(|| grant(&id, "queue.*", "**", 0, 2_000), |byte| bound(&id, byte));
            uses.map_or(stated.clone(), |uses| counted(stated, uses))
        });
        bench.state(stated.collect());
        for call in calls {
            let Some(byte) = call else {
                if let Ok(permit) = bench.ask_unread() {
                    prop_assert!(permit.grant().unwrap().scope().arguments().is_none());
                }
                continue;
            };
            if let Ok(permit) = bench.ask_known(byte) {
                let arguments = permit.grant().unwrap().scope().arguments();
                prop_assert!(arguments.is_none_or(|bound| *bound == digest(byte)));
            }
        }
    }
}
