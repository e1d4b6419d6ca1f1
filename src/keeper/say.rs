//! What the keeper says outside of the wire: to the service manager, and to stderr.
//!
//! What must never happen here: waiting. A line that cannot be written now is dropped.

use crate::core::Boot;
use crate::wire::TOLD_MAX;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// A line of text that is put together without allocating, cut at its longest.
pub struct Line {
    bytes: [u8; TOLD_MAX],
    length: usize,
}

impl Line {
    pub fn of(text: fmt::Arguments<'_>) -> Line {
        let mut line = Line { bytes: [0; TOLD_MAX], length: 0 };
        // A full line is an error to `fmt`, and a cut line to us.
        let _ = fmt::write(&mut line, text);
        line
    }

    pub fn text(&self) -> &str {
        let bytes = &self.bytes[..self.length];
        match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(cut) => std::str::from_utf8(&bytes[..cut.valid_up_to()]).unwrap_or_default(),
        }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let n = text.len().min(TOLD_MAX - self.length);
        self.bytes[self.length..self.length + n].copy_from_slice(&text.as_bytes()[..n]);
        self.length += n;
        if n == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Writes a line to stderr if that cannot block: not to a file, whose disk may be full
/// or far away, and only where there is room now.
pub fn to_stderr(text: fmt::Arguments<'_>) {
    let stderr = io::stderr();
    let streams = [SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFCHR];
    let kind = fstat(stderr.as_fd()).map(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT);
    if !kind.is_ok_and(|kind| streams.contains(&kind)) {
        return;
    }
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO) == Ok(1)
        && ready[0].revents().is_some_and(|r| r.contains(PollFlags::POLLOUT))
    {
        let line = Line::of(format_args!("locum: {text}\n"));
        let _ = nix::unistd::write(stderr.as_fd(), line.text().as_bytes());
    }
}

/// The service manager, if it wants to hear from us: sd_notify(3).
pub struct Notify {
    socket: Option<UnixDatagram>,
    /// Half of the service manager's watchdog interval.
    watchdog: Option<Duration>,
    next: Boot,
}

impl Notify {
    pub fn from_environment() -> Notify {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|path| connect(path.as_bytes()).ok());
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|v| v.parse().ok()).filter(|n| *n > 0);
        let ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = micros.filter(|_| ours && socket.is_some()).map(|n: u64| Duration::from_micros(n / 2));
        Notify { socket, watchdog, next: Boot::ZERO }
    }

    pub fn say(&self, state: fmt::Arguments<'_>) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(Line::of(state).text().as_bytes());
        }
    }

    /// Feeds the watchdog if that is due. The loop calls it at each turn, so that
    /// it starves when the loop hangs.
    pub fn feed(&mut self, now: Boot) {
        if let Some(interval) = self.watchdog
            && now.has_reached(self.next)
        {
            self.say(format_args!("WATCHDOG=1"));
            self.next = now.plus(interval);
        }
    }

    /// When the watchdog is due.
    pub fn due(&self) -> Boot {
        if self.watchdog.is_some() { self.next } else { Boot::NEVER }
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_between_characters() {
        let long = "ü".repeat(TOLD_MAX);
        assert_eq!(Line::of(format_args!("x{long}")).text().len(), TOLD_MAX - 1);
        assert_eq!(Line::of(format_args!("{} {}", 1, "a")).text(), "1 a");
    }
}
