//! Whatever comes in whatever order: nothing that ended comes back.

use super::*;

#[derive(Debug, Clone)]
enum Event {
    State(Vec<(u8, i64)>),
    End(u8),
    Sweep,
    Pass(i64),
    StepWall(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        proptest::collection::vec((0u8..4, 1i64..60), 0..4).prop_map(Event::State),
        (0u8..4).prop_map(Event::End),
        Just(Event::Sweep),
        (1i64..20).prop_map(Event::Pass),
        (-100i64..100).prop_map(Event::StepWall),
    ]
}

proptest! {
    /// However statements, ends, sweeps and clock steps are mixed: a grant that once ended never permits again before its
    /// own end has passed, and no permit outlives the first stated end in time that really passed.
    #[test]
    fn revocation_wins_every_order(events in proptest::collection::vec(event(), 1..40)) {
        let mut bench = Bench::new();
        let mut ended = HashSet::new();
        let mut known: std::collections::HashMap<u8, Uptime> = std::collections::HashMap::new();
        for event in events {
            let now = bench.clock.now();
            match event {
                Event::State(grants) => {
                    let mut seen = HashSet::new();
                    let grants: Vec<_> = grants.into_iter().filter(|(id, _)| seen.insert(*id)).collect();
                    let wall = now.wall.as_seconds();
                    bench.state(grants.iter().map(|(id, life)| {
                        grant(&format!("g{id}"), &format!("action-{id}"), "**", wall - 200, wall + life)
                    }).collect());
                    for (id, life) in &grants {
                        let end = now.uptime.plus(Duration::from_secs(life.unsigned_abs()));
                        known.entry(*id).and_modify(|known| *known = end.min(*known)).or_insert(end);
                    }
                    for id in known.keys() {
                        if !seen.contains(id) {
                            ended.insert(*id);
                        }
                    }
                }
                Event::End(id) => {
                    if bench.decider.end(&GrantId::new(&format!("g{id}")).unwrap(), GrantState::Revoked) {
                        ended.insert(id);
                    }
                }
                Event::Sweep => bench.decider.table().sweep(now),
                Event::Pass(seconds) => bench.clock.pass(seconds),
                Event::StepWall(seconds) => bench.clock.step_wall(seconds),
            }
            let now = bench.clock.now();
            bench.decider.freshness().prove(now.uptime);
            // A name is free again once its own end has passed.
            known.retain(|id, end| {
                let over = now.uptime >= *end;
                if over {
                    ended.remove(id);
                }
                !over
            });
            for id in 0u8..4 {
                let permitted = bench.ask(&format!("action-{id}"), "x").is_ok();
                if permitted {
                    prop_assert!(known.contains_key(&id), "g{id} permits past its end");
                    prop_assert!(!ended.contains(&id), "g{id} permits after it ended");
                }
            }
        }
    }
}
