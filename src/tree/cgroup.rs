//! A cgroup v2 of the command's own: what is born in it cannot leave it unseen.
//!
//! It is a child of the keeper's own cgroup, named after the keeper's life
//! (`locum-<pid namespace>-<pid>-<start time>`), so that a later keeper can tell
//! which ones nobody owns any more. Where none can be made, the tree is killed by
//! group and sweep. What must never happen here: touching a cgroup that a living
//! keeper owns, or that is not named like ours.

use super::proc;
use crate::sys::{self, Entry};
use crate::wire::CgroupFds;
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The command's cgroup.
pub struct Cgroup {
    path: PathBuf,
    folder: OwnedFd,
    procs: OwnedFd,
    kill: OwnedFd,
    events: OwnedFd,
    /// It was killed once. Linux 6.10 and later compares how often a child's cgroup was
    /// killed with how often its *parent's* was, and kills at birth what is born into it.
    killed: Cell<bool>,
}

impl Cgroup {
    /// Makes the cgroup of the keeper that this process is. It is to be tried out before
    /// anything is started in it: [`Cgroup::try_out`].
    ///
    /// # Errors
    /// Where there is no cgroup v2, no right to make one, or no `cgroup.kill` (Linux < 5.14).
    pub fn make() -> io::Result<Cgroup> {
        let path = parent()?.join(own_name()?);
        fs::create_dir(&path)?;
        let opened = Cgroup::open(path.clone());
        if opened.is_err() {
            let _ = fs::remove_dir(&path);
        }
        opened
    }

    fn open(path: PathBuf) -> io::Result<Cgroup> {
        let folder = sys::lift(File::open(&path)?.as_fd())?;
        let kill = File::options().write(true).open(path.join("cgroup.kill"))?;
        let events = File::open(path.join("cgroup.events"))?;
        let procs = sys::lift(File::options().write(true).open(path.join("cgroup.procs"))?.as_fd())?;
        let (kill, events) = (sys::lift(kill.as_fd())?, sys::lift(events.as_fd())?);
        Ok(Cgroup { path, folder, procs, kill, events, killed: Cell::new(false) })
    }

    /// Finds out how a child gets into it alive, by trial.
    ///
    /// # Errors
    /// When there is no way in: it is of no use.
    pub fn try_out(&self) -> io::Result<()> {
        self.killed.set(!sys::can_enter(Entry::Born(self.folder.as_fd())));
        if self.killed.get() && !sys::can_enter(Entry::Moved(self.procs.as_fd())) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "no process can be started in it"));
        }
        Ok(())
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How a child gets into it.
    pub fn entry(&self) -> Entry<'_> {
        if self.killed.get() { Entry::Moved(self.procs.as_fd()) } else { Entry::Born(self.folder.as_fd()) }
    }

    /// What the agent inherits: `cgroup.kill` and `cgroup.events`.
    pub fn handed(&self) -> [BorrowedFd<'_>; 2] {
        [self.kill.as_fd(), self.events.as_fd()]
    }

    /// Kills everything in it.
    pub fn kill(&self) {
        if self.populated() {
            self.killed.set(true);
            let _ = nix::unistd::write(&self.kill, b"1");
        }
    }

    /// Whether a process is in it. Reading also arms the descriptor for POLLPRI.
    pub fn populated(&self) -> bool {
        populated(self.events.as_fd())
    }

    /// The descriptor that is ready (POLLPRI) when [`Cgroup::populated`] may have changed.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Removes it; it has to be empty.
    ///
    /// # Errors
    /// EBUSY when it is not.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

/// In doubt it is populated: that keeps us from saying "gone".
fn populated(events: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 256];
    match nix::sys::uio::pread(events, &mut buffer, 0) {
        Ok(n) => !buffer[..n].split(|b| *b == b'\n').any(|line| line == b"populated 0"),
        Err(_) => true,
    }
}

/// The command may have made cgroups below its own; they go first.
fn remove(path: &Path) -> io::Result<()> {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let _ = remove(&entry.path());
        }
    }
    fs::remove_dir(path)
}

impl CgroupFds {
    /// Kills everything in it.
    pub fn kill(&self) {
        let _ = (&self.kill).write(b"1");
    }

    /// Whether a process is in it; in doubt, yes.
    pub fn populated(&self) -> bool {
        populated(self.events.as_fd())
    }

    /// Removes it; it has to be empty.
    ///
    /// # Errors
    /// EBUSY when it is not.
    pub fn remove(&self) -> io::Result<()> {
        let link = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.kill)))?;
        // Only what is named like ours, in case the file was removed under us ("… (deleted)").
        match link.parent() {
            Some(path) if path.file_name().and_then(|n| n.to_str()).and_then(Name::parse).is_some() => remove(path),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "its path is not known")),
        }
    }
}

/// Kills and removes what keepers of this pid namespace left that did not live to do it
/// themselves. Says for each what came of it.
pub fn sweep_left_overs(limit: Duration) -> Vec<(PathBuf, io::Result<()>)> {
    let (Ok(parent), Ok(namespace)) = (parent(), namespace()) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let orphaned = |name: &Name| name.namespace == namespace && proc::start_of(name.pid) != Some(name.start);
    entries
        .flatten()
        .filter(|e| e.file_name().to_str().and_then(Name::parse).is_some_and(|n| orphaned(&n)))
        .map(|e| (e.path(), clear(&e.path(), limit)))
        .collect()
}

fn clear(path: &Path, limit: Duration) -> io::Result<()> {
    let events = File::open(path.join("cgroup.events"))?;
    let give_up = sys::now().plus(limit);
    while populated(events.as_fd()) {
        if sys::now().has_reached(give_up) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a process in it does not die"));
        }
        fs::write(path.join("cgroup.kill"), "1")?;
        std::thread::sleep(Duration::from_millis(1));
    }
    remove(path)
}

/// Whose cgroup it is.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    namespace: u64,
    pid: i32,
    start: u64,
}

impl Name {
    fn parse(name: &str) -> Option<Name> {
        let mut parts = name.strip_prefix("locum-")?.split('-');
        let name = Name {
            namespace: parts.next()?.parse().ok()?,
            pid: parts.next()?.parse().ok()?,
            start: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(name)
    }
}

fn namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

fn own_name() -> io::Result<String> {
    let pid = std::process::id();
    let start = i32::try_from(pid).ok().and_then(proc::start_of);
    let start = start.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no start time in /proc"))?;
    Ok(format!("locum-{}-{pid}-{start}", namespace()?))
}

/// The folder of our own cgroup.
fn parent() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    folder_of(&mounts, &own).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 is mounted"))
}

/// Where our own v2 cgroup is in the file system: of `mountinfo` the mounts of type
/// cgroup2, of `cgroup` the line `0::` and no other (cgroups(7), proc_pid_mountinfo(5)).
fn folder_of(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = Path::new(cgroup.lines().find_map(|l| l.strip_prefix("0::"))?);
    mountinfo.lines().find_map(|line| {
        // id parent major:minor root point options [tags…] - type source options
        let (front, back) = line.split_once(" - ")?;
        let mut fields = front.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        if !back.starts_with("cgroup2 ") {
            return None;
        }
        // A mount shows the tree from its root down; ours may be outside of it.
        let below = own.strip_prefix(&root).ok()?;
        if below.components().any(|c| c == std::path::Component::ParentDir) {
            return None;
        }
        Some(Path::new(&point).join(below))
    })
}

/// Blank, tab, newline and backslash stand in mountinfo as three octal digits.
fn unescape(field: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(field.to_string(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cgroup_is_found_where_it_is_mounted() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let container = "30 23 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let blank = "30 23 0:26 / /mnt/my\\040groups rw - cgroup2 none rw\n";
        let legacy = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n";
        let table = [
            (unified, "0::/system.slice/a.service\n", Some("/sys/fs/cgroup/system.slice/a.service")),
            (unified, "0::/\n", Some("/sys/fs/cgroup/")),
            (hybrid, "9:name=systemd:/x\n4:memory:/y\n0::/z\n", Some("/sys/fs/cgroup/unified/z")),
            (container, "0::/docker/ab/c\n", Some("/sys/fs/cgroup/c")),
            (container, "0::/other\n", None),
            (container, "0::/../other\n", None),
            (unified, "0::/../other\n", None),
            (blank, "0::/a b\n", Some("/mnt/my groups/a b")),
            (legacy, "9:name=systemd:/x\n", None),
            (legacy, "0::/\n", None),
            (unified, "4:memory:/y\n", None),
            ("", "0::/\n", None),
            ("garbage - cgroup2\n- - -\n", "0::/\n", None),
        ];
        for (mountinfo, cgroup, expected) in table {
            assert_eq!(folder_of(mountinfo, cgroup).as_deref(), expected.map(Path::new), "{cgroup} in {mountinfo}");
        }
    }

    #[test]
    fn only_names_like_ours_are_ours() {
        assert_eq!(Name::parse("locum-4026531836-17-99"), Some(Name { namespace: 4026531836, pid: 17, start: 99 }));
        for other in ["locum-1-2", "locum-1-2-3-4", "locum-a-2-3", "locum", "xlocum-1-2-3", "locum-1-2-3 (deleted)"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
