//! Grants as a source states them: one, one whose names lie elsewhere, and very many.

use std::sync::Arc;

use super::action::Scope;
use super::grant::{Grant, GrantState};
use super::id::{BackendName, Borrowed, GrantId, TaskRef};
use super::principal::Principal;
use super::time::Window;

/// A grant as a source states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedGrant {
    /// The grant.
    pub grant: Grant,
    /// Its state according to the source.
    pub state: GrantState,
}

impl StatedGrant {
    /// Of a grant that permits.
    pub const fn active(grant: Grant) -> Self {
        Self { grant, state: GrantState::Active }
    }

    /// The same, read where it is.
    pub fn view(&self) -> Stated<'_> {
        Stated {
            id: (&self.grant.id).into(),
            principal: (&self.grant.principal).into(),
            task: self.grant.task.as_ref().map(Borrowed::from),
            backend: &self.grant.backend,
            scope: &self.grant.scope,
            window: self.grant.window,
            uses_max: self.grant.uses_max,
            state: self.state,
        }
    }
}

/// A grant as a source states it, whose names somebody else holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stated<'a> {
    /// Its id.
    pub id: Borrowed<'a, GrantId>,
    /// Who may act.
    pub principal: Borrowed<'a, Principal>,
    /// What justifies it.
    pub task: Option<Borrowed<'a, TaskRef>>,
    /// On which backend.
    pub backend: &'a BackendName,
    /// Which actions on which resources.
    pub scope: &'a Arc<Scope>,
    /// From when until when.
    pub window: Window,
    /// How many calls it is good for; without it there is no count.
    pub uses_max: Option<u32>,
    /// Its state according to the source.
    pub state: GrantState,
}

impl Stated<'_> {
    /// The same, standing alone.
    pub fn to_owned(self) -> StatedGrant {
        let grant = Grant {
            id: self.id.to_owned(),
            principal: self.principal.to_owned(),
            backend: self.backend.clone(),
            scope: Arc::clone(self.scope),
            window: self.window,
            uses_max: self.uses_max,
            task: self.task.map(Borrowed::to_owned),
        };
        StatedGrant { grant, state: self.state }
    }
}

/// Very many grants in a few pieces of memory.
///
/// Names that are pieces of their own lie between what is kept when they are freed, and a process stays as large as it was
/// while it read them. Here all names are one text and the rest is one list: what is dropped goes back whole.
#[derive(Clone, Default)]
pub struct StatedGrants {
    names: String,
    rows: Vec<Row>,
}

/// One of them: where its names begin, how long they are, and the rest.
#[derive(Clone)]
struct Row {
    names_at: usize,
    id: u16,
    principal: u16,
    task: u16,
    state: GrantState,
    uses_max: Option<u32>,
    backend: BackendName,
    scope: Arc<Scope>,
    window: Window,
}

impl StatedGrants {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds one at the end.
    pub fn push(&mut self, stated: Stated<'_>) {
        let Stated { id, principal, task, backend, scope, window, uses_max, state } = stated;
        let names_at = self.names.len();
        let mut add = |name: &str| {
            self.names.push_str(name);
            // INVARIANT: an id has at most 128 bytes, a principal and a task at most 2,048.
            u16::try_from(name.len()).unwrap_or(u16::MAX)
        };
        let (id, principal) = (add(id.as_str()), add(principal.as_str()));
        let task = add(task.map_or("", |task| task.as_str()));
        let (backend, scope) = (backend.clone(), Arc::clone(scope));
        self.rows.push(Row { names_at, id, principal, task, state, uses_max, backend, scope, window });
    }

    /// Adds all of `others` after these.
    pub fn append(&mut self, others: Self) {
        if self.is_empty() {
            *self = others;
            return;
        }
        let before = self.names.len();
        self.names.push_str(&others.names);
        self.rows.extend(others.rows.into_iter().map(|row| Row { names_at: before + row.names_at, ..row }));
    }

    /// The one at that place.
    pub fn get(&self, place: usize) -> Option<Stated<'_>> {
        self.rows.get(place).map(|row| self.view(row))
    }

    /// Each of them, in their order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Stated<'_>> + ExactSizeIterator {
        self.rows.iter().map(|row| self.view(row))
    }

    /// Changes the state of each for which `state_of` has another.
    pub fn set_states(&mut self, state_of: impl Fn(&str) -> Option<GrantState>) {
        for row in &mut self.rows {
            let id = self.names.get(row.names_at..row.names_at + usize::from(row.id)).unwrap_or_default();
            row.state = state_of(id).unwrap_or(row.state);
        }
    }

    /// Keeps the places for which `keep` says yes.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut place = 0;
        self.rows.retain(|_| {
            place += 1;
            keep(place - 1)
        });
    }

    fn view<'a>(&'a self, row: &'a Row) -> Stated<'a> {
        let mut from = row.names_at;
        let mut next = |len: u16| {
            let name = self.names.get(from..from + usize::from(len)).unwrap_or_default();
            from += usize::from(len);
            name
        };
        let (id, principal, task) = (next(row.id), next(row.principal), next(row.task));
        Stated {
            id: Borrowed::of_valid(id),
            principal: Borrowed::of_valid(principal),
            task: (!task.is_empty()).then(|| Borrowed::of_valid(task)),
            backend: &row.backend,
            scope: &row.scope,
            window: row.window,
            uses_max: row.uses_max,
            state: row.state,
        }
    }
}

impl std::fmt::Debug for StatedGrants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for StatedGrants {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for StatedGrants {}

impl Extend<StatedGrant> for StatedGrants {
    fn extend<I: IntoIterator<Item = StatedGrant>>(&mut self, grants: I) {
        let grants = grants.into_iter();
        self.rows.reserve(grants.size_hint().0);
        grants.for_each(|stated| self.push(stated.view()));
    }
}

impl FromIterator<StatedGrant> for StatedGrants {
    fn from_iter<I: IntoIterator<Item = StatedGrant>>(grants: I) -> Self {
        let mut all = Self::default();
        all.extend(grants);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::action::ActionPattern;
    use crate::domain::resource::ResourcePattern;
    use crate::domain::time::Timestamp;

    fn stated(id: &str, task: Option<&str>, uses_max: Option<u32>, state: GrantState) -> StatedGrant {
        let scope = Scope::new(vec![ActionPattern::new("*").unwrap()], vec![ResourcePattern::new("**").unwrap()]);
        let grant = Grant {
            id: GrantId::new(id).unwrap(),
            principal: Principal::token("https://idp.test", "münchen").unwrap(),
            backend: BackendName::new("b").unwrap(),
            scope: Arc::new(scope),
            window: Window { not_before: Timestamp::from_seconds(3), expires_at: Timestamp::MAX },
            uses_max,
            task: task.map(|task| TaskRef::new(task).unwrap()),
        };
        StatedGrant { grant, state }
    }

    fn some() -> Vec<StatedGrant> {
        vec![
            stated("g1", None, None, GrantState::Active),
            stated("g22", Some("jira:OPS-1"), Some(3), GrantState::Revoked),
            stated("g3", Some("jira:O"), None, GrantState::Active),
        ]
    }

    #[test]
    fn what_went_in_comes_out_in_its_order() {
        let grants: StatedGrants = some().into_iter().collect();
        assert_eq!(grants.iter().map(Stated::to_owned).collect::<Vec<_>>(), some());
        assert_eq!(grants.get(1).map(Stated::to_owned), some().into_iter().nth(1));
        assert_eq!((grants.len(), grants.get(3)), (3, None));
    }

    #[test]
    fn what_is_appended_keeps_its_names() {
        let mut grants = StatedGrants::default();
        grants.append(some().into_iter().collect());
        grants.append(some().into_iter().collect());
        assert_eq!(grants, some().into_iter().chain(some()).collect());
    }

    #[test]
    fn states_change_by_id_and_places_are_left_out() {
        let mut grants: StatedGrants = some().into_iter().collect();
        grants.set_states(|id| (id == "g3").then_some(GrantState::Released));
        grants.retain(|place| place != 1);
        let left: Vec<_> = grants.iter().map(|stated| (stated.id.as_str(), stated.state)).collect();
        assert_eq!(left, [("g1", GrantState::Active), ("g3", GrantState::Released)]);
    }
}
