//! How often each grant was used, and when last, since whoever wants to know asked.

use std::collections::HashMap;

use crate::domain::id::{Borrowed, GrantId};
use crate::domain::time::Timestamp;

/// Grants of one worker that are remembered between two questions; the uses of more are not told.
const GRANTS_MAX: usize = 16_384;

/// The uses of one grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Which.
    pub grant: GrantId,
    /// When a call under it began or ended last.
    pub last: Timestamp,
    /// How many calls began.
    pub calls: u64,
}

/// The uses that one worker saw.
#[derive(Debug, Default)]
pub(super) struct Uses(HashMap<GrantId, (u64, Timestamp), ahash::RandomState>);

impl Uses {
    /// So many calls began, or none did and one ended.
    pub(super) fn note(&mut self, grant: Borrowed<'_, GrantId>, at: Timestamp, calls: u64) {
        if let Some((known, last)) = self.0.get_mut(grant.as_str()) {
            *known += calls;
            *last = at.max(*last);
        } else if self.0.len() < GRANTS_MAX {
            self.0.insert(grant.to_owned(), (calls, at));
        }
    }

    /// What was noted since the last time.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Used> + use<> {
        std::mem::take(&mut self.0).into_iter().map(|(grant, (calls, last))| Used { grant, last, calls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_add_up_once_and_more_grants_than_are_remembered_are_left_out() {
        let (mut uses, at) = (Uses::default(), Timestamp::from_seconds);
        let id = |number: usize| GrantId::new(&format!("g{number}")).unwrap();
        uses.note((&id(0)).into(), at(5), 1);
        uses.note((&id(0)).into(), at(4), 1);
        uses.note((&id(0)).into(), at(9), 0);
        assert_eq!(uses.take().collect::<Vec<_>>(), [Used { grant: id(0), last: at(9), calls: 2 }]);
        (0..GRANTS_MAX + 9).for_each(|number| uses.note((&id(number)).into(), at(1), 1));
        assert_eq!(uses.take().count(), GRANTS_MAX);
        assert_eq!(uses.take().count(), 0);
    }
}
