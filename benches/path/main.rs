//! What a call costs on its whole path, side by side with a bare proxy made of the same parts and with nginx.
//!
//! `cargo bench --bench path` prints the tables that README shows. The proxies are processes of their own on one core;
//! the callers and the backend are this process on another. CPU of a call is what the kernel accounts to the proxy's
//! threads, which is the steadiest figure on a noisy machine. Rounds alternate, medians are printed, ratios are what
//! counts. `cargo bench --bench path -- quick` makes the rounds short, `only=token` measures the rows of that name alone,
//! `against=PATH` measures another build of the program beside this one.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, unreachable_pub)]

mod backend;
mod bare;
mod load;
mod process;
mod revoke;
mod setup;

use std::time::Duration;

use bare::Connections;
use load::{Load, Rate};
use process::Process;
use setup::{Folder, Grants, Proxied};

/// How long one measurement lasts, and how many are made of each.
struct Plan {
    round: Duration,
    rounds: usize,
    many: usize,
    only: Option<String>,
    against: Option<String>,
}

/// One thing measured.
struct Row {
    name: &'static str,
    process: Process,
    load: Load,
    rates: Vec<Rate>,
}

/// The row that keeps callers apart and does nothing else.
const APART: &str = "bare hyper proxy, connections of 1,000 callers kept apart";

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "bare-proxy") {
        return bare::run(&words[at + 1..]);
    }
    let quick = words.iter().any(|word| word == "quick");
    let told = |what: &str| words.iter().find_map(|word| word.strip_prefix(what)).map(str::to_owned);
    let (only, against) = (told("only="), told("against="));
    let plan = if quick {
        Plan { round: Duration::from_millis(400), rounds: 3, many: 10_000, only, against }
    } else {
        Plan { round: Duration::from_secs(2), rounds: 9, many: 1_000_000, only, against }
    };
    process::pin_self(1);
    let folder = Folder::new();
    let backend = backend::start(&folder.path("backend.sock"));
    calls(&plan, &folder, backend);
    if plan.only.is_some() {
        return;
    }
    sizes(&plan, &folder, backend);
    revoke::run(&plan_revocations(&plan));
}

fn plan_revocations(plan: &Plan) -> revoke::Plan {
    revoke::Plan { grants: plan.many, rounds: if plan.many < 1_000_000 { 10 } else { 50 } }
}

fn calls(plan: &Plan, folder: &Folder, backend: std::net::SocketAddr) {
    let one = Proxied::start(folder, "one", backend, &Grants::of(1));
    let thousand = Proxied::start(folder, "thousand", backend, &Grants::of(1_000));
    let unix = Proxied::start_unix(folder, "unix", &Grants::of(1));
    let million = Proxied::start(folder, "million", backend, &Grants::of(1).padded(plan.many));
    let bare = bare::start(backend, Connections::Anyones);
    let apart = bare::start(backend, Connections::TheCallers);
    let nginx = setup::nginx(folder, backend);
    let mut rows = vec![
        Row::new("bare hyper proxy", bare.process, Load::plain(bare.address)),
        Row::new(APART, apart.process, Load::tokens(apart.address, &thousand.tokens)),
    ];
    if let Some(nginx) = nginx {
        rows.push(Row::new("nginx, plain proxy", nginx.process, Load::plain(nginx.address)));
    } else {
        println!("nginx is not installed: its row is left out");
    }
    let requests = |proxied: &Proxied| Load::tokens(proxied.address, &proxied.tokens);
    let loads = [
        ("leasehold, 1 token", requests(&one), one),
        ("leasehold, 1,000 tokens in turn", requests(&thousand), thousand),
        ("leasehold, backend on a Unix socket", requests(&unix), unix),
        ("leasehold, many grants", requests(&million), million),
    ];
    if let Some(program) = &plan.against {
        let other = Proxied::start_of(program, folder, "other", backend, &Grants::of(1));
        let load = requests(&other);
        rows.push(Row::new("the other program, 1 token", other.process, load));
    }
    let mut refusing = None;
    for (name, load, proxied) in loads {
        if refusing.is_none() {
            refusing = Some((proxied.address, proxied.process.clone(), proxied.tokens[0].clone()));
        }
        rows.push(Row::new(name, proxied.process, load));
    }
    let (address, process, token) = refusing.unwrap();
    rows.push(Row::new("refused: no token", process.clone(), Load::refused(address, None, "/things/1", 401)));
    let forged = forge(&token);
    rows.push(Row::new(
        "refused: forged token",
        process.clone(),
        Load::refused(address, Some(&forged), "/things/1", 401),
    ));
    rows.push(Row::new("refused: not granted", process, Load::refused(address, Some(&token), "/other/1", 403)));
    let all: Vec<_> = rows.iter().map(|row| row.process.clone()).collect();
    if let Some(only) = &plan.only {
        rows.retain(|row| row.name.contains(only.as_str()));
    }
    for round in 0..=plan.rounds {
        for row in &mut rows {
            let rate = load::run(&row.load, &row.process, plan.round);
            // The first round warms up.
            if round > 0 {
                row.rates.push(rate);
            }
        }
    }
    print_calls(&mut rows, plan.many);
    for process in all {
        process.kill();
    }
}

fn forge(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let turned: String = signature.chars().rev().collect();
    format!("{signed}.{turned}")
}

fn print_calls(rows: &mut [Row], many: usize) {
    println!("\n| one call, HTTP/1.1 keep-alive, one core | CPU µs | to bare | calls/s |\n|---|---|---|---|");
    let bare = rows[0].median().cpu_us;
    for row in rows.iter_mut() {
        let Rate { cpu_us, per_second } = row.median();
        let name = row.name.replace("many grants", &format!("{many} grants"));
        println!("| {name} | {cpu_us:.1} | {:.2} | {per_second:.0} |", cpu_us / bare);
    }
}

impl Row {
    fn new(name: &'static str, process: Process, load: Load) -> Self {
        Self { name, process, load, rates: Vec::new() }
    }

    fn median(&mut self) -> Rate {
        self.rates.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
        let cpu_us = self.rates[self.rates.len() / 2].cpu_us;
        self.rates.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        Rate { cpu_us, per_second: self.rates[self.rates.len() / 2].per_second }
    }
}

fn sizes(plan: &Plan, folder: &Folder, backend: std::net::SocketAddr) {
    println!("\n| the process | |\n|---|---|");
    let exe = std::fs::metadata(setup::PROGRAM).unwrap().len();
    println!("| the program, as this profile builds it | {:.1} MB |", exe as f64 / 1e6);
    let mut starts = Vec::new();
    for round in 0..plan.rounds.max(3) {
        let proxied = Proxied::start(folder, &format!("start-{round}"), backend, &Grants::of(1));
        starts.push(proxied.started);
        if round == 0 {
            let memory = || format!("{:.1}, {:.1} MiB", proxied.process.pss_mib(), proxied.process.own_mib());
            println!("| memory idle (PSS, its own) | {} |", memory());
            let held: Vec<_> = (0..1_000).map(|_| load::hold(&proxied)).collect();
            println!("| memory with 1,000 idle connections that made a call | {} |", memory());
            drop(held);
        }
        proxied.process.kill();
    }
    starts.sort();
    println!("| start to the first served call | {:.0} ms |", starts[starts.len() / 2].as_secs_f64() * 1e3);
    let before = {
        let proxied = Proxied::start(folder, "few", backend, &Grants::of(1));
        let pss = proxied.process.pss_mib();
        proxied.process.kill();
        pss
    };
    let proxied = Proxied::start(folder, "load", backend, &Grants::of(1).padded(plan.many));
    let more = (proxied.process.pss_mib() - before) * 1024.0 * 1024.0 / plan.many as f64;
    println!("| start with {} grants to the first served call | {:.2} s |", plan.many, proxied.started.as_secs_f64());
    println!("| memory for each of them, after the load | {more:.0} B |");
    proxied.process.kill();
}
