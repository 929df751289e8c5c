//! Who is who to guardrails: principals by what policies can tell of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use super::bundle::BundledPrincipal;
use super::judge::Guardrails;
use super::words::Actor;
use crate::domain::principal::{Principal, PrincipalMap};

/// What a principal is to guardrails. Two with one seat are answered alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seat(pub(super) u32);

/// The seat of one principal, for the guardrails that were asked last.
#[derive(Debug, Default)]
pub struct SeatMemory(AtomicU64);

impl SeatMemory {
    /// The seat of the principal whose memory this is.
    pub fn seat(&self, guardrails: &Guardrails, principal: &Principal) -> Seat {
        let remembered = self.0.load(Ordering::Relaxed);
        // No guardrails have the serial 0.
        if remembered >> 32 == u64::from(guardrails.serial()) {
            return Seat((remembered & 0xffff_ffff) as u32);
        }
        let seat = guardrails.seat(principal);
        self.0.store(u64::from(guardrails.serial()) << 32 | u64::from(seat.0), Ordering::Relaxed);
        seat
    }
}

/// Nobody who is known, and whom no policy names.
const NOBODY: Seat = Seat(0);

#[derive(Debug)]
pub(super) struct People {
    seats: PrincipalMap<Seat>,
    /// By seat; none for who is not known.
    roles: Vec<Option<BundledPrincipal>>,
}

impl People {
    /// `named` are the principals that policies name: each is told from all others.
    pub(super) fn read(principals: &[BundledPrincipal], named: &BTreeSet<String>) -> Result<Self, String> {
        let mut names = HashSet::new();
        if let Some(twice) = principals.iter().find(|one| !names.insert(&one.principal)) {
            return Err(format!("the principal `{}` is there twice", twice.principal.escape_debug()));
        }
        let mut roles: Vec<Option<BundledPrincipal>> = vec![None];
        let mut seated = HashMap::new();
        let mut seat = |one: &BundledPrincipal| {
            let role = BundledPrincipal { principal: String::new(), ..one.clone() };
            let key = (role.kind, role.groups.clone(), role.owner.clone());
            *seated.entry(key).or_insert_with(|| {
                roles.push(Some(role));
                last(&roles)
            })
        };
        let mut seats: PrincipalMap<Seat> =
            principals.iter().map(|one| (one.principal.as_str().into(), seat(one))).collect();
        for name in named {
            let role = seats.get_text(name).and_then(|seat| roles[seat.0 as usize].clone());
            roles.push(role);
            seats.insert_exact(name, last(&roles));
        }
        Ok(Self { seats, roles })
    }

    pub(super) fn seat(&self, principal: &Principal) -> Seat {
        self.seats.get(principal).copied().unwrap_or(NOBODY)
    }

    /// How policy sees somebody of that seat; none where they are not known.
    pub(super) fn actor<'a>(&'a self, seat: Seat, principal: &'a Principal) -> Option<Actor<'a>> {
        self.roles.get(seat.0 as usize)?.as_ref().map(|role| role.actor(principal))
    }
}

fn last(roles: &[Option<BundledPrincipal>]) -> Seat {
    Seat(u32::try_from(roles.len() - 1).unwrap_or(u32::MAX))
}
