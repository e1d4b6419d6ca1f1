//! Where a run of the tests keeps its things, and how the next run finds what a
//! killed one left.
//!
//! A run owns one folder, named by its pid and start time. Every process started
//! for it has [`MARK`] in its environment or works in a folder below; every network
//! namespace has the pid in its name. Nothing else is ever ended or removed.

use super::process;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable that marks a process of the test bed; its value is a folder.
pub const MARK: &str = "BED_OF";

fn base() -> PathBuf {
    std::env::temp_dir().join("locum-bed")
}

/// The folder of this run. The first call sweeps what dead runs left.
pub fn run_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let _ = fs::create_dir_all(base());
        sweep();
        let me = std::process::id();
        let dir = base().join(format!("{me}-{}", process::start_time(me as i32).unwrap_or(0)));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        open_to_all(&base(), 0o755);
        open_to_all(&dir, 0o755);
        janitor(&dir);
        dir
    })
}

/// Starts a process that waits for our end, however it comes, and clears up after us.
fn janitor(dir: &Path) {
    let script = r#"
        cat >/dev/null
        for round in 1 2 3; do
            for p in /proc/[0-9]*; do
                if tr '\0' '\n' <"$p/environ" | grep -q "^BED_OF=$1/" || readlink "$p/cwd" | grep -q "^$1/"; then
                    kill -9 "${p#/proc/}"
                fi
            done
            sleep 0.1
        done
        for n in $(ip netns list | cut -d' ' -f1); do case $n in "$2"*) ip netns del "$n";; esac; done
        [ -n "$BED_KEEP" ] || rm -rf "$1" || rm -rf "$1""#;
    let prefix = netns_prefix(&std::process::id().to_string());
    let child = Command::new("setsid")
        .args(["sh", "-c", script, "sh", &dir.display().to_string(), &prefix])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // Its standard input ends when we do: the pipe is ours, and no child of ours inherits it.
    std::mem::forget(child);
}

/// The prefix of this run's network namespaces.
pub fn netns_prefix(pid: &str) -> String {
    format!("lb{pid}-")
}

/// The name of a cgroup of this run.
pub fn cgroup_name(which: &str) -> String {
    format!("bed-{}-{which}", std::process::id())
}

/// Removes the cgroup that a keeper made for its command, if it is still there.
pub fn remove_cgroups_of(keeper: u32, born: u64, logged: Option<&Path>) {
    let suffix = format!("-{keeper}-{born}");
    let ours = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&suffix));
    let beside_us = fs::read_dir(unified()).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| ours(p));
    for path in beside_us.chain(logged.map(Path::to_owned)).filter(|p| p.exists()) {
        remove_cgroup(&path);
    }
}

/// Where cgroup v2 is mounted: on hybrid machines not at /sys/fs/cgroup.
pub fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
    };
    mounts.lines().find_map(of).unwrap_or_default()
}

/// Our own cgroup v2.
pub fn unified() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default().to_owned();
    cgroup_mount().join(own)
}

/// Kills what is in a cgroup, and removes it with all that are below.
pub fn remove_cgroup(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
    for _ in 0..200 {
        for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    eprintln!("cannot remove {}", path.display());
}

/// A folder of its own for one test.
pub fn fresh_folder(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = run_folder().join(format!("{n:03}-{name}"));
    fs::create_dir_all(&dir).unwrap();
    open_to_all(&dir, 0o755);
    dir
}

/// Removes a test's folder, and whatever still runs for it. `BED_KEEP=1` keeps the files.
pub fn remove_folder(dir: &Path) {
    process::kill_marked(dir);
    if std::env::var_os("BED_KEEP").is_none() {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Sets a mode, whatever the umask is.
pub fn open_to_all(path: &Path, mode: u32) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
}

/// A port that nobody listens on at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Ends and removes what runs left that no longer live.
fn sweep() {
    for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, start)) = name.split_once('-') else { continue };
        let lives = pid.parse().ok().and_then(process::start_time).is_some_and(|t| t.to_string() == start);
        if lives {
            continue;
        }
        process::kill_marked(&entry.path());
        let _ = fs::remove_dir_all(entry.path());
        let prefix = netns_prefix(pid);
        let listed = Command::new("ip").args(["netns", "list"]).output().map(|o| o.stdout).unwrap_or_default();
        for line in String::from_utf8_lossy(&listed).lines() {
            let ns = line.split_whitespace().next().unwrap_or_default();
            if ns.starts_with(&prefix) {
                let _ = Command::new("ip").args(["netns", "del", ns]).status();
            }
        }
    }
}
