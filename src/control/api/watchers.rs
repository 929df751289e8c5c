//! Who watches: not too many at a time, and of those who see only what is theirs few each, so that nobody keeps the others
//! out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::domain::principal::Principal;

/// Most who watch everything at a time.
const ALL_MAX: usize = 64;

/// Most who watch what is theirs.
const OWN_MAX: usize = 256;

/// Most of those that are one principal's.
const EACH_MAX: usize = 4;

/// How many places each has.
type Counts = Mutex<HashMap<Principal, usize>>;

/// The places of those who watch.
#[derive(Debug)]
pub(super) struct Watchers {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    each: Arc<Counts>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    taken: Option<(Arc<Counts>, Principal)>,
}

fn counts(each: &Counts) -> MutexGuard<'_, HashMap<Principal, usize>> {
    each.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_many(detail: String) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many_watchers", detail)
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(ALL_MAX)), own: Arc::new(Semaphore::new(OWN_MAX)), each: Arc::default() }
    }

    /// A place for one who sees everything.
    pub(super) fn of_all(&self) -> Result<Place, Problem> {
        Ok(Place { _permit: take(&self.all, ALL_MAX)?, taken: None })
    }

    /// A place for one who sees what is theirs.
    pub(super) fn of(&self, principal: &Principal) -> Result<Place, Problem> {
        let permit = take(&self.own, OWN_MAX)?;
        let mut counts = counts(&self.each);
        let count = counts.entry(principal.clone()).or_default();
        if *count >= EACH_MAX {
            return Err(too_many(format!("you watch {EACH_MAX} times already: end one of them")));
        }
        *count += 1;
        Ok(Place { _permit: permit, taken: Some((Arc::clone(&self.each), principal.clone())) })
    }
}

fn take(places: &Arc<Semaphore>, most: usize) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| too_many(format!("{most} watch already: try again later, or another control plane")))
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((each, principal)) = &self.taken else { return };
        let mut counts = counts(each);
        if let Some(count) = counts.get_mut(principal) {
            *count -= 1;
            if *count == 0 {
                counts.remove(principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_the_others_out_and_a_place_is_given_back() {
        let watchers = Watchers::new();
        let [bot, other] = ["https://idp.test#bot", "https://idp.test#other"].map(|who| Principal::parse(who).unwrap());
        let mut places: Vec<_> = (0..EACH_MAX).map(|_| watchers.of(&bot).unwrap()).collect();
        assert!(watchers.of(&bot).is_err());
        let _others = watchers.of(&other).unwrap();
        places.pop();
        places.push(watchers.of(&bot).unwrap());
        assert!(watchers.of(&bot).is_err());
        drop(places);
        assert_eq!(counts(&watchers.each).len(), 1, "who watches no more is not remembered");
        let _many: Vec<_> = (1..OWN_MAX)
            .map(|n| watchers.of(&Principal::parse(&format!("https://idp.test#{n}")).unwrap()).unwrap())
            .collect();
        assert!(watchers.of(&bot).is_err() && watchers.of_all().is_ok());
        let _all: Vec<_> = (0..ALL_MAX).map(|_| watchers.of_all().unwrap()).collect();
        assert!(watchers.of_all().is_err());
    }
}
