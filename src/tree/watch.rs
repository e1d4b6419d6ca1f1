//! The agent's watch over the keeper: if that is killed or stopped, the agent kills the
//! tree in its place.
//!
//! What must never happen here: taking a sweep for a proof (programs rewrite their
//! environment; only an empty cgroup proves anything), and signalling a process
//! or a group that may be somebody else's by now.

use super::{MARK, proc};
use crate::sys;
use crate::wire::CgroupFds;
use nix::libc::SIGKILL;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::parent_id;
use std::time::Duration;

/// How sure it is that nothing of the tree is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The kernel says so: the lease may be given back.
    Gone,
    /// Nothing was found any more, which proves nothing: the lease has to run out.
    Unproven,
}

/// The agent's watch over its keeper.
#[derive(Debug)]
pub struct Watch {
    keeper: i32,
    /// Names the keeper even after its pid is used again; none before Linux 5.3.
    handle: Option<OwnedFd>,
    keeper_start: Option<u64>,
    cgroup: Option<CgroupFds>,
    mark: Vec<u8>,
    leader: Option<(i32, u64)>,
}

/// How long a burial may take, in all.
const BURIAL: Duration = Duration::from_secs(2);

impl Watch {
    /// Begins the watch; to be called early in the agent. `keeper` is the pid at the other
    /// end of the wire, `instance` what the keeper's Hello says.
    pub fn begin(keeper: i32, instance: &str, cgroup: Option<CgroupFds>) -> Watch {
        let mut handle = sys::open_process(keeper).ok();
        let mut keeper_start = proc::start_of(keeper);
        // Still our parent, after both were taken: so they are the keeper's. If it is dead
        // already, its number may be anybody's, and our parent is whoever adopts orphans.
        if parent_id() as i32 != keeper {
            handle = None;
            keeper_start = None;
        }
        let mark = format!("{MARK}={instance}").into_bytes();
        Watch { keeper, handle, keeper_start, cgroup, mark, leader: None }
    }

    /// To be told whenever the command was started (the keeper's Hello or Started), and
    /// none when it is Gone.
    pub fn leader(&mut self, pid: Option<i32>) {
        self.leader = pid.and_then(|pid| Some((pid, proc::start_of(pid)?)));
    }

    /// Whether the command has a cgroup, so that its end can be proven.
    pub fn can_prove(&self) -> bool {
        self.cgroup.is_some()
    }

    /// The keeper is dead: kills what is left of the tree and removes its cgroup.
    /// Takes at most two seconds.
    pub fn bury(&self) -> Proof {
        let proof = self.kill_tree();
        if proof == Proof::Gone
            && let Some(cgroup) = &self.cgroup
        {
            let _ = cgroup.remove();
        }
        proof
    }

    /// The keeper lives and has not killed the tree in time (it was stopped): kills the
    /// tree, then the keeper. Takes at most two seconds.
    pub fn overrule(&self) -> Proof {
        let proof = self.kill_tree();
        self.kill_keeper();
        // What the keeper started at the last moment, or what came to it as orphans.
        match self.bury() {
            Proof::Gone => Proof::Gone,
            Proof::Unproven => proof,
        }
    }

    fn kill_keeper(&self) {
        match &self.handle {
            Some(handle) => drop(sys::signal_process(handle.as_fd(), SIGKILL)),
            None if self.keeper_lives() => sys::kill(self.keeper, SIGKILL),
            None => {}
        }
    }

    fn keeper_lives(&self) -> bool {
        self.keeper_start.is_some() && proc::stat(self.keeper).is_some_and(|s| Some(s.start) == self.keeper_start)
    }

    fn kill_tree(&self) -> Proof {
        let give_up = sys::now().plus(BURIAL);
        loop {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            if let Some((pid, start)) = self.leader
                && proc::start_of(pid) == Some(start)
            {
                sys::kill_group(pid, SIGKILL);
            }
            // At once for what the cgroup knows; the sweep is for what has left it.
            let left = self.sweep();
            let populated = self.cgroup.as_ref().is_some_and(CgroupFds::populated);
            if !left && !populated {
                return if self.cgroup.is_some() { Proof::Gone } else { Proof::Unproven };
            }
            if sys::now().has_reached(give_up) {
                return Proof::Unproven;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills every process that carries our mark, descends from the keeper or is in the
    /// leader's group next to one of those. Says whether there was one.
    fn sweep(&self) -> bool {
        let Ok(processes) = processes() else { return false };
        let me = std::process::id() as i32;
        let below = if self.keeper_lives() { descendants(&processes, self.keeper, me) } else { HashSet::new() };
        let mut found = false;
        for (pid, stat) in &processes {
            if *pid == me || *pid == self.keeper || stat.zombie {
                continue;
            }
            if !below.contains(pid) && !self.is_marked(*pid) {
                continue;
            }
            found = true;
            // A number is used again only after a whole round of numbers; the start time is looked at all the same.
            if proc::start_of(*pid) == Some(stat.start) {
                sys::kill(*pid, SIGKILL);
            }
            // A group with one of ours in it cannot be anybody else's by now.
            if self.leader.is_some_and(|(leader, _)| leader == stat.group) {
                sys::kill_group(stat.group, SIGKILL);
            }
        }
        found
    }

    fn is_marked(&self, pid: i32) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
        environment.split(|b| *b == 0).any(|variable| variable == self.mark)
    }
}

fn processes() -> io::Result<Vec<(i32, proc::Stat)>> {
    let folder = fs::File::open("/proc")?;
    let mut all = Vec::new();
    sys::each_number(folder.as_fd(), |pid| {
        all.extend(proc::stat(pid).map(|stat| (pid, stat)));
        true
    })?;
    Ok(all)
}

/// All descendants of `root`, without `except` and what descends from that.
fn descendants(processes: &[(i32, proc::Stat)], root: i32, except: i32) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, stat) in processes {
        children.entry(stat.parent).or_default().push(*pid);
    }
    let mut found = HashSet::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if *child != except && *child != root && found.insert(*child) {
                open.push(*child);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_that_is_not_our_parent_any_more_is_dead_whoever_has_its_number() {
        let parent = parent_id() as i32;
        assert!(Watch::begin(parent, "i", None).keeper_lives());
        // The first process adopts orphans: it must never be taken for a keeper.
        let watch = Watch::begin(if parent == 1 { std::process::id() as i32 } else { 1 }, "i", None);
        assert!(!watch.keeper_lives() && watch.handle.is_none());
    }

    #[test]
    fn the_agent_and_its_own_are_not_of_the_tree() {
        let stat = |parent| proc::Stat { zombie: false, parent, group: 1, start: 1 };
        let all = [(10, stat(1)), (11, stat(10)), (12, stat(10)), (13, stat(11)), (14, stat(12)), (15, stat(13))];
        let mut found: Vec<_> = descendants(&all, 10, 11).into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [12, 14]);
    }
}
