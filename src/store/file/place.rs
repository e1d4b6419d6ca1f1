//! The files beside a `file:` record: how they are locked, read, replaced and watched.
//!
//! `PATH` is only ever replaced as a whole, by rename; `PATH.lock` is never renamed
//! and never deleted, because a lock belongs to an inode and not to a name. All of
//! them have mode 0600: whoever can open a file may lock it, even one who can only
//! read it, so a stranger could hold up the service for ever.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::statfs;
use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No file of ours is ever larger; a larger one is not ours.
const BYTES_MAX: u64 = 1024 * 1024;

/// Between two looks at the file, where the kernel cannot tell us of its changes.
const POLL: Duration = Duration::from_millis(50);

/// Where one record stands.
pub struct Place {
    folder: PathBuf,
    name: OsString,
}

/// Held, it is the right to change the files of a place; it ends with the value, or with the process.
pub struct Lock(Flock<File>);

/// When a replacement failed.
#[derive(Debug)]
pub enum Failed {
    /// Nothing was replaced.
    Before(String),
    /// It was replaced, but that may not survive a crash of the machine.
    After(String),
}

impl Place {
    /// The place of `path`. Fails if its folder is missing, or on a file system whose
    /// locks or renames other hosts do not see as we do.
    pub fn new(path: &Path) -> Result<Place, String> {
        let cannot = |cause: String| format!("cannot use file:{}: {cause}", path.display());
        let name = path.file_name().ok_or_else(|| cannot("it names no file".into()))?.to_owned();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // Two ways to the same folder have to meet in one place.
        let folder = folder.canonicalize().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                cannot(format!("the folder {0} does not exist; make it with `mkdir -m 0700 {0}`", folder.display()))
            }
            _ => cannot(format!("the folder {}: {e}", folder.display())),
        })?;
        let system = statfs::statfs(&folder).map_err(|e| cannot(format!("the folder {}: {e}", folder.display())))?;
        #[allow(clippy::unnecessary_cast)] // the width of the field depends on the platform
        if let Some(kind) = shared_file_system(system.filesystem_type().0 as u32) {
            return Err(cannot(format!(
                "{} is on {kind}, where locks and renames do not bind every host; use a local file system \
                 (and a database for several hosts)",
                folder.display()
            )));
        }
        Ok(Place { folder, name })
    }

    /// The path of the record itself.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// A file beside the record.
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.name.clone();
        name.push(suffix);
        self.folder.join(name)
    }

    /// Waits at most `limit` for the right to change these files.
    pub fn lock(&self, limit: Duration) -> Result<Lock, String> {
        let path = self.beside(".lock");
        let cannot = |cause: String| format!("cannot lock {}: {cause}", path.display());
        let end = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            let file = private().write(true).create(true).truncate(false).open(&path).map_err(|e| cannot(told(&e)))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Somebody may have deleted the file between our open and our lock: then it locks nothing.
                Ok(held) if is_at(&held, &path) => return Ok(Lock(held)),
                Ok(_) | Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {}
                Err((_, errno)) => return Err(cannot(errno.to_string())),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(cannot(format!("another process has held it for {:.1} s", limit.as_secs_f64())));
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Whether `lock` is still what everybody else would lock: the file was not deleted under it.
    pub fn is_locked_by(&self, lock: &Lock) -> bool {
        is_at(&lock.0, &self.beside(".lock"))
    }

    /// The content of the record's file, or none if there is no such file.
    pub fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let path = self.path();
        read_file(&path).map_err(|e| format!("cannot read {}: {}", path.display(), told(&e)))
    }

    /// The content of a file beside the record, its end if it is large; nothing if it cannot be read.
    pub fn read_beside(&self, suffix: &str) -> Vec<u8> {
        let read = || {
            let mut file = private().read(true).open(self.beside(suffix))?;
            let beyond = file.metadata()?.len().saturating_sub(BYTES_MAX);
            file.seek(SeekFrom::Start(beyond))?;
            let mut content = Vec::new();
            file.take(BYTES_MAX).read_to_end(&mut content)?;
            io::Result::Ok(content)
        };
        read().unwrap_or_default()
    }

    /// Replaces the record's file as a whole, durably.
    pub fn replace(&self, content: &[u8], _held: &Lock) -> Result<(), Failed> {
        let (path, fresh) = (self.path(), self.beside(".new"));
        let cannot = |e: io::Error| format!("cannot write {}: {}", path.display(), told(&e));
        let write = || {
            let mut file = private().write(true).create(true).truncate(true).open(&fresh)?;
            // Whatever the umask says.
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(content)?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)
        };
        write().map_err(|e| Failed::Before(cannot(e)))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(|e| Failed::After(cannot(e)))
    }

    /// Overwrites a file beside the record: not atomic, not synced, for news that may get lost.
    pub fn overwrite_beside(&self, suffix: &str, content: &[u8], _held: &Lock) -> io::Result<()> {
        private().write(true).create(true).truncate(true).open(self.beside(suffix))?.write_all(content)
    }

    /// Appends a line to a file beside the record. Not synced: a power cut may cost the last
    /// lines, a process that dies none, and a hand-over does not wait for another fsync.
    pub fn append_beside(&self, suffix: &str, line: &str, _held: &Lock) -> Result<(), String> {
        let path = self.beside(suffix);
        let append = || {
            let mut file = private().read(true).append(true).create(true).open(&path)?;
            let mut last = [b'\n'];
            if let Some(at) = file.metadata()?.len().checked_sub(1) {
                file.read_exact_at(&mut last, at)?;
            }
            // A line that a crash tore is closed first.
            let start = if last == [b'\n'] { "" } else { "\n" };
            file.write_all(format!("{start}{line}\n").as_bytes())
        };
        append().map_err(|e| format!("cannot write {}: {}", path.display(), told(&e)))
    }

    /// Watches for the record being replaced.
    pub fn watch(&self) -> Watch {
        let watch = || {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            inotify.add_watch(&self.folder, AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR)?;
            nix::Result::Ok(inotify)
        };
        match watch() {
            Ok(inotify) => Watch::Inotify { inotify, name: self.name.clone(), lost: Cell::new(false) },
            // Users may run out of inotify instances: 128 by default.
            Err(_) => Watch::Poll { path: self.path(), last: Cell::new(stamp(&self.path())) },
        }
    }
}

/// Sees each replacement of the record since the last [`Watch::drain`].
pub enum Watch {
    /// Told by the kernel.
    Inotify {
        /// Does not block, and sees every rename in the folder.
        inotify: Inotify,
        /// Of the record.
        name: OsString,
        /// The folder is gone, and this watch with it.
        lost: Cell<bool>,
    },
    /// Looks again and again.
    Poll {
        /// Of the record.
        path: PathBuf,
        /// What it was at the last drain.
        last: Cell<Stamp>,
    },
}

/// What tells one file from the next at the same path: inode, and time of its last change.
type Stamp = Option<(u64, i64, i64)>;

impl Watch {
    /// Forgets what was seen so far; true if the record was replaced.
    pub fn drain(&self) -> bool {
        match self {
            Watch::Inotify { inotify, name, lost } => {
                let mut replaced = false;
                // The queue ends with EAGAIN.
                while let Ok(events) = inotify.read_events() {
                    for event in events {
                        // An event without a name (a full queue, the end of the folder) may hide one that has ours.
                        replaced |= event.name.as_ref().is_none_or(|moved| moved == name);
                        lost.set(lost.get() || event.mask.contains(AddWatchFlags::IN_IGNORED));
                    }
                }
                replaced
            }
            Watch::Poll { path, last } => {
                let now = stamp(path);
                last.replace(now) != now
            }
        }
    }

    /// Whether it will see nothing any more. To be kept otherwise: closing it takes tens of milliseconds.
    pub fn is_lost(&self) -> bool {
        matches!(self, Watch::Inotify { lost, .. } if lost.get())
    }

    /// Waits at most `limit`; true if the record was replaced since the last drain.
    pub fn wait(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            if self.drain() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match self {
                Watch::Inotify { inotify, .. } => {
                    // Rounded up, so that the last fraction of a millisecond is not spent polling.
                    let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
                    let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], left);
                }
                Watch::Poll { .. } => std::thread::sleep(left.min(POLL)),
            }
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let about = std::fs::symlink_metadata(path).ok()?;
    Some((about.ino(), about.mtime(), about.mtime_nsec()))
}

/// Never through a symbolic link (a rename would replace the link and not its target,
/// and two hosts would part), and never held up by a FIFO.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC);
    options
}

fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match private().read(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if about.nlink() > 1 {
        return Err(io::Error::other(
            "it has a second name (a hard link), which would part from it at the next change",
        ));
    }
    if about.len() > BYTES_MAX {
        return Err(io::Error::other("it is too large to be ours"));
    }
    let mut content = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut content)?;
    Ok(Some(content))
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The system's words, with what they mean where those mislead.
fn told(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(nix::libc::ELOOP) => "it is a symbolic link; name the file itself".into(),
        _ => e.to_string(),
    }
}

/// File systems that other hosts may change, or that leave locks to somebody else
/// (FUSE). Numbers of `statfs(2)` and of the kernel's `magic.h`, and those that some
/// file systems outside of the kernel use.
fn shared_file_system(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB/CIFS",
        0x6573_5546 => "FUSE (sshfs, GlusterFS, …)",
        0x0102_1997 => "9p",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "CephFS",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0x7375_7245 => "Coda",
        0x564c => "NCP",
        0x786f_4256 => "a shared folder of VirtualBox",
        0xbacb_acbc => "a shared folder of VMware",
        0x7c7c_6013 => "a shared folder of Parallels",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_seen_without_inotify_too() {
        let folder = std::env::temp_dir().join(format!("locum-place-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let place = Place::new(&folder.join("record")).unwrap();
        let lock = place.lock(Duration::from_secs(10)).unwrap();
        place.replace(b"one", &lock).unwrap();
        let watch = Watch::Poll { path: place.path(), last: Cell::new(stamp(&place.path())) };
        assert!(!watch.wait(Duration::ZERO));
        place.replace(b"two", &lock).unwrap();
        assert!(watch.wait(Duration::from_secs(10)));
        assert!(!watch.wait(Duration::ZERO));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        assert_eq!(shared_file_system(0x6969), Some("NFS"));
        // ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS.
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1] {
            assert_eq!(shared_file_system(local), None, "{local:#x}");
        }
    }
}
