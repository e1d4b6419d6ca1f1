//! Looking at processes through /proc, and ending those of a test.

use super::ground::MARK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// The state, the parent and the start time of a process.
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything: the fields begin after the last one.
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
    Some((fields[0].chars().next()?, fields[1].parse().ok()?, fields[19].parse().ok()?))
}

/// When a process was started, in ticks since boot: with the pid, its identity.
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|s| s.2)
}

/// Whether a process lives; a zombie does not.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, ..)| state != 'Z' && state != 'X')
}

/// The children of a process, whichever thread has them. The kernel's list may lack one
/// while another is reaped (proc(5)), so only one that was read twice the same counts.
pub fn children(pid: i32) -> Vec<i32> {
    let mut before = listed_children(pid);
    for _ in 0..10 {
        let now = listed_children(pid);
        if now == before {
            break;
        }
        before = now;
    }
    before
}

fn listed_children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|w| w.parse::<i32>().ok()));
    }
    all
}

/// The arguments of a process.
pub fn arguments(pid: i32) -> Vec<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect()
}

/// The environment a process was started with, as `KEY=value`.
pub fn environment(pid: i32) -> Vec<String> {
    let raw = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    raw.split(|b| *b == 0).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned()).collect()
}

fn all_pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Every living process that was started for `dir` (marked so, or working in it or below).
pub fn marked(dir: &Path) -> Vec<i32> {
    let me = std::process::id() as i32;
    let mark = format!("{MARK}={}", dir.display());
    all_pids()
        .filter(|pid| *pid != me && alive(*pid))
        .filter(|pid| {
            let by_mark = environment(*pid)
                .iter()
                .any(|v| v.strip_prefix(&mark).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
            // Postgres overwrites its environment, but works in its data folder.
            by_mark || fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
        .collect()
}

/// Kills every process that was started for `dir`, until there is none.
pub fn kill_marked(dir: &Path) {
    let start = Instant::now();
    loop {
        let left = marked(dir);
        if left.is_empty() {
            return;
        }
        if start.elapsed() > Duration::from_secs(5) {
            eprintln!("cannot end {left:?}");
            return;
        }
        for pid in left {
            signal(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Some processes, and whether they live.
#[derive(Clone, Debug, Default)]
pub struct Tree(Vec<(i32, u64)>);

impl Tree {
    /// These processes as they are now: a later process of the same pid is another one.
    pub fn of(pids: impl IntoIterator<Item = i32>) -> Tree {
        Tree(pids.into_iter().filter_map(|pid| Some((pid, start_time(pid)?))).collect())
    }

    /// Those that still live.
    pub fn living(&self) -> Vec<i32> {
        let same = |pid: i32, start: u64| alive(pid) && start_time(pid) == Some(start);
        self.0.iter().filter(|(pid, start)| same(*pid, *start)).map(|(pid, _)| *pid).collect()
    }

    /// How many there were.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
