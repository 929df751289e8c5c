//! A child process on a core of its own, and what the kernel accounts to it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

#[derive(Clone)]
pub struct Process {
    pub id: u32,
    child: Arc<Mutex<Child>>,
}

/// Keeps this process, and what it starts from now on, on one core.
pub fn pin_self(core: usize) {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(core % std::thread::available_parallelism().unwrap().get());
    rustix::thread::sched_setaffinity(None, &cpus).unwrap();
}

impl Process {
    /// Starts it on core 0.
    pub fn start(command: &Command) -> Self {
        let mut words = vec!["-c".to_owned(), "0".to_owned(), command.get_program().to_str().unwrap().to_owned()];
        words.extend(command.get_args().map(|word| word.to_str().unwrap().to_owned()));
        let mut pinned = Command::new("taskset");
        pinned.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = pinned.spawn().unwrap();
        Self { id: child.id(), child: Arc::new(Mutex::new(child)) }
    }

    /// Nanoseconds on a core so far, over all threads and, for nginx, all workers.
    pub fn cpu_ns(&self) -> u64 {
        self.family().iter().map(|id| cpu_ns(*id)).sum()
    }

    fn family(&self) -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.id)).unwrap_or_default();
        children.split_whitespace().map(|id| id.parse().unwrap()).chain([self.id]).collect()
    }

    /// Proportional set size; 0 where this user may not see it. How much of the program's file is in it is the kernel's choice.
    pub fn pss_mib(&self) -> f64 {
        self.memory_mib("Pss:")
    }

    /// Of that what is in no file: what the program asked for.
    pub fn own_mib(&self) -> f64 {
        self.memory_mib("Pss_Anon:")
    }

    fn memory_mib(&self, name: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id)).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("None: 0 kB");
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let id = rustix::process::Pid::from_child(&child);
        // nginx takes its workers along only when it is asked.
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = child.wait();
    }
}

fn cpu_ns(id: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{id}/task")) else { return 0 };
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .map(|text| text.split_whitespace().next().unwrap().parse::<u64>().unwrap())
        .sum()
}
