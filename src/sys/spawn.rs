//! From fork to a program's first instruction.
//!
//! Everything is laid out before the fork. What must never happen here: an allocation,
//! a lock or a panic between fork and exec.

#![allow(unsafe_code)]

use super::{checked, lift, owned};
use crate::core::Stage;
use nix::libc;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A program, its arguments and its environment, laid out once so that a start allocates nothing.
pub struct Program {
    file: Executable,
    arguments: Vec<CString>,
    /// Each `NAME=value` and a NUL; those of [`Program::set`] keep room for their longest value.
    environment: Vec<Vec<u8>>,
    argument_pointers: Vec<*const libc::c_char>,
    environment_pointers: Vec<*const libc::c_char>,
}

/// What is executed.
pub enum Executable {
    /// The first of these that can be run, as with PATH.
    Paths(Vec<CString>),
    /// An open file, whatever its name holds by now.
    Open(OwnedFd),
}

/// The longest value of a variable that is set at each start, in bytes.
pub const VALUE_MAX: usize = 255;

impl Program {
    /// # Errors
    /// When a string holds a NUL.
    pub fn new(
        file: Executable,
        arguments: &[impl AsRef<OsStr>],
        environment: impl Iterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    ) -> io::Result<Program> {
        let arguments = arguments.iter().map(|a| CString::new(a.as_ref().as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let mut program = Program {
            file,
            arguments,
            environment: Vec::new(),
            argument_pointers: Vec::new(),
            environment_pointers: Vec::new(),
        };
        for (name, value) in environment {
            let pair = [name.as_ref().as_bytes(), b"=", value.as_ref().as_bytes()].concat();
            program.environment.push(CString::new(pair)?.into_bytes_with_nul());
        }
        program.environment_pointers.reserve(program.environment.len() + 9);
        Ok(program)
    }

    /// Makes room for a variable that [`Program::set`] gives its value before each start.
    pub fn add_slot(&mut self, name: &str) -> usize {
        let mut slot = Vec::with_capacity(name.len() + 2 + VALUE_MAX);
        slot.extend_from_slice(name.as_bytes());
        slot.extend_from_slice(b"=\0");
        self.environment.push(slot);
        self.environment.len() - 1
    }

    /// Sets the value of a slot, cut at [`VALUE_MAX`] bytes or a NUL; allocates nothing.
    pub fn set(&mut self, slot: usize, value: &[u8]) {
        let Some(variable) = self.environment.get_mut(slot) else { return };
        let name = variable.iter().position(|b| *b == b'=').map_or(0, |at| at + 1);
        variable.truncate(name);
        variable.extend(value.iter().take(VALUE_MAX).take_while(|b| **b != 0));
        variable.push(0);
    }

    /// What would be executed first, for messages.
    pub fn paths(&self) -> &[CString] {
        match &self.file {
            Executable::Paths(paths) => paths,
            Executable::Open(_) => &[],
        }
    }
}

/// How a child is set up, in the order of the fields.
pub struct Setup<'a> {
    /// Its cgroup.
    pub cgroup: Option<Entry<'a>>,
    /// Signals that it ignores; all others have their default.
    pub ignored: &'a [i32],
    /// Written to `/proc/self/oom_score_adj`.
    pub oom_score: Option<&'a [u8]>,
    /// Its nice value, if not the one it starts with.
    pub nice: Option<i32>,
    /// User id, group id and all groups.
    pub user: Option<(u32, u32, &'a [u32])>,
    /// Working directory.
    pub directory: Option<&'a CStr>,
    /// What happens to it when this process dies.
    pub parent_death: ParentDeath,
    /// Its standard input.
    pub input: Input<'a>,
    /// What it inherits from descriptor 3 on, in this order; these are numbered 10 or more.
    pub inherit: &'a [BorrowedFd<'a>],
}

/// How a child gets into a cgroup.
#[derive(Clone, Copy)]
pub enum Entry<'a> {
    /// It is born in it: this is the open folder. The fast way: moving a process waits
    /// for an RCU grace period, milliseconds.
    Born(BorrowedFd<'a>),
    /// It moves itself, by this open `cgroup.procs`.
    Moved(BorrowedFd<'a>),
}

/// What happens to a child when its parent dies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ParentDeath {
    /// It is killed.
    Kill,
    /// It goes on.
    Survive,
}

/// A child's standard input.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// This one.
    From(BorrowedFd<'a>),
    /// Ours.
    Ours,
    /// Ours, a terminal, whose foreground the child becomes.
    Terminal,
}

/// A child that was forked and is on its way to its first instruction.
pub struct Spawned {
    /// Its pid, which is its process group too.
    pub pid: i32,
    /// Ends without a byte once the program runs; else [`read_outcome`] has the cause.
    pub outcome: OwnedFd,
}

/// Starts a program in a process group of its own. Does not wait for its exec.
///
/// # Errors
/// When no process or pipe can be made; EOPNOTSUPP and the like for the cgroup.
pub fn spawn(program: &mut Program, setup: &Setup<'_>) -> io::Result<Spawned> {
    let mut ends = [0; 2];
    // SAFETY: the array holds two descriptors and outlives the call.
    checked(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    let (outcome, report) = (owned(ends[0])?, owned(ends[1])?);
    // A standard stream that was closed at our start must not make the pipe one.
    let report = if report.as_raw_fd() < 10 { lift(report.as_fd())? } else { report };

    let Program { file, arguments, environment, argument_pointers, environment_pointers } = program;
    argument_pointers.clear();
    argument_pointers.extend(arguments.iter().map(|a| a.as_ptr()));
    argument_pointers.push(std::ptr::null());
    environment_pointers.clear();
    environment_pointers.extend(environment.iter().map(|e| e.as_ptr().cast()));
    environment_pointers.push(std::ptr::null());
    // SAFETY: takes nothing.
    let parent = unsafe { libc::getpid() };

    // SAFETY: this process has one thread; the child calls only what is safe after fork, and never returns.
    let pid = unsafe {
        match fork(setup.cgroup)? {
            0 => {
                let failed = enter(file, argument_pointers, environment_pointers, setup, parent);
                let bytes = encode_failure(failed);
                libc::write(report.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(if failed.1 == libc::ENOENT { 127 } else { 126 });
            }
            pid => pid,
        }
    };
    // Both sides do this, so that whoever is first, the group exists for both.
    // SAFETY: takes numbers only; fails if the child has executed already, and then it has done it itself.
    unsafe { libc::setpgid(pid, pid) };
    Ok(Spawned { pid, outcome })
}

/// Whether a child gets into this cgroup alive: a question that only a trial answers.
pub fn can_enter(cgroup: Entry<'_>) -> bool {
    // SAFETY: the child makes one write and calls _exit.
    let pid = match unsafe { fork(Some(cgroup)) } {
        Ok(0) => unsafe { libc::_exit(if enter_cgroup(Some(cgroup)) { 0 } else { 1 }) },
        Ok(pid) => pid,
        Err(_) => return false,
    };
    let mut status = 1;
    // SAFETY: `status` outlives the call. It waits for one _exit.
    unsafe { libc::waitpid(pid, &mut status, libc::__WALL) };
    status == 0
}

/// The child's part of [`Entry::Moved`].
fn enter_cgroup(cgroup: Option<Entry<'_>>) -> bool {
    let Some(Entry::Moved(procs)) = cgroup else { return true };
    // SAFETY: async-signal-safe; the byte is static.
    unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) == 1 }
}

/// From sched.h; the library's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// # Safety
/// In the child (0) only what is safe after fork may be called.
unsafe fn fork(cgroup: Option<Entry<'_>>) -> io::Result<i32> {
    let pid = match cgroup {
        // SAFETY: the caller's.
        None | Some(Entry::Moved(_)) => unsafe { libc::fork() },
        Some(Entry::Born(folder)) => {
            // SAFETY: all zeros is a valid clone_args.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = CLONE_INTO_CGROUP;
            args.exit_signal = libc::SIGCHLD as u64;
            args.cgroup = folder.as_raw_fd() as u64;
            // SAFETY: the arguments outlive the call; no memory is shared, as with fork.
            unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) as i32 }
        }
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// The child's way from fork to exec. Returns only on failure.
///
/// # Safety
/// Runs after fork: no allocation, no lock, no panic.
unsafe fn enter(
    file: &Executable,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    setup: &Setup<'_>,
    parent: i32,
) -> (Stage, i32) {
    // SAFETY: every pointer points into memory that the parent laid out before the
    // fork; every call is async-signal-safe.
    unsafe {
        let errno = || *libc::__errno_location();
        if !enter_cgroup(setup.cgroup) {
            return (Stage::Cgroup, errno());
        }
        if libc::setpgid(0, 0) != 0 {
            return (Stage::Group, errno());
        }
        // By the system call: the C library keeps 32 and 33 to itself, and its own
        // posix_spawn leaves them ignored. A kernel's sigaction is at most four words.
        let default = [0usize; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<usize>(), 8);
        }
        for signal in setup.ignored {
            libc::signal(*signal, libc::SIG_IGN);
        }
        if let Some(nice) = setup.nice {
            libc::setpriority(libc::PRIO_PROCESS, 0, nice);
        }
        if let Some(score) = setup.oom_score {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(fd, score.as_ptr().cast(), score.len());
        }
        match setup.input {
            Input::From(fd) => {
                libc::dup2(fd.as_raw_fd(), 0);
            }
            Input::Ours => {}
            Input::Terminal => {
                // SIGTTOU is still blocked, as all signals are: this does not stop us.
                libc::tcsetpgrp(0, libc::getpid());
            }
        }
        if let Some((uid, gid, groups)) = setup.user
            && (libc::setgroups(groups.len(), groups.as_ptr()) != 0 || libc::setgid(gid) != 0 || libc::setuid(uid) != 0)
        {
            return (Stage::User, errno());
        }
        if let Some(directory) = setup.directory
            && libc::chdir(directory.as_ptr()) != 0
        {
            return (Stage::Directory, errno());
        }
        // After the change of user, which clears it.
        if setup.parent_death == ParentDeath::Kill {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) != 0 {
                return (Stage::ParentDeath, errno());
            }
            if libc::getppid() != parent {
                libc::kill(libc::getpid(), libc::SIGKILL);
            }
        }
        for (target, source) in (3..).zip(setup.inherit.iter()) {
            if libc::dup2(source.as_raw_fd(), target) < 0 {
                return (Stage::Exec, errno());
            }
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());

        let arguments = arguments.as_ptr();
        let environment = environment.as_ptr();
        match file {
            Executable::Open(file) => {
                let flags = libc::AT_EMPTY_PATH;
                libc::syscall(libc::SYS_execveat, file.as_raw_fd(), c"".as_ptr(), arguments, environment, flags);
                (Stage::Exec, errno())
            }
            Executable::Paths(paths) => {
                // As execvp: go on past what is not there, and say "not permitted" if that was met.
                let mut cause = libc::ENOENT;
                for path in paths {
                    libc::execve(path.as_ptr(), arguments, environment);
                    match errno() {
                        libc::ENOENT | libc::ENOTDIR => {}
                        libc::EACCES => cause = libc::EACCES,
                        other => return (Stage::Exec, other),
                    }
                }
                (Stage::Exec, cause)
            }
        }
    }
}

const STAGES: [Stage; 7] =
    [Stage::Fork, Stage::Cgroup, Stage::Group, Stage::User, Stage::Directory, Stage::ParentDeath, Stage::Exec];

/// The number that stands for a stage outside this program's memory.
pub fn number_of(stage: Stage) -> u8 {
    stage as u8
}

/// The stage that a number stands for.
pub fn stage_of(number: u8) -> Option<Stage> {
    STAGES.get(usize::from(number)).copied()
}

fn encode_failure((stage, errno): (Stage, i32)) -> [u8; 5] {
    let e = errno.to_ne_bytes();
    [number_of(stage), e[0], e[1], e[2], e[3]]
}

/// What has become of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The child is still between fork and exec.
    Pending,
    /// The program runs (or the child was killed on its way).
    Running,
    /// It could not be run.
    Failed(Stage, i32),
}

/// Reads [`Spawned::outcome`] without waiting.
pub fn read_outcome(pipe: BorrowedFd<'_>) -> Outcome {
    let mut bytes = [0u8; 5];
    match nix::unistd::read(pipe, &mut bytes) {
        Ok(5) => {
            let errno = i32::from_ne_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            Outcome::Failed(stage_of(bytes[0]).unwrap_or(Stage::Exec), errno)
        }
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Outcome::Pending,
        _ => Outcome::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_keep_their_numbers() {
        for stage in STAGES {
            assert_eq!(stage_of(number_of(stage)), Some(stage));
        }
        assert_eq!(stage_of(7), None);
    }
}
