//! Commands that ask a control plane: declare, ask, decide, look, end, verify.
//!
//! Each is one thing said over the API, shown as a table or lines to people and as the answer itself to programs.
//!
//! Deliberately absent: any rule. What may be done is decided by the control plane alone; a command only asks first
//! where what it does cannot be undone.

mod apply;
mod approve;
mod audit;
mod documents;
mod grant;
mod inspect;
mod lock;
mod render;
mod request;
mod sidecar;
mod task;
mod view;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::client::{Call, Client, ServerArgs};
use super::{Failure, Output, login, print};
use crate::config;

/// How the commands that ask a control plane end.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, or it failed
  2  the command line or a file is wrong; nothing was asked
  3  pending: it was asked, and nobody decided yet
  4  the control plane cannot be reached, or broke off";

/// What a control plane can be asked.
#[derive(Debug, Subcommand)]
pub(super) enum Remote {
    /// Declares backends, principals, entitlements and policies from files: all of them or none
    #[command(after_help = concat!(
        "Examples:\n",
        "  leasehold apply -f config/control/ci-deploy --dry-run    what would change\n",
        "  leasehold apply -f config/control/ci-deploy\n",
        "  leasehold documents -o yaml | leasehold apply -f -\n\n",
        "Exit codes:\n",
        "  0  done, or nothing to do\n",
        "  1  refused: nothing was changed\n",
        "  2  the command line or a file is wrong; nothing was asked\n",
        "  4  the control plane cannot be reached, or broke off"))]
    Apply(apply::Apply),

    /// Declares a document no more; the grants under it end
    #[command(after_help = EXIT_CODES)]
    Delete(documents::Delete),

    /// Lists what is declared
    #[command(after_help = EXIT_CODES)]
    Documents(documents::Documents),

    /// Asks for an entitlement, for a task, for a time
    #[command(after_help = concat!(
        "Examples:\n",
        "  leasehold request pg-maintenance --task pagerduty:P1 --ttl 15m --wait\n",
        "  leasehold request ci-deploy --task github:org/app:run:7 --resource 'vhosts/prod/**' --dry-run\n",
        "  leasehold request lookup --uses 1 --arguments \"$(leasehold digest GET /customers/4711)\"    one exact call\n\n",
        "Exit codes:\n",
        "  0  granted\n",
        "  1  denied, cancelled or expired, or it failed\n",
        "  2  the command line is wrong; nothing was asked\n",
        "  3  pending: nobody decided within `--wait`; `leasehold show ID` tells where it stands\n",
        "  4  the control plane cannot be reached, or broke off"))]
    Request(request::Ask),

    /// Lists requests, such as those that wait for you
    #[command(after_help = EXIT_CODES)]
    Requests(request::Requests),

    /// Agrees to a request, after showing what it lets its subject do
    #[command(after_help = EXIT_CODES)]
    Approve(approve::Approve),

    /// Says no to a request
    #[command(after_help = EXIT_CODES)]
    Deny(approve::Deny),

    /// Takes a request back
    #[command(after_help = EXIT_CODES)]
    Cancel(approve::Cancel),

    /// Lists grants: those of the control plane, or with `--admin` those that a running proxy knows
    #[command(after_help = EXIT_CODES)]
    Grants(grant::Grants),

    /// Shows a request, grant, lock or task with its history; the beginning of an id is enough
    #[command(after_help = EXIT_CODES)]
    Show(inspect::Show),

    /// Narrows a grant: an earlier end, fewer uses, actions or resources, or one exact call
    #[command(after_help = EXIT_CODES)]
    Reduce(grant::Reduce),

    /// Gives one's own grant back
    #[command(after_help = EXIT_CODES)]
    Release(grant::Release),

    /// Takes grants away, by id or all that match
    #[command(after_help = concat!(
        "Examples:\n",
        "  leasehold revoke grt_0193 --reason 'wrong vhost'\n",
        "  leasehold revoke --principal 'https://ci.example#bot' --backend rabbitmq --yes --wait\n\n",
        "Exit codes:\n",
        "  0  done; what ended is printed\n",
        "  1  refused, or it failed\n",
        "  2  the command line is wrong; nothing was asked\n",
        "  3  with `--wait`: it ended, and some sidecar may not know yet\n",
        "  4  the control plane cannot be reached, or broke off"))]
    Revoke(grant::Revoke),

    /// Says what was found about a break-glass grant
    #[command(after_help = EXIT_CODES)]
    Review(grant::Review),

    /// Stops calls at once, whatever is granted: the kill switch
    #[command(after_help = EXIT_CODES)]
    Lock(lock::Lock),

    /// Lists the locks in force
    #[command(after_help = EXIT_CODES)]
    Locks(lock::Locks),

    /// Lifts a lock
    #[command(after_help = EXIT_CODES)]
    Unlock(lock::Unlock),

    /// Lists the sidecars that follow, and what each enforces
    #[command(after_help = EXIT_CODES)]
    Sidecars(sidecar::Sidecars),

    /// Makes a token with which a sidecar joins
    #[command(after_help = EXIT_CODES)]
    Sidecar(sidecar::Sidecar),

    /// Shows, closes or opens a task; closing ends what was granted for it
    #[command(after_help = EXIT_CODES)]
    Tasks(task::Tasks),

    /// Lists and verifies the control plane's own record
    #[command(after_help = EXIT_CODES)]
    Audit(audit::Audit),

    /// Looks for what is wrong or risky, and says how to fix it
    #[command(after_help = EXIT_CODES)]
    Doctor(inspect::Doctor),

    /// Says who you are to the control plane
    #[command(after_help = EXIT_CODES)]
    Whoami(inspect::Whoami),

    /// Logs a person in at the issuer that the control plane trusts
    #[command(after_help = EXIT_CODES)]
    Login(login::Login),

    /// Forgets the login
    #[command(after_help = EXIT_CODES)]
    Logout(login::Logout),
}

impl Remote {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Apply(command) => command.run(),
            Self::Delete(command) => command.run(),
            Self::Documents(command) => command.run(),
            Self::Request(command) => command.run(),
            Self::Requests(command) => command.run(),
            Self::Approve(command) => command.run(),
            Self::Deny(command) => command.run(),
            Self::Cancel(command) => command.run(),
            Self::Grants(command) => command.run(),
            Self::Show(command) => command.run(),
            Self::Reduce(command) => command.run(),
            Self::Release(command) => command.run(),
            Self::Revoke(command) => command.run(),
            Self::Review(command) => command.run(),
            Self::Lock(command) => command.run(),
            Self::Locks(command) => command.run(),
            Self::Unlock(command) => command.run(),
            Self::Sidecars(command) => command.run(),
            Self::Sidecar(command) => command.run(),
            Self::Tasks(command) => command.run(),
            Self::Audit(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Whoami(command) => command.run(),
            Self::Login(command) => command.run(),
            Self::Logout(command) => command.run(),
        }
    }
}

/// What every one of them takes.
#[derive(Debug, Clone, Args)]
struct Common {
    #[command(flatten)]
    server: ServerArgs,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Common {
    fn client(&self) -> Result<Client, Failure> {
        Client::open(&self.server)
    }
}

/// Reads `90s`, `15m` or `4h`, at least a second.
fn duration(text: &str) -> Result<Duration, String> {
    let read = config::duration(text).filter(|duration| duration.as_secs() > 0);
    read.ok_or_else(|| "write `90s`, `15m` or `4h`".to_owned())
}

/// Asks before what cannot be undone, where somebody is there to answer.
fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes || !print::can_ask() || print::ask(question) {
        return Ok(());
    }
    Err(Failure::Running(anyhow::anyhow!("nothing was done")))
}

/// Says that a list was longer than what is shown.
fn more(more: bool, limit: usize) {
    if more {
        print::aside(&format!("there are more than {limit}; see further with `--limit`"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_at_least_a_second() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        for bad in ["", "15", "0s", "10ms", "1.5h", "-1m", "pg-maintenance"] {
            assert!(duration(bad).is_err(), "`{bad}` was accepted");
        }
    }
}
