//! The command's process tree: starting it, signalling it, and killing all of it.
//!
//! The keeper is subreaper: whatever loses its parent becomes our child, double-forked
//! and setsid processes included. The leader is reaped last, so that its pid pins the
//! number of its group; a group whose leader was reaped is never signalled.
//! What must never happen here: waiting, allocating after the start, and saying
//! "empty" while a process of the tree is left.

mod cgroup;
mod proc;
mod program;
mod watch;

pub use cgroup::Cgroup;
pub use program::is_for_us;
pub use watch::{Proof, Watch};

use crate::config::{Config, When};
use crate::core::{Exit, Stage, Start};
use crate::sys::{self, Input, Outcome, ParentDeath, Program, Setup, Which};
use nix::libc::{SIGCONT, SIGKILL};
use proc::Proc;
use program::Slots;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// The variable in the environment of every process of the tree that names the keeper's
/// life: it helps to find left-overs, and proves nothing.
pub const MARK: &str = "LOCUM_INSTANCE";

/// The command, and whatever it has become.
pub struct CommandTree {
    program: Program,
    slots: Slots,
    directory: Option<CString>,
    user: Option<(u32, u32, Vec<u32>)>,
    oom_score: Option<Vec<u8>>,
    nice: Option<i32>,
    input: Option<OwnedFd>,
    proc: Proc,
    cgroup: Option<Cgroup>,
    leader: Option<Leader>,
}

struct Leader {
    pid: i32,
    /// Until the program runs.
    outcome: Option<OwnedFd>,
    /// Once it has ended; it is reaped only when nothing else is left.
    exit: Option<Exit>,
}

/// What [`CommandTree::reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// The leader has ended. It is not reaped.
    Leader(Exit),
    /// A child that is not of the tree, the agent, has ended and was reaped.
    Other(i32, Exit),
}

/// What is left of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: every process was reaped, the leader too.
    Nothing,
    /// Something, none of it in the leader's group.
    Strays,
    /// The leader, or something in its group.
    Group,
}

impl CommandTree {
    /// Prepares everything that a start needs. `original_oom_score` and `nice` are
    /// what the command gets back.
    ///
    /// # Errors
    /// When `/proc` or `/dev/null` is missing, or the command cannot be laid out.
    pub fn prepare(
        config: &Config,
        instance: &str,
        original_oom_score: Option<Vec<u8>>,
        nice: Option<i32>,
        cgroup: Option<Cgroup>,
    ) -> io::Result<CommandTree> {
        let (program, slots) = program::command(config, instance)?;
        let directory = config.process.directory.as_ref().map(|d| CString::new(d.as_os_str().as_bytes()));
        // Without privileges one can only stay who one is, and setgroups would fail.
        let user = config
            .process
            .user
            .as_ref()
            .filter(|user| nix::unistd::geteuid().is_root() || nix::unistd::getuid().as_raw() != user.uid);
        // A command that is started again and again cannot own a terminal's input.
        let input = match config.restart.when {
            When::Never => None,
            _ => Some(sys::lift(File::open("/dev/null")?.as_fd())?),
        };
        Ok(CommandTree {
            program,
            slots,
            directory: directory.transpose()?,
            user: user.map(|u| (u.uid, u.gid, u.groups.clone())),
            oom_score: original_oom_score,
            nice,
            input,
            proc: Proc::open()?,
            cgroup,
            leader: None,
        })
    }

    /// The command's cgroup, if one could be made.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Tries the cgroup out, if there is one; one that is of no use is given up.
    ///
    /// # Errors
    /// Why it was.
    pub fn try_cgroup(&mut self) -> io::Result<()> {
        let tried = self.cgroup.as_ref().map_or(Ok(()), Cgroup::try_out);
        if tried.is_err() {
            let _ = self.dismantle();
        }
        tried
    }

    /// Starts the command. Only to be called when nothing of it is left.
    ///
    /// # Errors
    /// The stage and errno, when not even a process could be made.
    pub fn start(&mut self, start: &Start) -> Result<i32, (Stage, i32)> {
        let mut digits = [0u8; 20];
        self.program.set(self.slots.epoch, decimal(&mut digits, start.epoch));
        self.program.set(self.slots.token, decimal(&mut digits, start.token));
        self.program.set(self.slots.previous, start.previous.as_bytes());
        let input = match &self.input {
            Some(null) => Input::From(null.as_fd()),
            None if io::stdin().is_terminal() && sys::in_foreground() => Input::Terminal,
            None => Input::Ours,
        };
        let setup = Setup {
            cgroup: self.cgroup.as_ref().map(Cgroup::entry),
            ignored: &[],
            oom_score: self.oom_score.as_deref(),
            nice: self.nice,
            user: self.user.as_ref().map(|(uid, gid, groups)| (*uid, *gid, groups.as_slice())),
            directory: self.directory.as_deref(),
            parent_death: ParentDeath::Kill,
            input,
            inherit: &[],
        };
        let stage = if setup.cgroup.is_some() { Stage::Cgroup } else { Stage::Fork };
        let spawned = sys::spawn(&mut self.program, &setup).map_err(|e| (stage, e.raw_os_error().unwrap_or(0)))?;
        self.leader = Some(Leader { pid: spawned.pid, outcome: Some(spawned.outcome), exit: None });
        Ok(spawned.pid)
    }

    /// The descriptor that is ready when [`CommandTree::outcome`] has an answer.
    pub fn pending(&self) -> Option<BorrowedFd<'_>> {
        self.leader.as_ref()?.outcome.as_ref().map(AsFd::as_fd)
    }

    /// What has become of the start, said once.
    pub fn outcome(&mut self) -> Option<Outcome> {
        let leader = self.leader.as_mut()?;
        let outcome = sys::read_outcome(leader.outcome.as_ref()?.as_fd());
        if outcome == Outcome::Pending {
            return None;
        }
        leader.outcome = None;
        Some(outcome)
    }

    /// The candidate that is there although the system says that it cannot be found:
    /// then it is its interpreter (`#!`) that is missing.
    pub fn without_interpreter(&self) -> Option<&std::ffi::CStr> {
        self.program.paths().iter().map(CString::as_c_str).find(|p| nix::sys::stat::stat(*p).is_ok())
    }

    /// Sends a signal to the leader's group, unless the leader was reaped.
    pub fn signal(&self, signal: i32) {
        if let Some(leader) = &self.leader {
            sys::kill_group(leader.pid, signal);
        }
    }

    /// Asks the group to stop; a stopped process has to go on to hear it.
    pub fn ask_to_stop(&self, signal: i32) {
        self.signal(signal);
        self.signal(SIGCONT);
    }

    /// Kills what can be reached at once: the cgroup and the group. [`CommandTree::sweep`] finds the rest.
    pub fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        self.signal(SIGKILL);
    }

    /// Reaps orphans that came to us, until there is something to tell.
    ///
    /// An ended leader that was told of already hides those behind it, as it stays:
    /// then [`CommandTree::look`] and [`CommandTree::sweep`] reap.
    pub fn reap(&mut self, others: &[i32]) -> Option<Reaped> {
        for pid in others.iter().filter(|pid| **pid > 0) {
            if let Some(ended) = sys::reap(*pid) {
                return Some(Reaped::Other(ended.pid, ended.exit));
            }
        }
        while let Some(ended) = sys::peek(Which::Any) {
            match &mut self.leader {
                Some(leader) if leader.pid == ended.pid => {
                    let told = leader.exit.replace(ended.exit).is_some();
                    return if told { None } else { Some(Reaped::Leader(ended.exit)) };
                }
                _ => sys::reap(ended.pid)?,
            };
            if others.contains(&ended.pid) {
                return Some(Reaped::Other(ended.pid, ended.exit));
            }
        }
        None
    }

    /// Says what is left of the tree. `others` are children that are not of it.
    pub fn look(&mut self, others: &[i32]) -> Left {
        self.survey(others, |_| {})
    }

    /// Kills and reaps what is left of the tree, and says what was left. Each call kills
    /// one layer: what it orphans is there at the next.
    pub fn sweep(&mut self, others: &[i32]) -> Left {
        self.kill();
        if self.cgroup.as_ref().is_some_and(Cgroup::populated) {
            return Left::Group;
        }
        self.survey(others, |pid| sys::kill(pid, SIGKILL))
    }

    fn survey(&mut self, others: &[i32], mut each: impl FnMut(i32)) -> Left {
        let Some(leader) = &mut self.leader else { return Left::Nothing };
        // As `reap` told it: an end that was not told yet is the next call's.
        let mut left = if leader.exit.is_some() { Left::Nothing } else { Left::Group };
        let listed = self.proc.children(|pid| {
            if pid == leader.pid || others.contains(&pid) || sys::reap(pid).is_some() {
                return;
            }
            let grouped = sys::group_of(pid) == Some(leader.pid);
            left = if grouped || left == Left::Group { Left::Group } else { Left::Strays };
            each(pid);
        });
        if listed.is_err() || left == Left::Nothing && self.cgroup.as_ref().is_some_and(Cgroup::populated) {
            return Left::Strays;
        }
        if left == Left::Nothing {
            sys::reap(leader.pid);
            self.leader = None;
            if self.input.is_none() {
                sys::take_foreground();
            }
        }
        left
    }

    /// Removes the cgroup.
    ///
    /// # Errors
    /// When something is left in it.
    pub fn dismantle(&mut self) -> io::Result<()> {
        self.cgroup.take().map_or(Ok(()), |cgroup| cgroup.remove())
    }
}

/// What was left by keepers that were killed, and what came of removing it. See [`Cgroup`].
pub fn sweep_left_overs(limit: Duration) -> Vec<(PathBuf, io::Result<()>)> {
    cgroup::sweep_left_overs(limit)
}

fn decimal(digits: &mut [u8; 20], number: u64) -> &[u8] {
    let mut room = digits.as_mut_slice();
    // 20 digits hold every u64.
    let _ = write!(room, "{number}");
    let length = 20 - room.len();
    &digits[..length]
}
