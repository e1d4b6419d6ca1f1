//! What keeper and agent say to each other, and how: one small packet a message over a
//! SEQPACKET socket pair.
//!
//! A packet is the protocol's version, a kind, and fields of fixed layout (little
//! endian; text and memo with their length first). It never carries a command line,
//! a user or a secret. What must never happen here: waiting for the other side, and
//! a panic over what it sent.

use crate::core::{Boot, Exit, Level, Limits, MEMO_MAX, Order, Report, Snapshot, Start, Tree};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, recv, send, socketpair};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// The version of the protocol, first byte of every packet.
pub const VERSION: u8 = 1;

/// The longest packet in bytes.
pub const PACKET_MAX: usize = 2048;

/// The longest line of [`Report::Told`] in bytes; longer ones are cut.
pub const TOLD_MAX: usize = 512;

/// Why a packet could not be sent or understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The other side is gone.
    Closed,
    /// The other side does not read: nothing was sent.
    Full,
    /// The packet has another version of the protocol.
    Version(u8),
    /// The packet makes no sense.
    Garbled,
    /// The system refused.
    System(Errno),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Closed => f.write_str("the other side is gone"),
            WireError::Full => f.write_str("the other side does not read"),
            WireError::Version(v) => write!(f, "protocol version {v} instead of {VERSION}"),
            WireError::Garbled => f.write_str("a packet that makes no sense"),
            WireError::System(errno) => f.write_str(errno.desc()),
        }
    }
}

impl std::error::Error for WireError {}

impl From<Errno> for WireError {
    fn from(errno: Errno) -> WireError {
        match errno {
            Errno::EAGAIN | Errno::ENOBUFS => WireError::Full,
            Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => WireError::Closed,
            other => WireError::System(other),
        }
    }
}

/// One side of the wire.
#[derive(Debug)]
pub struct End(OwnedFd);

impl End {
    /// The pid of the process that made the pair: of the keeper, as an agent sees it.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn maker(&self) -> io::Result<i32> {
        Ok(getsockopt(&self.0, PeerCredentials)?.pid())
    }

    /// Two ends that are connected, both non-blocking and closed by exec.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pair() -> io::Result<(End, End)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((End(a), End(b)))
    }

    /// Sends an order.
    ///
    /// # Errors
    /// [`WireError::Full`] when the keeper does not read: it hangs.
    pub fn send_order(&self, order: &Order) -> Result<(), WireError> {
        self.send(encode_order(order, &mut [0; PACKET_MAX]))
    }

    /// Sends a report. A line ([`Report::Told`]) is dropped when the socket is filling up.
    ///
    /// # Errors
    /// [`WireError::Full`] when the agent does not read: it hangs.
    pub fn send_report(&self, report: &Report) -> Result<(), WireError> {
        match report {
            Report::Told { level, text } => {
                self.tell(*level, text);
                Ok(())
            }
            _ => self.send(encode_report(report, &mut [0; PACKET_MAX])),
        }
    }

    /// Sends [`Report::Hello`] without taking the snapshot.
    ///
    /// # Errors
    /// As [`End::send_report`].
    pub fn send_hello(&self, snapshot: &Snapshot) -> Result<(), WireError> {
        self.send(encode_hello(snapshot, &mut [0; PACKET_MAX]))
    }

    /// Sends a line for the log, or drops it; says whether it was sent.
    pub fn tell(&self, level: Level, text: &str) -> bool {
        // A Unix socket is writable for poll while a quarter of it is used at most: the
        // rest is kept for what must not be lost.
        let mut ready = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let room = poll(&mut ready, PollTimeout::ZERO) == Ok(1)
            && ready[0].revents().is_some_and(|r| r.contains(PollFlags::POLLOUT));
        room && self.send(encode_told(level, text, &mut [0; PACKET_MAX])).is_ok()
    }

    fn send(&self, packet: &[u8]) -> Result<(), WireError> {
        loop {
            match send(self.0.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                result => return Ok(result.map(drop)?),
            }
        }
    }

    /// The next order, or none if there is none yet.
    ///
    /// # Errors
    /// [`WireError::Closed`] at the end, [`WireError::Garbled`] and
    /// [`WireError::Version`] for what cannot be understood.
    pub fn next_order(&self) -> Result<Option<Order>, WireError> {
        let mut buffer = [0; PACKET_MAX + 1];
        self.receive(&mut buffer)?.map(decode_order).transpose()
    }

    /// The next report, or none if there is none yet.
    ///
    /// # Errors
    /// As [`End::next_order`].
    pub fn next_report(&self) -> Result<Option<Report>, WireError> {
        let mut buffer = [0; PACKET_MAX + 1];
        self.receive(&mut buffer)?.map(decode_report).transpose()
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>, WireError> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(WireError::Closed),
                Ok(n) if n > PACKET_MAX => return Err(WireError::Garbled),
                Ok(n) => return Ok(Some(&buffer[..n])),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for End {
    fn from(fd: OwnedFd) -> End {
        End(fd)
    }
}

/// The command's cgroup, as the keeper hands it to the agent.
#[derive(Debug)]
pub struct CgroupFds {
    /// `cgroup.kill`, open for writing.
    pub kill: File,
    /// `cgroup.events`, open for reading.
    pub events: File,
}

/// What an agent is started with.
#[derive(Debug)]
pub struct Inherited {
    /// The wire to the keeper.
    pub end: End,
    /// The configuration, as the keeper wrote it (JSON of [`crate::config::Config`]).
    pub config: Vec<u8>,
    /// The command's cgroup, if it has one.
    pub cgroup: Option<CgroupFds>,
}

/// Takes what the keeper hands to an agent in descriptors 3 to 6. To be called once,
/// first thing in the agent, which was given `--cgroup` if 5 and 6 are a cgroup's.
///
/// # Errors
/// When this process was not started by a keeper.
pub fn agent_end(with_cgroup: bool) -> io::Result<Inherited> {
    sys::set_name(c"locum-agent");
    let missing = || io::Error::new(io::ErrorKind::NotFound, "not started by a keeper");
    let end = End(sys::inherited(3).ok_or_else(missing)?);
    let file = File::from(sys::inherited(4).ok_or_else(missing)?);
    // Read by position: the offset is shared with every agent before and after this one.
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut config = vec![0; length];
    file.read_exact_at(&mut config, 0)?;
    let cgroup = if with_cgroup {
        let kill = sys::inherited(5).ok_or_else(missing)?.into();
        let events = sys::inherited(6).ok_or_else(missing)?.into();
        Some(CgroupFds { kill, events })
    } else {
        None
    };
    Ok(Inherited { end, config, cgroup })
}

// Kinds of packets. A number is never used again for something else.
const LEASE: u8 = 1;
const START: u8 = 2;
const STOP: u8 = 3;
const KILL: u8 = 4;
const SIGNAL: u8 = 5;
const MEMO: u8 = 6;
const SHUTDOWN: u8 = 7;
const ALIVE: u8 = 8;
const HELLO: u8 = 65;
const STARTED: u8 = 66;
const START_FAILED: u8 = 67;
const EXITED: u8 = 68;
const GONE: u8 = 69;
const LEASE_ACK: u8 = 70;
const ASKED: u8 = 71;
const TOLD: u8 = 72;

/// Writes an order as a packet. A memo beyond [`MEMO_MAX`] and a name beyond 255 bytes are cut.
pub fn encode_order<'a>(order: &Order, buffer: &'a mut [u8; PACKET_MAX]) -> &'a [u8] {
    match order {
        Order::Lease { epoch, limits } => Writer::new(buffer, LEASE).u64(*epoch).limits(limits),
        Order::Start(Start { epoch, token, previous }) => {
            Writer::new(buffer, START).u64(*epoch).u64(*token).text(previous, 255)
        }
        Order::Stop { grace } => Writer::new(buffer, STOP).duration(*grace),
        Order::Kill => Writer::new(buffer, KILL),
        Order::Signal(number) => Writer::new(buffer, SIGNAL).i32(*number),
        Order::Memo(memo) => Writer::new(buffer, MEMO).bytes(memo, MEMO_MAX),
        Order::Shutdown { code } => Writer::new(buffer, SHUTDOWN).u8(*code),
        Order::Alive => Writer::new(buffer, ALIVE),
    }
    .done()
}

/// Writes a report as a packet. A text beyond [`TOLD_MAX`] bytes is cut.
pub fn encode_report<'a>(report: &Report, buffer: &'a mut [u8; PACKET_MAX]) -> &'a [u8] {
    match report {
        Report::Hello(snapshot) => return encode_hello(snapshot, buffer),
        Report::Started { pid } => Writer::new(buffer, STARTED).i32(*pid),
        Report::StartFailed { stage, errno } => {
            Writer::new(buffer, START_FAILED).u8(sys::number_of(*stage)).i32(*errno)
        }
        Report::Exited(exit) => {
            let (how, number) = numbers_of(*exit);
            Writer::new(buffer, EXITED).u8(how).i32(number)
        }
        Report::Gone => Writer::new(buffer, GONE),
        Report::LeaseAck { epoch, kill_at } => Writer::new(buffer, LEASE_ACK).u64(*epoch).boot(*kill_at),
        Report::Asked { signal } => Writer::new(buffer, ASKED).i32(*signal),
        Report::Told { level, text } => return encode_told(*level, text, buffer),
    }
    .done()
}

fn encode_told<'a>(level: Level, text: &str, buffer: &'a mut [u8; PACKET_MAX]) -> &'a [u8] {
    Writer::new(buffer, TOLD).u8(level as u8).text(text, TOLD_MAX).done()
}

fn numbers_of(exit: Exit) -> (u8, i32) {
    match exit {
        Exit::Code(code) => (0, i32::from(code)),
        Exit::Signal(number) => (1, number),
    }
}

fn exit_of(how: u8, number: i32) -> Result<Exit, WireError> {
    match how {
        0 => Ok(Exit::Code(u8::try_from(number).map_err(|_| WireError::Garbled)?)),
        1 => Ok(Exit::Signal(number)),
        _ => Err(WireError::Garbled),
    }
}

/// In place of how an exit came about: there was none.
const NO_EXIT: u8 = 255;

fn encode_hello<'a>(s: &Snapshot, buffer: &'a mut [u8; PACKET_MAX]) -> &'a [u8] {
    let (state, pid, since) = match s.tree {
        Tree::Gone => (0, 0, Boot::ZERO),
        Tree::Running { pid, since } => (1, pid, since),
        Tree::Ending { pid } => (2, pid, Boot::ZERO),
    };
    let (how, number) = s.exit.map_or((NO_EXIT, 0), numbers_of);
    Writer::new(buffer, HELLO)
        .text(&s.instance, 64)
        .u32(s.agents)
        .u64(s.epoch)
        .limits(&s.limits)
        .u8(state)
        .i32(pid)
        .boot(since)
        .u8(how)
        .i32(number)
        .u64(s.token)
        .u8(u8::from(s.stopping))
        .bytes(&s.memo, MEMO_MAX)
        .done()
}

/// Reads an order.
///
/// # Errors
/// [`WireError::Version`] or [`WireError::Garbled`].
pub fn decode_order(packet: &[u8]) -> Result<Order, WireError> {
    let (kind, mut r) = Reader::new(packet)?;
    let order = match kind {
        LEASE => Order::Lease { epoch: r.u64()?, limits: r.limits()? },
        START => Order::Start(Start { epoch: r.u64()?, token: r.u64()?, previous: r.text(255)?.into() }),
        STOP => Order::Stop { grace: Duration::from_nanos(r.u64()?) },
        KILL => Order::Kill,
        SIGNAL => Order::Signal(r.i32()?),
        MEMO => Order::Memo(r.bytes(MEMO_MAX)?.to_vec()),
        SHUTDOWN => Order::Shutdown { code: r.u8()? },
        ALIVE => Order::Alive,
        _ => return Err(WireError::Garbled),
    };
    r.done(order)
}

/// Reads a report.
///
/// # Errors
/// [`WireError::Version`] or [`WireError::Garbled`].
pub fn decode_report(packet: &[u8]) -> Result<Report, WireError> {
    let (kind, mut r) = Reader::new(packet)?;
    let report = match kind {
        HELLO => Report::Hello(Snapshot {
            instance: r.text(64)?.into(),
            agents: r.u32()?,
            epoch: r.u64()?,
            limits: r.limits()?,
            tree: match (r.u8()?, r.i32()?, r.boot()?) {
                (0, _, _) => Tree::Gone,
                (1, pid, since) => Tree::Running { pid, since },
                (2, pid, _) => Tree::Ending { pid },
                _ => return Err(WireError::Garbled),
            },
            exit: match (r.u8()?, r.i32()?) {
                (NO_EXIT, _) => None,
                (how, number) => Some(exit_of(how, number)?),
            },
            token: r.u64()?,
            stopping: match r.u8()? {
                0 => false,
                1 => true,
                _ => return Err(WireError::Garbled),
            },
            memo: r.bytes(MEMO_MAX)?.to_vec(),
        }),
        STARTED => Report::Started { pid: r.i32()? },
        START_FAILED => {
            Report::StartFailed { stage: sys::stage_of(r.u8()?).ok_or(WireError::Garbled)?, errno: r.i32()? }
        }
        EXITED => Report::Exited(exit_of(r.u8()?, r.i32()?)?),
        GONE => Report::Gone,
        LEASE_ACK => Report::LeaseAck { epoch: r.u64()?, kill_at: r.boot()? },
        ASKED => Report::Asked { signal: r.i32()? },
        TOLD => Report::Told {
            level: match r.u8()? {
                0 => Level::Error,
                1 => Level::Warn,
                2 => Level::Info,
                3 => Level::Debug,
                _ => return Err(WireError::Garbled),
            },
            text: r.text(TOLD_MAX)?.into(),
        },
        _ => return Err(WireError::Garbled),
    };
    r.done(report)
}

/// Writes fields one after the other. What does not fit is left out, which cannot
/// happen: every packet's longest form is shorter than the buffer (see the tests).
struct Writer<'a> {
    buffer: &'a mut [u8; PACKET_MAX],
    length: usize,
}

impl<'a> Writer<'a> {
    fn new(buffer: &'a mut [u8; PACKET_MAX], kind: u8) -> Writer<'a> {
        Writer { buffer, length: 0 }.put(&[VERSION, kind])
    }

    fn put(mut self, bytes: &[u8]) -> Writer<'a> {
        if let Some(room) = self.buffer.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
        self
    }

    fn u8(self, n: u8) -> Writer<'a> {
        self.put(&[n])
    }

    fn u32(self, n: u32) -> Writer<'a> {
        self.put(&n.to_le_bytes())
    }

    fn i32(self, n: i32) -> Writer<'a> {
        self.put(&n.to_le_bytes())
    }

    fn u64(self, n: u64) -> Writer<'a> {
        self.put(&n.to_le_bytes())
    }

    fn duration(self, d: Duration) -> Writer<'a> {
        self.u64(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
    }

    fn boot(self, b: Boot) -> Writer<'a> {
        self.u64(b.boot).u64(b.raw)
    }

    fn limits(self, l: &Limits) -> Writer<'a> {
        self.boot(l.term_at).boot(l.kill_at).boot(l.end)
    }

    fn bytes(self, bytes: &[u8], most: usize) -> Writer<'a> {
        let bytes = &bytes[..bytes.len().min(most)];
        let length = u16::try_from(bytes.len()).unwrap_or(0);
        self.put(&length.to_le_bytes()).put(bytes)
    }

    fn text(self, text: &str, most: usize) -> Writer<'a> {
        let mut end = text.len().min(most);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(&text.as_bytes()[..end], most)
    }

    fn done(self) -> &'a [u8] {
        &self.buffer[..self.length]
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn new(packet: &'a [u8]) -> Result<(u8, Reader<'a>), WireError> {
        match packet {
            [VERSION, kind, rest @ ..] => Ok((*kind, Reader(rest))),
            [version, _, ..] => Err(WireError::Version(*version)),
            _ => Err(WireError::Garbled),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(WireError::Garbled)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Garbled)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    fn boot(&mut self) -> Result<Boot, WireError> {
        Ok(Boot { boot: self.u64()?, raw: self.u64()? })
    }

    fn limits(&mut self) -> Result<Limits, WireError> {
        Ok(Limits { term_at: self.boot()?, kill_at: self.boot()?, end: self.boot()? })
    }

    fn bytes(&mut self, most: usize) -> Result<&'a [u8], WireError> {
        let length = usize::from(self.array().map(u16::from_le_bytes)?);
        if length > most { Err(WireError::Garbled) } else { self.take(length) }
    }

    fn text(&mut self, most: usize) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(most)?).map_err(|_| WireError::Garbled)
    }

    /// The message, if nothing is left over.
    fn done<T>(self, message: T) -> Result<T, WireError> {
        if self.0.is_empty() { Ok(message) } else { Err(WireError::Garbled) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Stage;

    const AT: Boot = Boot { boot: 7_000_000_001, raw: u64::MAX - 3 };

    fn orders() -> Vec<Order> {
        vec![
            Order::Lease { epoch: 7, limits: Limits { term_at: AT, kill_at: Boot::NEVER, end: Boot::ZERO } },
            Order::Lease { epoch: u64::MAX, limits: Limits::FOREVER },
            Order::Start(Start { epoch: 1, token: u64::MAX, previous: "ü".repeat(127) }),
            Order::Start(Start { epoch: 0, token: 0, previous: String::new() }),
            Order::Stop { grace: Duration::from_millis(1500) },
            Order::Kill,
            Order::Signal(10),
            Order::Memo((0..MEMO_MAX).map(|i| i as u8).collect()),
            Order::Memo(Vec::new()),
            Order::Shutdown { code: 70 },
            Order::Alive,
        ]
    }

    fn reports() -> Vec<Report> {
        let hello = |tree, exit| {
            Report::Hello(Snapshot {
                instance: "0123456789abcdef".into(),
                agents: 3,
                epoch: 9,
                limits: Limits { term_at: AT, kill_at: AT, end: AT },
                tree,
                exit,
                token: 12,
                stopping: true,
                memo: vec![0xA5; MEMO_MAX],
            })
        };
        let stages = (0..7).map(|n| Report::StartFailed { stage: sys::stage_of(n).unwrap_or(Stage::Exec), errno: 13 });
        let mut all = vec![
            hello(Tree::Gone, Some(Exit::Code(255))),
            hello(Tree::Running { pid: 12, since: AT }, None),
            hello(Tree::Ending { pid: i32::MAX }, Some(Exit::Signal(9))),
            Report::Started { pid: 4_194_304 },
            Report::Exited(Exit::Code(255)),
            Report::Exited(Exit::Signal(9)),
            Report::Gone,
            Report::LeaseAck { epoch: 2, kill_at: AT },
            Report::Asked { signal: 15 },
        ];
        all.extend(stages);
        for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
            all.push(Report::Told { level, text: "x".repeat(TOLD_MAX) });
        }
        all
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        let mut buffer = [0; PACKET_MAX];
        for order in orders() {
            assert_eq!(decode_order(encode_order(&order, &mut buffer)), Ok(order));
        }
        for report in reports() {
            assert_eq!(decode_report(encode_report(&report, &mut buffer)), Ok(report));
        }
    }

    #[test]
    fn a_truncated_or_longer_packet_is_an_error() {
        let mut buffer = [0; PACKET_MAX];
        for order in orders() {
            let mut packet = encode_order(&order, &mut buffer).to_vec();
            for length in 0..packet.len() {
                assert!(decode_order(&packet[..length]).is_err(), "{order:?} cut to {length}");
            }
            packet.push(0);
            assert_eq!(decode_order(&packet), Err(WireError::Garbled), "{order:?} and a byte");
        }
        for report in reports() {
            let packet = encode_report(&report, &mut buffer).to_vec();
            for length in 0..packet.len() {
                assert!(decode_report(&packet[..length]).is_err(), "{report:?} cut to {length}");
            }
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..200_000 {
            let mut packet: Vec<u8> = (0..random() % 80).map(|_| random() as u8).collect();
            if round % 2 == 0 && !packet.is_empty() {
                packet[0] = VERSION;
            }
            let _ = decode_order(&packet);
            let _ = decode_report(&packet);
        }
        assert_eq!(decode_order(&[VERSION + 1, ALIVE]), Err(WireError::Version(VERSION + 1)));
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut buffer = [0; PACKET_MAX];
        let text = format!("x{}", "ü".repeat(TOLD_MAX));
        let report = decode_report(encode_told(Level::Warn, &text, &mut buffer)).unwrap();
        assert_eq!(report, Report::Told { level: Level::Warn, text: format!("x{}", "ü".repeat(TOLD_MAX / 2 - 1)) });
    }

    #[test]
    fn a_full_socket_drops_lines_before_it_refuses_reports() {
        let (keeper, agent) = End::pair().unwrap();
        let told = (0..10_000).take_while(|_| keeper.tell(Level::Info, "line")).count();
        assert!(told > 0 && told < 10_000);
        assert_eq!(keeper.send_report(&Report::Gone), Ok(()));
        let more = (0..10_000).take_while(|_| keeper.send_report(&Report::Gone).is_ok()).count();
        assert!(more > told, "{more} reports after {told} lines");
        assert_eq!(keeper.send_report(&Report::Gone), Err(WireError::Full));
        assert!(matches!(agent.next_report(), Ok(Some(Report::Told { .. }))));
        assert_eq!(agent.next_order(), Err(WireError::Garbled));
        drop(keeper);
        while let Ok(Some(_)) = agent.next_report() {}
        assert_eq!(agent.next_report(), Err(WireError::Closed));
    }
}
