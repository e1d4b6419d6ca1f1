//! The control socket: where `locum status` asks the agent of this host.
//!
//! A Unix stream socket, `<service>.<node>.sock` in a folder that only root and the
//! service's user can write to. One request a connection: a line, `status`; the answer
//! is a document of JSON. The thread that serves it sleeps until somebody connects.
//!
//! What must never happen here: that a caller, whatever it sends or leaves unsent,
//! holds up the agent or fills its memory; that a stranger gets an answer; and that
//! a socket which a living agent of another keeper serves is taken away from it.

use crate::status::Local;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use nix::unistd::{Uid, getpid, getppid, getuid};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// From the connection to the answer.
const SERVE_LIMIT: Duration = Duration::from_secs(1);
/// How long a client waits.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// At most so many are served at once; who comes on top of them is sent away.
const CALLERS_MAX: usize = 4;
/// The most bytes of a request.
const REQUEST_BYTES_MAX: usize = 256;
/// The most bytes of an answer. Less than a Unix socket takes in one go.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What a client can know of a connection that was closed on it.
const CLOSED: &str = "it closed the connection: it is busy, or you are neither root nor its user";
/// The longest path that `bind` takes: 108 bytes with the zero at their end, see unix(7).
const PATH_BYTES_MAX: usize = 107;

/// An answer on the wire.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Status(Box<Local>),
    Error(String),
}

/// The socket of this agent, served by a thread of its own for the rest of the process's life.
pub struct Control {
    path: PathBuf,
    inode: (u64, u64),
}

impl Control {
    /// Makes the socket and serves it. `status` is called on the serving thread, and
    /// should come back within a second; none means that the agent gave no answer.
    ///
    /// Replaces the socket of an agent that is dead, or that has the same keeper. Fails
    /// if another keeper's agent serves it, or if no safe folder can be had.
    pub fn serve(
        service: &str,
        node: &str,
        status: impl Fn() -> Option<Local> + Send + 'static,
    ) -> Result<Control, String> {
        let folder = own_folder();
        prepare(&folder)?;
        let path = folder.join(name(&folder, service, node));
        let cannot = |e: io::Error| format!("cannot serve {}: {e}", path.display());
        if let Some(server) = living_server(&path) {
            return Err(format!("cannot serve {}: {server} serves it", path.display()));
        }
        // Bound under another name and moved: the socket is never seen missing or half made.
        let fresh = folder.join(format!(".{}", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let publish = || {
            let listener = UnixListener::bind(&fresh)?;
            listener.set_nonblocking(true)?;
            std::fs::set_permissions(&fresh, Permissions::from_mode(0o660))?;
            std::fs::rename(&fresh, &path)?;
            Ok((listener, std::fs::symlink_metadata(&path)?))
        };
        let (listener, about) = publish().map_err(cannot)?;
        thread::Builder::new()
            .name("control".into())
            .stack_size(128 * 1024)
            .spawn(move || serve(&listener, &status))
            .map_err(cannot)?;
        Ok(Control { inode: (about.dev(), about.ino()), path })
    }
}

impl Drop for Control {
    /// Removes the socket, unless a successor's stands there by now.
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|there| (there.dev(), there.ino()) == self.inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Asks the agent of `service` and `node` on this host, for two seconds at most.
///
/// Fails if none runs here, if it is not ours to ask, or if it does not answer.
pub fn ask(service: &str, node: &str) -> Result<Local, String> {
    let mut folders = vec![own_folder(), PathBuf::from("/run/locum")];
    folders.dedup();
    let mut trouble = format!("no agent of {service} runs on this host, or none that you may ask");
    for folder in folders {
        let path = folder.join(name(&folder, service, node));
        match ask_at(&path) {
            Ok(Answer::Status(local)) if local.service == service && local.node == node => return Ok(*local),
            Ok(Answer::Status(local)) => {
                trouble = format!("cannot ask {}: it is the agent of {}@{}", path.display(), local.service, local.node);
            }
            Ok(Answer::Error(why)) => trouble = format!("cannot ask {}: {why}", path.display()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                trouble = format!("cannot ask {}: {CLOSED}", path.display());
            }
            Err(e) => trouble = format!("cannot ask {}: {e}", path.display()),
        }
    }
    Err(trouble)
}

fn ask_at(path: &Path) -> io::Result<Answer> {
    let end = Instant::now() + ASK_LIMIT;
    let mut stream = connect_to(path)?;
    if !may_talk(&stream) {
        return Err(io::Error::other("it is served by another user"));
    }
    stream.write_all(b"status\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        await_input(&stream, end)?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("its answer is too large"));
        }
    }
    if answer.is_empty() {
        return Err(io::Error::other(CLOSED));
    }
    serde_json::from_slice(&answer).map_err(|e| io::Error::other(format!("its answer means nothing: {e}")))
}

fn await_input(stream: &UnixStream, end: Instant) -> io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], left) {
        Ok(0) => Err(io::Error::other(format!("no answer within {} s", ASK_LIMIT.as_secs()))),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// One who connected, and what it sent so far.
struct Caller {
    stream: UnixStream,
    request: Vec<u8>,
    end: Instant,
}

/// Without callers it sleeps in `poll` without a time-out.
fn serve(listener: &UnixListener, status: &dyn Fn() -> Option<Local>) {
    let mut callers: Vec<Caller> = Vec::new();
    loop {
        let mut ready = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        ready.extend(callers.iter().map(|caller| PollFd::new(caller.stream.as_fd(), PollFlags::POLLIN)));
        let now = Instant::now();
        let wait = match callers.iter().map(|caller| caller.end).min() {
            None => PollTimeout::NONE,
            // Rounded up, so that the last fraction of a millisecond is not spent polling.
            Some(end) => PollTimeout::try_from(end.saturating_duration_since(now) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut ready, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                log::warn!("the control socket is closed: cannot wait for callers: {errno}");
                return;
            }
        }
        let knocked = ready[0].any().unwrap_or(false);
        let now = Instant::now();
        callers.retain_mut(|caller| now < caller.end && caller.goes_on(status));
        if knocked {
            admit(listener, &mut callers);
        }
    }
}

/// Takes one caller in, or sends it away.
fn admit(listener: &UnixListener, callers: &mut Vec<Caller>) {
    match listener.accept() {
        Ok((stream, _)) => {
            if callers.len() < CALLERS_MAX && may_talk(&stream) && stream.set_nonblocking(true).is_ok() {
                callers.push(Caller { stream, request: Vec::new(), end: Instant::now() + SERVE_LIMIT });
            }
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        // Out of descriptors or memory: the caller stays in the queue, and must not keep us spinning.
        Err(_) => thread::sleep(SERVE_LIMIT),
    }
}

impl Caller {
    /// Reads on, and answers if the request is complete; false when there is nothing left to do.
    fn goes_on(&mut self, status: &dyn Fn() -> Option<Local>) -> bool {
        let mut piece = [0; REQUEST_BYTES_MAX];
        match self.stream.read(&mut piece) {
            Ok(0) => return false,
            Ok(n) => self.request.extend_from_slice(&piece[..n]),
            Err(e) => return matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
        let Some(end) = self.request.iter().position(|byte| *byte == b'\n') else {
            return self.request.len() < REQUEST_BYTES_MAX;
        };
        let answer = match &self.request[..end] {
            b"status" => status().map_or_else(
                || Answer::Error("the agent does not answer".into()),
                |local| Answer::Status(Box::new(local)),
            ),
            _ => Answer::Error("this is no request that it knows".into()),
        };
        // One write: the socket takes it whole, or the caller goes without.
        if let Ok(text) = serde_json::to_vec(&answer) {
            let _ = self.stream.write(&text);
        }
        false
    }
}

/// Root, and the user we are.
fn may_talk(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || Uid::from_raw(peer.uid()) == getuid())
}

/// Connects without waiting: a full queue is an error (EAGAIN).
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// Who serves the socket at `path`, unless it is nobody, or has our keeper: then it is ending.
fn living_server(path: &Path) -> Option<String> {
    let stream = match connect_to(path) {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some("a process that does not answer".into()),
        Err(_) => return None,
    };
    let pid = getsockopt(&stream, sockopt::PeerCredentials).ok()?.pid();
    let ours = pid == getpid().as_raw() || parent(pid) == Some(getppid().as_raw());
    (!ours).then(|| format!("process {pid}, of another keeper,"))
}

/// The parent of a process, from `/proc/PID/stat`: the second field after the name in parentheses.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Where our agents' sockets are.
fn own_folder() -> PathBuf {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // Made by a service manager for a unit of ours (systemd: RuntimeDirectory=locum); that of
    // another unit is no place where anybody would look.
    if let Some(folder) = set("RUNTIME_DIRECTORY").filter(|folder| folder.ends_with("locum")) {
        return folder;
    }
    if getuid().is_root() {
        return PathBuf::from("/run/locum");
    }
    match set("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("locum"),
        None => PathBuf::from(format!("/tmp/locum-{}", getuid())),
    }
}

/// Makes the folder, and makes sure that nobody but us and root can put anything into it.
fn prepare(folder: &Path) -> Result<(), String> {
    let cannot = |cause: String| format!("cannot use {} for the control socket: {cause}", folder.display());
    let mode = if getuid().is_root() { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(e.to_string())),
        _ => {}
    }
    // Of the folder itself, not of what a link that somebody left there points to.
    let about = std::fs::symlink_metadata(folder).map_err(|e| cannot(e.to_string()))?;
    if !about.is_dir() {
        return Err(cannot("it is not a folder".into()));
    }
    if about.uid() != 0 && Uid::from_raw(about.uid()) != getuid() {
        return Err(cannot(format!("it belongs to user {}", about.uid())));
    }
    if about.mode() & 0o022 != 0 {
        return Err(cannot("others can write to it".into()));
    }
    Ok(())
}

/// The socket's name: what people expect, or a hash where that would be too long for an
/// address, or would leave the folder.
fn name(folder: &Path, service: &str, node: &str) -> String {
    let plain = format!("{service}.{node}.sock");
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fits = folder.as_os_str().len() + 1 + plain.len() <= PATH_BYTES_MAX;
    if fits && plain.chars().all(safe) && !plain.starts_with('.') {
        return plain;
    }
    // FNV-1a, 64 bits. The zero keeps ("a", "bc") from ("ab", "c").
    let bytes = service.bytes().chain([0]).chain(node.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_a_plain_name_if_that_is_possible() {
        let folder = Path::new("/run/locum");
        assert_eq!(name(folder, "shop", "alpha.example.org"), "shop.alpha.example.org.sock");
        assert_eq!(name(folder, "shop", ""), "shop..sock");
        let long = "x".repeat(200);
        for (service, node) in [("shop", long.as_str()), ("../shop", "a"), ("a b", "c"), (".shop", "a"), ("größe", "a")]
        {
            let name = name(folder, service, node);
            assert_eq!(name.len(), 21, "{service} {node}");
            assert!(name.ends_with(".sock"));
        }
        assert_ne!(name(folder, "a/", "bc"), name(folder, "a/b", "c"));
    }

    #[test]
    fn a_process_knows_its_parent() {
        assert_eq!(parent(getpid().as_raw()), Some(getppid().as_raw()));
        assert_eq!(parent(-1), None);
    }
}
