//! One meaning of the store over all that keep rows: the model in memory, SQLite, and PostgreSQL 15 as Debian has it.
//! `scripts/test` installs what this needs.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, unreachable_pub)]

mod copy;
mod crash;
mod faults;
mod feed;
mod invariants;
mod life;
mod limits;
mod model;
mod place;
mod postgres;
mod replicas;
mod schema;
mod world;

/// Each case in each place.
macro_rules! suite {
    ($($module:ident::$case:ident,)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$module::$case(super::place::Memory::default()).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$module::$case(super::place::Sqlite::new()).await;
            })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$module::$case(super::place::Postgres::new()).await;
            })*
        }
    };
}

suite! {
    life::asked_again_with_the_same_key_it_is_the_same_request,
    life::policy_approves_and_denies_at_once,
    life::an_approver_agrees_and_nobody_approves_their_own,
    life::steps_need_their_quorum_and_an_approver_counts_once,
    life::an_approval_is_for_what_was_seen,
    life::what_changed_since_is_asked_again_at_approval,
    life::deny_cancel_and_lapse_end_a_request_for_good,
    life::eight_approvals_at_once_make_one_grant,
    life::a_closed_task_ends_what_it_justified,
    life::a_lock_stops_requests_until_it_is_lifted,
    life::documents_end_what_they_no_longer_allow,
    life::a_grant_only_becomes_narrower,
    life::a_grant_for_one_call_is_for_it_whatever_becomes_of_it,
    life::some_entitlements_are_for_single_calls_only,
    life::what_ended_stays_ended,
    life::break_glass_is_reviewed_by_somebody_else,
    life::a_trial_changes_nothing,
    limits::sixteen_contend_for_one_use,
    limits::a_use_said_again_counts_once,
    limits::counted_uses_run_out,
    limits::quotas_hold_under_concurrency,
    limits::no_grant_outlives_any_of_its_bounds,
    limits::time_ends_what_is_over_and_nothing_else,
    limits::what_goes_unused_ends_and_what_is_used_does_not,
    limits::a_selector_means_all_that_it_names,
    feed::a_reader_who_resumes_misses_nothing,
    feed::the_audit_is_a_dense_chain,
    feed::old_changes_go_and_a_late_reader_is_told,
    feed::old_keys_and_uses_go_when_nobody_can_say_them_again,
    feed::a_lease_has_one_holder,
    feed::an_id_is_never_used_twice,
    feed::a_view_is_one_moment,
}
