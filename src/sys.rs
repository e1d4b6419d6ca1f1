//! The few system calls that the libraries lack, as safe functions; the only `unsafe`.
//!
//! Nothing here decides anything. How a program is started is in `spawn.rs`.

#![allow(unsafe_code)]

mod spawn;

pub use spawn::{
    Entry, Executable, Input, Outcome, ParentDeath, Program, Setup, Spawned, VALUE_MAX, can_enter, number_of,
    read_outcome, spawn, stage_of,
};

use crate::core::{Boot, Exit};
use nix::libc;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Reads CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW together.
///
/// A clock that cannot be read is [`Boot::NEVER`]: every limit has passed, which
/// stops the command instead of running it without a deadline.
pub fn now() -> Boot {
    Boot { boot: nanos_of(libc::CLOCK_BOOTTIME), raw: nanos_of(libc::CLOCK_MONOTONIC_RAW) }
}

fn nanos_of(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that outlives the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
        return u64::MAX;
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or(u64::MAX);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// A one-shot timer on CLOCK_BOOTTIME: it goes on while the machine sleeps.
pub struct Timer(OwnedFd);

impl Timer {
    /// # Errors
    /// When the kernel has no descriptor left.
    pub fn new() -> io::Result<Timer> {
        // SAFETY: takes no pointers; the descriptor it returns is owned by nobody else.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        owned(fd).map(Timer)
    }

    /// Goes off after `delay` (at once if that is zero), or never. Arming it again
    /// also forgets that it went off.
    pub fn arm(&self, delay: Option<Duration>) {
        let delay = delay.map_or(Duration::ZERO, |d| d.max(Duration::from_nanos(1)));
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(delay.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(delay.subsec_nanos() as i32),
        };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: `spec` outlives the call; the old value is not asked for.
        unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &spec, std::ptr::null_mut()) };
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: called only with a descriptor that a system call has just returned.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this is the first process of its pid namespace, with which all others end.
pub fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Makes this process the parent of every orphan among its descendants.
///
/// # Errors
/// On a kernel before 3.4.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
}

/// Gives this process the name that `ps` and `/proc/<pid>/comm` show.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a string that ends with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Sets SIGCHLD back to its default: ignored, which a parent can leave behind, it
/// would make the kernel reap our children before we see how they ended.
pub fn expect_children() {
    // SAFETY: SIG_DFL installs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Puts this process before all ordinary ones, where that is allowed (CAP_SYS_NICE): a
/// deadline must not wait until a busy machine finds a processor for it. Returns the nice
/// value of before, which its children have to be given, as they start with none; nothing
/// if the policy stays as it was: not allowed, or somebody has chosen one already.
pub fn take_precedence() -> Option<i32> {
    // SAFETY: takes numbers only.
    let (policy, nice) = unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
    if policy != libc::SCHED_OTHER {
        return None;
    }
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` outlives the call. RESET_ON_FORK keeps the policy from every child.
    let taken = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &lowest) } == 0;
    taken.then_some(nice)
}

/// Keeps the pages that this process has touched and will touch in memory, if that is
/// allowed without a limit: under a limit, growth of the stack would end in SIGSEGV.
/// Says whether they are kept.
pub fn lock_memory() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call.
    let unlimited =
        unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0 && limit.rlim_cur == libc::RLIM_INFINITY;
    if !unlimited && !has_capability(CAP_IPC_LOCK) {
        return false;
    }
    // ONFAULT: without it, mlockall copies every writable page of the binary at once.
    // SAFETY: takes numbers only.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) == 0 }
}

/// Number of CAP_IPC_LOCK, from capability.h.
const CAP_IPC_LOCK: u32 = 14;

fn has_capability(number: u32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> number & 1 == 1)
}

/// Gives the heap that start-up left free back to the system.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number only; glibc locks its own heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes all threads of this process share one heap: by default glibc gives each a heap of
/// its own, which costs memory and spares waiting that our threads, mostly asleep, never do.
/// To be called before there is a second thread.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Marks every descriptor from 3 on to be closed by exec: nothing that our own parent
/// left open reaches the command.
pub fn close_on_exec() {
    // SAFETY: takes numbers only and closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done != 0 {
        for fd in 3..4096 {
            // SAFETY: takes numbers only; EBADF is an outcome.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// A copy of a descriptor numbered 10 or more, closed by exec, so that it is not in the
/// way of the fixed numbers that the agent inherits.
///
/// # Errors
/// When no descriptor is left.
pub fn lift(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the descriptor it returns is owned by nobody else.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) })
}

/// Takes the descriptor that this process was started with under a fixed number, and
/// marks it to be closed by exec. None if it is not open. To be called once a number.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: takes numbers only.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: it is open, and nobody else in this process owns a number that our
    // parent has fixed; the callers take each number once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A memory file that holds `bytes` and can never be changed again.
///
/// # Errors
/// When the kernel refuses memory or a descriptor.
pub fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL; the descriptor is owned by nobody else.
    let fd = owned(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: takes numbers only.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file.into())
}

/// 16 hexadecimal digits from the kernel's random source.
///
/// # Errors
/// When the kernel has no random source.
pub fn random_name() -> io::Result<String> {
    Ok(format!("{:016x}", random()?))
}

/// A number from the kernel's random source.
///
/// # Errors
/// When the kernel has no random source.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is 8 bytes long and outlives the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 8 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// A descriptor that names one process for good, even after its number is used again.
///
/// # Errors
/// ESRCH when there is no such process, ENOSYS before Linux 5.3.
pub fn open_process(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the descriptor it returns is owned by nobody else.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int)
}

/// Sends a signal to the process that a descriptor of [`open_process`] names.
///
/// # Errors
/// ESRCH when it has ended, EPERM.
pub fn signal_process(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo is passed.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, info, 0) } as libc::c_int)
}

/// Sends a signal to one process. That it is gone already is not an error.
pub fn kill(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: takes numbers only.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Sends a signal to a process group. That it is empty is not an error. The caller
/// knows that the group is still its own: its leader is not reaped.
pub fn kill_group(group: i32, signal: i32) {
    if group > 1 {
        // SAFETY: takes numbers only; never group 0 or 1, which would mean ourselves or everybody.
        unsafe { libc::kill(-group, signal) };
    }
}

/// The process group of a process, if that exists.
pub fn group_of(pid: i32) -> Option<i32> {
    // SAFETY: takes numbers only.
    let group = unsafe { libc::getpgid(pid) };
    (group > 0).then_some(group)
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its pid.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
}

/// Which children to ask about.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// Any.
    Any,
    /// This one.
    Pid(i32),
}

/// Looks for a child that has ended, and leaves it as it is.
pub fn peek(which: Which) -> Option<Ended> {
    wait(which, libc::WNOWAIT)
}

/// Reaps this child if it has ended. There is no way to reap just any child: that
/// could be the leader, whose pid has to pin its group to the last.
pub fn reap(pid: i32) -> Option<Ended> {
    wait(Which::Pid(pid), 0)
}

fn wait(which: Which, option: libc::c_int) -> Option<Ended> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Pid(pid) => (libc::P_PID, libc::id_t::try_from(pid).ok()?),
    };
    // SAFETY: all zeros is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call.
    let done = unsafe { libc::waitid(kind, id, &mut info, libc::WEXITED | libc::WNOHANG | libc::__WALL | option) };
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves the zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if done != 0 || pid == 0 {
        return None;
    }
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status as u8) } else { Exit::Signal(status) };
    Some(Ended { pid, exit })
}

/// The entries of an open folder that are numbers, such as the pids in `/proc`, without
/// allocating. Calls `each` until it says false.
///
/// # Errors
/// As getdents64.
pub fn each_number(folder: BorrowedFd<'_>, mut each: impl FnMut(i32) -> bool) -> io::Result<()> {
    // SAFETY: takes numbers only.
    unsafe { libc::lseek(folder.as_raw_fd(), 0, libc::SEEK_SET) };
    let mut buffer = [0u64; 1024];
    loop {
        // SAFETY: the buffer is as long as said, aligned for dirent64, and outlives the call.
        let got = unsafe {
            libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), buffer.as_mut_ptr(), size_of_val(&buffer))
        };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        if got == 0 {
            return Ok(());
        }
        // SAFETY: the kernel has written `got` bytes, at most the size of the buffer.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), got as usize) };
        // struct linux_dirent64: u64 inode, i64 offset, u16 length, u8 type, name.
        let mut at = 0;
        while let Some(length) = bytes.get(at + 16..at + 18) {
            let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
            let name = bytes.get(at + 19..at + length).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let number = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
            if let Some(number) = number
                && !each(number)
            {
                return Ok(());
            }
            if length == 0 {
                break;
            }
            at += length;
        }
    }
}

/// Whether standard input is a terminal whose foreground we are.
pub fn in_foreground() -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::tcgetpgrp(0) == libc::getpgrp() }
}

/// Takes the terminal's foreground back from a child. SIGTTOU has to be blocked.
pub fn take_foreground() {
    // SAFETY: takes numbers only; without a terminal it fails, and that is fine.
    unsafe { libc::tcsetpgrp(0, libc::getpgrp()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_go_on() {
        let a = now();
        let b = now();
        assert!(b.boot >= a.boot && b.raw >= a.raw && a.boot > 0 && a.raw > 0);
    }

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let mut file = File::from(sealed(c"test", b"abc").unwrap());
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn proc_lists_ourselves() {
        let proc = File::open("/proc").unwrap();
        let me = std::process::id() as i32;
        let mut found = false;
        each_number(proc.as_fd(), |pid| {
            found |= pid == me;
            true
        })
        .unwrap();
        assert!(found);
    }
}
