//! Guardrails at the decision: what forbids a call that a grant or a baseline covers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::entry::Entry;
use super::{Decider, Denial, Mode, Question, Subject};
use crate::domain::time::Now;
use crate::guardrail::{Call, GuardrailBundle, Guardrails, Judgement, LoadError, Said};
use crate::sidecar::reason::Reason;
use crate::sidecar::resolve::ActionSpec;

/// What guardrails said of a call, and which they were.
#[derive(Debug, Default)]
pub(super) struct Judged {
    serial: u32,
    timed: bool,
    said: Option<Arc<Said>>,
    /// What ended it since.
    stopped: OnceLock<Arc<Said>>,
}

impl Judged {
    fn new(guardrails: &Guardrails, judgement: Judgement) -> Self {
        let Judgement { said, timed } = judgement;
        Self { serial: guardrails.serial(), timed, said, stopped: OnceLock::new() }
    }

    /// Whether these guardrails would say the same, whatever the time.
    fn holds(&self, guardrails: &Guardrails) -> bool {
        self.serial == guardrails.serial() && !self.timed
    }
}

impl Subject {
    /// What guardrails said when the call was decided: only those in shadow, since it was let pass.
    pub fn said(&self) -> Option<&Arc<Said>> {
        self.judged.said.as_ref()
    }

    /// The guardrails that ended it while it ran.
    pub fn stopped_by(&self) -> Option<&Arc<Said>> {
        self.judged.stopped.get()
    }

    /// Whether guardrails let a running call go on.
    pub(super) fn is_let_by(&self, guardrails: &Guardrails, now: Now) -> bool {
        if self.backend.mode == Mode::Observe || self.judged.holds(guardrails) {
            return true;
        }
        let Some(action) = &self.action else { return true };
        let call = Call {
            principal: &self.principal,
            backend: &self.backend.name,
            action: &action.name,
            resource: &self.resource,
        };
        let entry = self.grant().map(|entry| &**entry);
        match judge(guardrails, call, entry, now).stop() {
            Some(said) => {
                let _ = self.judged.stopped.set(Arc::clone(said));
                false
            }
            None => true,
        }
    }
}

fn judge(guardrails: &Guardrails, call: Call<'_>, entry: Option<&Entry>, now: Now) -> Judgement {
    let seat = |guardrails: &Guardrails| match entry {
        Some(entry) => entry.seat(guardrails, call.principal),
        None => guardrails.seat(call.principal),
    };
    guardrails.judge(call, seat, now.wall)
}

impl Decider {
    /// The guardrails in force.
    pub fn guardrails(&self) -> Arc<Guardrails> {
        self.guardrails.load_full()
    }

    /// Whether the last guardrails that came could not be used.
    pub fn guardrails_are_broken(&self) -> bool {
        self.guardrails_broken.load(Ordering::SeqCst)
    }

    /// Puts guardrails in force and ends what they forbid. Returns whether they are others than before. Reading many takes
    /// milliseconds: not for a thread that carries calls. For one caller at a time.
    ///
    /// # Errors
    /// [`LoadError`]; the last good ones stay in force. Where there are none yet, everything is forbidden.
    pub fn set_guardrails(&self, bundle: &GuardrailBundle) -> Result<bool, LoadError> {
        if bundle.digest() == self.guardrails.load().digest() {
            self.guardrails_known.store(true, Ordering::SeqCst);
            self.guardrails_broken.store(false, Ordering::SeqCst);
            return Ok(false);
        }
        match Guardrails::load(bundle) {
            Ok(guardrails) => {
                self.guardrails.store(Arc::new(guardrails));
                self.guardrails_known.store(true, Ordering::SeqCst);
                self.guardrails_broken.store(false, Ordering::SeqCst);
                self.recheck();
                Ok(true)
            }
            Err(error) => {
                self.keep_the_last_good();
                Err(error)
            }
        }
    }

    /// As [`Decider::set_guardrails`], of a bundle as it travels: JSON.
    ///
    /// # Errors
    /// What is wrong with it; the same holds then.
    pub fn read_guardrails(&self, content: &[u8]) -> Result<bool, String> {
        match serde_json::from_slice(content) {
            Ok(bundle) => self.set_guardrails(&bundle).map_err(|error| error.to_string()),
            Err(error) => {
                self.keep_the_last_good();
                Err(error.to_string())
            }
        }
    }

    fn keep_the_last_good(&self) {
        self.guardrails_broken.store(true, Ordering::SeqCst);
        if !self.guardrails_known.load(Ordering::SeqCst) {
            self.guardrails.store(Arc::new(Guardrails::unreadable()));
            self.recheck();
        }
    }

    /// What guardrails say of a call that a grant, or else a baseline, covers.
    pub(super) fn guard(
        &self,
        question: &Question<'_>,
        action: &ActionSpec,
        entry: Option<&Entry>,
        now: Now,
    ) -> Result<Judged, Denial> {
        let guardrails = self.guardrails.load();
        let call = Call {
            principal: question.principal,
            backend: &question.backend.name,
            action: &action.name,
            resource: question.resource,
        };
        let judgement = judge(&guardrails, call, entry, now);
        let Some(said) = judgement.stop() else { return Ok(Judged::new(&guardrails, judgement)) };
        Err(Denial {
            grant: entry.map(|entry| entry.id().to_owned()),
            message: said.reason().map(str::to_owned),
            guardrail: Some(Arc::clone(said)),
            ..Denial::of(Reason::Guardrail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, ORDERS, counted, grant, lock, principal, scope};
    use super::super::{BackendRules, Baseline, Basis};
    use super::*;
    use crate::domain::action::ActionClass;
    use crate::domain::id::{ActionName, BackendName, GrantId};
    use crate::domain::principal::PrincipalKind;
    use crate::guardrail::{Backends, GuardrailDocument, Mode as Counts};

    const NO_DELETE: &str = r#"@id("no-delete") @reason("not today") forbid(principal, action == Leasehold::Action::"queue.delete", resource);"#;

    fn bundle(mode: Counts, cedar: &str) -> GuardrailBundle {
        let action = |name| (ActionName::new(name).unwrap(), ActionClass::Write);
        let actions = vec![action("queue.delete"), action("queue.purge")];
        let backends: Backends = [(BackendName::new("rabbitmq").unwrap(), actions)].into();
        let documents = [GuardrailDocument { name: "doc".to_owned(), mode, cedar: cedar.to_owned() }];
        let guardrails = Guardrails::compile(&documents, &backends).unwrap();
        let groups = ["bots".to_owned()];
        let people = [("https://idp.test#bot", PrincipalKind::Ci, &groups[..], None)].into_iter();
        GuardrailBundle::new(&documents, &backends, guardrails.needs(), people)
    }

    fn set(bench: &Bench, mode: Counts, cedar: &str) {
        bench.decider.set_guardrails(&bundle(mode, cedar)).unwrap();
    }

    fn broken() -> GuardrailBundle {
        let mut bundle = bundle(Counts::Enforce, NO_DELETE);
        bundle.policies[0].cedar.push('(');
        bundle
    }

    #[test]
    fn a_guardrail_forbids_what_a_grant_or_a_baseline_covers_and_uses_nothing_up() {
        let mut bench = Bench::new();
        bench.state(vec![counted(grant("g1", "queue.*", "**", 0, 2_000), 1)]);
        set(&bench, Counts::Enforce, NO_DELETE);
        let denial = bench.ask_as(&principal("bot"), "queue.delete", ORDERS).unwrap_err();
        assert_eq!((denial.reason, denial.reasons.as_slice()), (Reason::Guardrail, &[Reason::Guardrail][..]));
        assert_eq!(denial.grant, Some(GrantId::new("g1").unwrap()));
        assert_eq!(denial.message.as_deref(), Some("not today"));
        assert_eq!(denial.guardrail.unwrap().forbids[0].to_string(), "doc/no-delete");
        assert!(bench.ask("queue.purge", ORDERS).is_ok(), "the use is still there");
        assert_eq!(bench.ask_as(&principal("eve"), "queue.delete", ORDERS).unwrap_err().reason, Reason::NoGrant);
        bench.decider.set_locks(vec![lock("l1")]);
        assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Lock);
        bench.decider.set_locks(Vec::new());
        let baseline =
            Baseline { principals: [principal("eve")].into(), scope: scope("queue.*", "**"), credential: None };
        bench.rules = Arc::new(BackendRules { baselines: vec![baseline], ..(*bench.rules).clone() });
        assert_eq!(bench.ask_as(&principal("eve"), "queue.delete", ORDERS).unwrap_err().reason, Reason::Guardrail);
        assert!(bench.ask_as(&principal("eve"), "queue.purge", ORDERS).is_ok());
    }

    #[test]
    fn a_new_guardrail_ends_what_it_forbids_and_nothing_else() {
        let mut bench = Bench::new();
        bench.state(vec![grant("g1", "queue.*", "**", 0, 2_000)]);
        let (delete, purge) = (bench.ask("queue.delete", ORDERS).unwrap(), bench.ask("queue.purge", ORDERS).unwrap());
        set(&bench, Counts::Shadow, NO_DELETE);
        assert_eq!(delete.confirm(), Ok(()));
        set(&bench, Counts::Enforce, NO_DELETE);
        assert_eq!((delete.confirm(), purge.confirm()), (Err(Reason::Guardrail), Ok(())));
        let stopped = delete.watch().subject().stopped_by().unwrap().clone();
        assert_eq!(stopped.forbids[0].id, "no-delete");
        bench.decider.set_guardrails(&GuardrailBundle::default()).unwrap();
        assert_eq!(delete.confirm(), Err(Reason::Guardrail), "lifting one revives nothing");
        assert!(bench.ask("queue.delete", ORDERS).is_ok());
    }

    #[test]
    fn no_call_slips_through_beside_a_new_guardrail() {
        let mut bench = Bench::new();
        bench.state(vec![grant("g1", "queue.*", "**", 0, 2_000)]);
        let forbidding = bundle(Counts::Enforce, NO_DELETE);
        for round in 0..20 {
            bench.decider.set_guardrails(&GuardrailBundle::default()).unwrap();
            let begun = std::sync::atomic::AtomicUsize::new(0);
            let permits: Vec<_> = std::thread::scope(|scope| {
                let (bench, begun) = (&bench, &begun);
                let ask = move || {
                    let mut permits = Vec::new();
                    while let Ok(permit) = bench.ask("queue.delete", ORDERS) {
                        begun.fetch_add(1, Ordering::SeqCst);
                        permits.push(permit);
                    }
                    permits
                };
                let threads: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
                while begun.load(Ordering::SeqCst) < round {
                    std::hint::spin_loop();
                }
                bench.decider.set_guardrails(&forbidding).unwrap();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert!(permits.len() >= round);
            assert!(permits.iter().all(|permit| permit.watch().ended() == Some(Reason::Guardrail)));
        }
    }

    #[test]
    fn one_that_reads_the_time_ends_what_runs_when_it_comes() {
        let mut bench = Bench::new();
        bench.state(vec![grant("g1", "queue.*", "**", 0, 2_000)]);
        let cedar = r#"@id("late") forbid(principal in Leasehold::Group::"bots", action, resource)
            when { context.now >= datetime("1970-01-01T00:16:50Z") };"#;
        set(&bench, Counts::Enforce, cedar);
        let permit = bench.ask("queue.delete", ORDERS).unwrap();
        bench.clock.pass(9);
        assert_eq!(permit.confirm(), Ok(()));
        bench.clock.pass(1);
        bench.decider.recheck();
        assert_eq!(permit.watch().ended(), Some(Reason::Guardrail));
        assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Guardrail);
    }

    #[test]
    fn in_shadow_and_where_it_is_only_observed_it_is_told_and_lets_pass() {
        let mut bench = Bench::new();
        bench.state(vec![grant("g1", "queue.*", "**", 0, 2_000)]);
        set(&bench, Counts::Shadow, NO_DELETE);
        let permit = bench.ask("queue.delete", ORDERS).unwrap();
        assert_eq!(permit.watch().subject().said().unwrap().shadow[0].id, "no-delete");
        assert!(matches!(permit.basis(), Basis::Grant(_)));
        assert!(bench.ask("queue.purge", ORDERS).unwrap().watch().subject().said().is_none());
        bench.rules = Arc::new(BackendRules { mode: Mode::Observe, ..(*bench.rules).clone() });
        let before = bench.ask("queue.delete", ORDERS).unwrap();
        set(&bench, Counts::Enforce, NO_DELETE);
        assert_eq!(before.confirm(), Ok(()));
        let permit = bench.ask("queue.delete", ORDERS).unwrap();
        assert!(matches!(permit.basis(), Basis::Observed(denial) if denial.reason == Reason::Guardrail));
        assert_eq!(permit.confirm(), Ok(()));
    }

    #[test]
    fn what_cannot_be_read_keeps_the_last_good_and_without_one_forbids_everything() {
        let mut bench = Bench::new();
        bench.state(vec![grant("g1", "queue.*", "**", 0, 2_000)]);
        let running = bench.ask("queue.purge", ORDERS).unwrap();
        assert!(bench.decider.set_guardrails(&broken()).is_err() && bench.decider.guardrails_are_broken());
        assert_eq!(running.confirm(), Err(Reason::Guardrail));
        assert_eq!(bench.ask("queue.purge", ORDERS).unwrap_err(), Reason::Guardrail);
        let good = bundle(Counts::Enforce, NO_DELETE);
        assert_eq!(bench.decider.set_guardrails(&good), Ok(true));
        assert!(bench.ask("queue.purge", ORDERS).is_ok() && !bench.decider.guardrails_are_broken());
        assert!(bench.decider.set_guardrails(&broken()).is_err() && bench.decider.guardrails_are_broken());
        assert!(bench.ask("queue.purge", ORDERS).is_ok());
        assert_eq!(bench.ask("queue.delete", ORDERS).unwrap_err(), Reason::Guardrail);
        assert_eq!(bench.decider.set_guardrails(&good), Ok(false));
        assert!(!bench.decider.guardrails_are_broken());
    }
}
