//! What `/proc` says about processes, read without allocating: the kernel has no
//! other way to list the children of a process.

use crate::sys;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Ended, and not yet reaped.
    pub zombie: bool,
    /// The parent.
    pub parent: i32,
    /// The process group.
    pub group: i32,
    /// When it was started, in clock ticks since the boot: with the pid it names a
    /// process for good.
    pub start: u64,
}

/// A view of `/proc` that stays open.
pub struct Proc {
    folder: OwnedFd,
    me: i32,
    listed: bool,
}

impl Proc {
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn open() -> io::Result<Proc> {
        let folder = sys::lift(File::open("/proc")?.as_fd())?;
        let me = std::process::id() as i32;
        // CONFIG_PROC_CHILDREN: distributions have it, small kernels do not.
        let listed = std::fs::exists("/proc/thread-self/children").unwrap_or(false);
        stat_in(folder.as_fd(), me).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no processes in /proc"))?;
        Ok(Proc { folder, me, listed })
    }

    /// Calls `each` for our children, ended and not reaped ones included; allocates nothing.
    ///
    /// If it shows none but those that were there all the time and had ended before,
    /// there is no other descendant: whatever was to become our child during the
    /// listing has an ancestor that was one all the time, since only we reap.
    /// This needs a single thread that lists, forks and reaps.
    ///
    /// # Errors
    /// When `/proc` cannot be read; then nothing is known.
    pub fn children(&self, mut each: impl FnMut(i32)) -> io::Result<()> {
        if !self.listed {
            return sys::each_number(self.folder.as_fd(), |pid| {
                if stat_in(self.folder.as_fd(), pid).is_some_and(|s| s.parent == self.me) {
                    each(pid);
                }
                true
            });
        }
        let file = openat(&self.folder, c"thread-self/children", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut buffer = [0u8; 4096];
        let mut number = None;
        loop {
            let n = nix::unistd::read(&file, &mut buffer)?;
            if n == 0 {
                number.into_iter().for_each(&mut each);
                return Ok(());
            }
            for byte in &buffer[..n] {
                match byte {
                    b'0'..=b'9' => number = Some(number.unwrap_or(0) * 10 + i32::from(byte - b'0')),
                    _ => number.take().into_iter().for_each(&mut each),
                }
            }
        }
    }
}

/// When a process was started, if there is one.
pub fn start_of(pid: i32) -> Option<u64> {
    stat(pid).map(|s| s.start)
}

/// The state of a process, if there is one.
pub fn stat(pid: i32) -> Option<Stat> {
    stat_in(File::open("/proc").ok()?.as_fd(), pid)
}

fn stat_in(proc: BorrowedFd<'_>, pid: i32) -> Option<Stat> {
    let mut path = [0u8; 24];
    io::Write::write_fmt(&mut path.as_mut_slice(), format_args!("{pid}/stat")).ok()?;
    let path = std::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    let file = openat(proc, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0u8; 512];
    let n = nix::unistd::read(&file, &mut buffer).ok()?;
    parse(&buffer[..n])
}

/// `pid (name) state ppid pgrp …`, the start time being field 22; the name may hold anything (proc_pid_stat(5)).
fn parse(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|b| *b == b')')?;
    let mut fields = std::str::from_utf8(line.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let start = fields.nth(16)?.parse().ok()?;
    Some(Stat { zombie, parent, group, start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields() {
        let rest = "S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let expected = Some(Stat { zombie: false, parent: 7, group: 8, start: 4242 });
        for name in ["sh", "a b", ") Z 1 1", "((", "\u{fc}"] {
            assert_eq!(parse(format!("12 ({name}) {rest}").as_bytes()), expected, "{name}");
        }
        for broken in ["", "12", "12 (sh)", "12 (sh) S 7", "12 (sh) S x 8 9"] {
            assert_eq!(parse(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn a_child_is_listed_until_it_is_reaped() {
        let proc = Proc { listed: false, ..Proc::open().unwrap() };
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        let listed = || {
            let mut found = false;
            proc.children(|p| found |= p == pid).unwrap();
            found
        };
        assert!(listed());
        child.wait().unwrap();
        assert!(!listed());
    }
}
