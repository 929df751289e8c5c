//! Commands and flags; the only module that prints.
//!
//! Results go to standard output, everything else to standard error. The exit code says who has to act: nobody (0),
//! whoever runs the machine or was refused (1), whoever wrote the command line or the file (2), an approver (3), or
//! whoever runs the control plane and what is between (4).
//!
//! Deliberately absent: configuration by flags. What a flag could change in a running program is in the file, where it
//! is validated, reviewed and printed by `leasehold check`.

mod admin;
mod check;
mod client;
mod digest;
mod explain;
mod login;
mod policy;
mod print;
mod remote;
mod serve;
mod show;
mod store;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{self, ConfigErrors};

const EXIT_CODES: &str = "\
Exit codes:
  0  it worked
  1  it failed while running: an address is taken, the admin listener does not answer
  2  the command line or the configuration is wrong; nothing was started";

const EXAMPLES: &str = "\
Examples:
  leasehold demo                                see it work, with nothing to set up
  leasehold check leasehold.yaml                find every mistake before a start does
  leasehold up -c leasehold.yaml                control plane and sidecar in one process
  leasehold proxy -c leasehold.yaml             stand in front of the backends
  leasehold request pg-maintenance --task pagerduty:P1 --ttl 15m --wait
  leasehold requests --can-approve              what waits for you
  leasehold grants                              who may do what right now
  leasehold explain --principal 'https://idp.example#ci-bot' DELETE /api/queues/%2F/orders

Exit codes:
  0  it worked
  1  it failed while running: an address is taken, the admin listener does not answer, the control plane refused
  2  the command line or the configuration is wrong; nothing was started
  3  a request is pending: nobody decided yet
  4  the control plane cannot be reached";

/// Privilege orchestration for machines: nobody and nothing holds standing admin rights.
#[derive(Debug, Parser)]
#[command(
    name = "leasehold",
    version,
    about = "Privilege orchestration for machines",
    long_about = "Leasehold stands in front of sensitive APIs. It finds out who makes each call and what the call would do, \
lets it pass only while a grant covers it, makes the backend accept it with a credential the caller never sees, cuts \
what runs when the grant ends, and records every call.",
    after_help = EXAMPLES,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    before: client::ServerArgsBefore,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stands in front of the backends and enforces the grants, call by call
    #[command(
        long_about = "Stands in front of the backends and enforces the grants, call by call.\n\n\
The whole file is validated before anything starts. SIGTERM or Ctrl-C stops it gracefully: it turns unready, stops \
accepting, lets running calls finish until `drain_timeout`, cuts the rest and writes their records.",
        after_help = EXIT_CODES
    )]
    Proxy(Serve),

    /// Decides who gets which elevation, and when it ends
    #[command(
        long_about = "Decides who gets which elevation, and when it ends.\n\n\
Serves the API of the control plane: documents, requests, approvals, grants, locks, tasks and the record of it all. On the \
first start it writes the local admin's token to `admin.token` in the folder `control.data` and logs where. Several may run \
on one PostgreSQL; with SQLite there is one.",
        after_help = EXIT_CODES
    )]
    Control(Serve),

    /// Stands between control planes and very many sidecars
    #[command(
        long_about = "Stands between control planes and very many sidecars.\n\n\
It follows the control planes as a sidecar does, and is followed as a control plane is. It decides nothing: uses of counted \
grants, join tokens, renewals and what sidecars tell are passed on, and what is revoked is denied behind it within the same bound.",
        after_help = EXIT_CODES
    )]
    Relay(Serve),

    /// Runs the control plane and the sidecar in one process
    #[command(
        long_about = "Runs the control plane and the sidecar in one process: all there is to it on one machine.\n\n\
The sidecar's grants come from the control plane, and the actions of its backends are declared there. Everything is in one \
file; `leasehold check` looks at it.\n\n\
Without a file it runs the demo: a small admin API to protect, a bot that asks and a person who approves, on free ports of \
this machine.",
        after_help = EXIT_CODES
    )]
    Up {
        /// The configuration file; without it the demo runs
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        log: Log,
    },

    /// Validates a configuration file and says what it relaxes
    #[command(
        long_about = "Validates a configuration file and says what it relaxes.\n\n\
Reads everything that `leasehold proxy`, `control` or `up` would read (certificates, keys, secrets, action maps), reports every mistake \
with its line and what to write instead, and names each setting that is laxer than its default. Starts nothing.",
        after_help = EXIT_CODES
    )]
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Treats a relaxation or a warning as a mistake
        #[arg(long)]
        strict: bool,
    },

    #[command(flatten)]
    Remote(remote::Remote),

    /// Says what would happen to a call, and why, without making it
    #[command(
        long_about = "Says what would happen to a call, and why, without making it.\n\n\
A running proxy reads the call as it would read the real one: it names the action and the resource, the grant that \
covers it or every reason why none does, and the credential that would be injected. Nothing is forwarded and no use is \
counted.",
        after_help = "\
Examples:
  leasehold explain --principal 'https://idp.example#ci-bot' DELETE /api/queues/%2F/orders
  leasehold explain --principal spiffe://prod.example/ci --backend etcd --body range.json \\
      -H 'content-type: application/json' POST /v3/kv/range

Exit codes:
  0  the proxy answered, whatever the answer is
  1  it did not answer
  2  the command line is wrong"
    )]
    Explain(explain::Explain),

    /// Prints the digest of one exact call, which a request can be bound to
    #[command(
        long_about = "Prints the digest of one exact call, which a request can be bound to.\n\n\
A grant that is bound to a digest covers this call and no other: this method, this path and query, this type and these \
bytes of the body. Who asks sends the digest as `--arguments`; who approves makes it again from the call that they were \
shown, and compares. Nothing is sent anywhere.",
        after_help = "\
Examples:
  leasehold digest DELETE /api/queues/%2F/orders
  leasehold digest POST '/search?limit=1' --content-type application/json --body query.json
  printf '%s\\n%s\\n' 'POST /search?limit=1' application/json | cat - query.json | sha256sum    the same by hand

Exit codes:
  0  it is printed
  2  the command line or the file is wrong, or no sidecar would let such a call through"
    )]
    Digest(digest::Digest),

    /// Checks, tests and explains documents and their policies before they are applied
    #[command(subcommand)]
    Policy(policy::Policy),

    /// Shows how a running proxy is doing: revision and age of its view, grants by state, leases
    #[command(after_help = EXIT_CODES)]
    Status {
        #[command(flatten)]
        admin: AdminArgs,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },

    /// Shows it all on this machine: an API, a proxy in front of it, and a caller whose grant ends
    #[command(after_help = EXIT_CODES)]
    Demo {
        /// End after the show instead of staying up
        #[arg(long)]
        once: bool,
    },

    /// Copies a control plane's store to another, or backs it up
    #[command(after_help = store::AFTER_HELP)]
    Store {
        #[command(subcommand)]
        command: store::StoreCommand,
    },

    /// Prints the completion script of a shell
    #[command(after_help = "\
Examples:
  leasehold completions bash > /etc/bash_completion.d/leasehold
  leasehold completions zsh > ~/.zfunc/_leasehold
  leasehold completions fish > ~/.config/fish/completions/leasehold.fish")]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// How to run.
#[derive(Debug, Args)]
struct Serve {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    log: Log,
}

/// What is said while it runs.
#[derive(Debug, Args)]
struct Log {
    /// How log lines on standard error look
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is worth a log line; each call's own line is in the record, not here
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

impl Log {
    fn begin(self) {
        serve::log(self.log_format, self.log_level);
    }
}

/// How to reach a running proxy.
#[derive(Debug, Args)]
struct AdminArgs {
    /// The admin listener of the running proxy (`admin.address` in its configuration)
    #[arg(long = "admin", value_name = "URL", default_value = "http://127.0.0.1:9901")]
    url: admin::AdminUrl,
}

/// How to print a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For reading
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For reading
    Text,
    /// One JSON object a line
    Json,
}

/// What is worth a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogLevel {
    /// What failed
    Error,
    /// And what somebody should look at
    Warn,
    /// And changes of state
    Info,
    /// And what each connection and call does
    Debug,
}

/// How a command ended short of success.
#[derive(Debug)]
enum Failure {
    /// It failed while running.
    Running(anyhow::Error),
    /// The command line is wrong.
    Usage(anyhow::Error),
    /// The configuration is wrong.
    Configuration(ConfigErrors),
    /// The configuration is valid and not strict; what was found is printed already.
    NotStrict,
    /// The control plane refused.
    Refused(Box<client::Problem>),
    /// The control plane cannot be reached, or broke off.
    Unreachable(anyhow::Error),
    /// What came of it is printed already; this is the exit code.
    Told(u8),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Running(error)
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::Configuration(errors)
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    run_with(std::env::args_os())
}

/// Runs a command line; the first word is the program's name.
pub fn run_with(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come here too, and are no failure. A closed pipe is nobody's.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match dispatch(cli.command, &cli.before) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Running(error)) => {
            print::error(&format!("{error:#}"));
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            print::error(&format!("{error:#}"));
            ExitCode::from(2)
        }
        Err(Failure::Configuration(errors)) => {
            for error in &errors.0 {
                print::error(&error.to_string());
            }
            ExitCode::from(2)
        }
        Err(Failure::NotStrict) => ExitCode::from(2),
        Err(Failure::Refused(problem)) => {
            print::error(&problem.to_string());
            ExitCode::from(1)
        }
        Err(Failure::Unreachable(error)) => {
            print::error(&format!("{error:#}"));
            ExitCode::from(4)
        }
        Err(Failure::Told(code)) => ExitCode::from(code),
    }
}

fn dispatch(command: Command, before: &client::ServerArgsBefore) -> Result<(), Failure> {
    if before.is_given() && !matches!(command, Command::Remote(_)) {
        let message = "`--server`, `--token-file` and `--ca` are for commands that ask a control plane";
        return Err(Failure::Usage(anyhow::anyhow!(message)));
    }
    match command {
        Command::Proxy(how) => {
            how.log.begin();
            Ok(serve::proxy(config::load(&how.config)?)?)
        }
        Command::Control(how) => {
            how.log.begin();
            Ok(serve::control(&config::load_control(&how.config)?)?)
        }
        Command::Relay(how) => {
            how.log.begin();
            Ok(serve::relay(&config::load_relay(&how.config)?)?)
        }
        Command::Up { config: None, .. } => Ok(serve::demo(true)?),
        Command::Up { config: Some(file), log } => {
            log.begin();
            let (sidecar, control) = config::load_up(&file)?;
            Ok(serve::up(sidecar, &control)?)
        }
        Command::Check { file, strict } => check::check(&file, &config::check(&file)?, strict),
        Command::Remote(remote) => remote.run(),
        Command::Explain(explain) => explain.run(),
        Command::Digest(digest) => digest.run(),
        Command::Policy(policy) => policy.run(),
        Command::Status { admin, output } => Ok(show::status(&admin.url, output)?),
        Command::Demo { once } => Ok(serve::demo(!once)?),
        Command::Store { command } => Ok(command.run()?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "leasehold", &mut script);
            print::out(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} is not described", command.get_name());
        }
    }
}
