//! One node: `locum run` with a configuration of its own, and a look at its processes.

use super::ground::{self, MARK};
use super::lab::Lab;
use super::manager::Manager;
use super::process::{self, Tree, children};
use super::{Bed, SERVICE, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The product: `BED_BINARY` (an installed one), else as cargo tells a test; the
/// benchmark finds it from its own place.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match (std::env::var_os("BED_BINARY"), option_env!("CARGO_BIN_EXE_locum")) {
        (Some(path), _) => path.into(),
        (None, Some(path)) => path.into(),
        (None, None) => beside_us().with_file_name("locum"),
    })
}

/// The folder `examples` of this build.
fn beside_us() -> PathBuf {
    let dir = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    // A test is in deps/, the benchmark in examples/.
    dir.with_file_name("examples")
}

/// Where the control socket of a node is: every test has its own, all services one name.
fn runtime(dir: &Path) -> PathBuf {
    dir.join("locum")
}

/// The product's binary with these arguments, run to its end.
pub fn locum(args: &[&str]) -> Output {
    locum_in(args, &[])
}

/// The same with more environment.
pub fn locum_in(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(binary())
        .args(args)
        .envs(environment.iter().copied())
        .env(MARK, ground::run_folder().join("cli"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {}: {e}", binary().display()))
}

/// The beater: an example program of this package, which `cargo test` builds beside the
/// product. Built here when only this test was asked for.
pub fn beater() -> &'static Path {
    static BEATER: OnceLock<PathBuf> = OnceLock::new();
    BEATER.get_or_init(|| {
        let path = beside_us().join("beater");
        if !path.exists() {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            let built =
                Command::new(cargo).args(["build", "--quiet", "--profile", "test", "--example", "beater"]).status();
            assert!(built.is_ok_and(|s| s.success()) && path.exists(), "cannot build {}", path.display());
        }
        path
    })
}

/// What a node is to be. [`NodeSpec::start`] makes it.
pub struct NodeSpec {
    name: String,
    dir: PathBuf,
    beats: PathBuf,
    store: Option<String>,
    ttl: String,
    command: Option<String>,
    beater: Vec<String>,
    sections: Vec<(String, String)>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    stderr_is_stuck: bool,
}

impl NodeSpec {
    pub(super) fn new(bed: &Bed, name: &str) -> NodeSpec {
        let dir = bed.dir().join(format!("node-{name}"));
        fs::create_dir_all(&dir).unwrap();
        ground::open_to_all(&dir, 0o777);
        let mut spec = NodeSpec {
            name: name.into(),
            dir,
            beats: bed.beats_file(),
            store: None,
            ttl: "2s".into(),
            command: None,
            beater: Vec::new(),
            sections: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            stderr_is_stuck: false,
        };
        spec = spec.set("", "cycle = \"500ms\"").set("process", "stop_timeout = \"1s\"");
        spec.set("restart", "delay = \"100ms\"").set("log", "level = \"debug\"")
    }

    /// With a lease in this store.
    pub fn store(mut self, url: &str) -> NodeSpec {
        self.store = Some(url.into());
        self
    }

    /// How long the lease lasts (default 2s).
    pub fn ttl(mut self, ttl: &str) -> NodeSpec {
        self.ttl = ttl.into();
        self
    }

    /// A line for a section of the configuration (`""` is the top); it replaces an earlier
    /// line of the same key.
    pub fn set(mut self, section: &str, line: &str) -> NodeSpec {
        let key = |l: &str| l.split('=').next().unwrap_or_default().trim().to_owned();
        self.sections.retain(|(s, l)| s != section || key(l) != key(line));
        self.sections.push((section.into(), line.into()));
        self
    }

    /// Another command than the beater: the value of the key, as TOML.
    pub fn command(mut self, toml: &str) -> NodeSpec {
        self.command = Some(toml.into());
        self
    }

    /// A shell line as the command.
    pub fn shell(self, line: &str) -> NodeSpec {
        self.command(&toml_array(&["/bin/sh".into(), "-c".into(), line.into()]))
    }

    /// More arguments for the beater.
    pub fn beater(mut self, args: &[&str]) -> NodeSpec {
        self.beater.extend(args.iter().map(|s| (*s).to_owned()));
        self
    }

    /// More arguments for `locum run`.
    pub fn args(mut self, args: &[&str]) -> NodeSpec {
        self.arguments.extend(args.iter().map(|s| (*s).to_owned()));
        self
    }

    /// More environment.
    pub fn env(mut self, key: &str, value: &str) -> NodeSpec {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// On a host of a lab.
    pub fn on(mut self, lab: &Lab, host: usize) -> NodeSpec {
        let enter = [String::from("nsenter"), format!("--net=/run/netns/{}", lab.host(host)), "--".into()];
        self.wrapper.extend(enter);
        self
    }

    /// Without privileges: then no cgroup can be made either.
    pub fn unprivileged(self) -> NodeSpec {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it changes the user");
        self.wrapped(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"])
    }

    /// With all privileges, but on a machine without cgroup v2.
    pub fn without_cgroup(self) -> NodeSpec {
        let script = r#"
            while read -r _ _ _ _ at rest; do case "$rest" in *" - cgroup2 "*) echo "$at";; esac; done \
                </proc/self/mountinfo >"$0"
            while read -r at; do umount -l "$at" || exit 1; done <"$0"
            exec "$@""#;
        let scratch = self.dir.join("mounts").display().to_string();
        self.wrapped(&["unshare", "--mount", "--propagation", "private", "sh", "-c", script, &scratch])
    }

    /// As the main process of a unit; [`Manager::watch`] has to follow.
    pub fn under(mut self, manager: &Manager) -> NodeSpec {
        let script = r#"echo 0 >"$0/cgroup.procs" && exec "$@""#;
        let cgroup = manager.cgroup().display().to_string();
        self.environment.push(("NOTIFY_SOCKET".into(), manager.socket().display().to_string()));
        if let Some(limit) = manager.watchdog() {
            self.environment.push(("WATCHDOG_USEC".into(), limit.as_micros().to_string()));
        }
        self.wrapped(&["sh", "-c", script, &cgroup])
    }

    /// With a file system of its own at this folder: `size` as of tmpfs(5).
    pub fn with_small_disk(self, at: &Path, size: &str) -> NodeSpec {
        let script = format!("mount -t tmpfs -o size={size} none \"$0\" && exec \"$@\"");
        let at = at.display().to_string();
        self.wrapped(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, &at])
    }

    /// With a FUSE file system at this folder.
    pub fn on_fuse(self, at: &Path) -> NodeSpec {
        let below = at.with_extension("below");
        for dir in [at, &below] {
            fs::create_dir_all(dir).unwrap();
        }
        let script = "bindfs \"$0\" \"$1\" && shift && exec \"$@\"";
        let (below, at) = (below.display().to_string(), at.display().to_string());
        self.wrapped(&["unshare", "--mount", "--propagation", "private", "sh", "-c", script, &below, &at])
    }

    /// With another file in place of one of the machine's, for its eyes only.
    pub fn with_file_over(self, file: &Path, over: &str) -> NodeSpec {
        let script = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
        let file = file.display().to_string();
        self.wrapped(&["unshare", "--mount", "--propagation", "private", "sh", "-c", script, &file, over])
    }

    /// As the first process of a pid namespace: with it, everything in there ends.
    /// The child is then `unshare`, and the keeper its child.
    pub fn in_pid_namespace(self) -> NodeSpec {
        self.wrapped(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    }

    fn wrapped(mut self, words: &[&str]) -> NodeSpec {
        self.wrapper.extend(words.iter().map(|s| (*s).to_owned()));
        self
    }

    /// Its stderr is full, and nobody reads it.
    pub fn with_stuck_stderr(mut self) -> NodeSpec {
        self.stderr_is_stuck = true;
        self
    }

    /// The configuration as TOML.
    pub fn toml(&self) -> String {
        let command = self.command.clone().unwrap_or_else(|| {
            let mut words = vec![beater().display().to_string(), "--beats".into(), self.beats.display().to_string()];
            words.extend(self.beater.iter().cloned());
            toml_array(&words)
        });
        let mut top = format!("service = \"{}\"\ncommand = {command}\n", SERVICE);
        let mut lease = String::new();
        if let Some(store) = &self.store {
            lease = format!("store = \"{store}\"\nnode = \"{}\"\nttl = \"{}\"\n", self.name, self.ttl);
        }
        let mut sections = vec![("lease", lease)];
        for (section, line) in &self.sections {
            match sections.iter_mut().find(|(s, _)| s == section) {
                Some((_, text)) => text.push_str(&format!("{line}\n")),
                None if section.is_empty() => top.push_str(&format!("{line}\n")),
                None => sections.push((section, format!("{line}\n"))),
            }
        }
        for (section, text) in sections.iter().filter(|(_, text)| !text.is_empty()) {
            top.push_str(&format!("\n[{section}]\n{text}"));
        }
        top
    }

    /// Writes the configuration, and says where.
    pub fn write(&self) -> PathBuf {
        let file = self.dir.join(format!("{SERVICE}.toml"));
        fs::write(&file, self.toml()).unwrap();
        ground::open_to_all(&file, 0o644);
        file
    }

    /// Starts `locum run`.
    pub fn start(self) -> Node {
        let config = self.write();
        let log = self.dir.join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        ground::open_to_all(&log, 0o666);
        let mut words = self.wrapper.clone();
        words.extend([binary().display().to_string(), "run".into(), "-c".into(), config.display().to_string()]);
        words.extend(self.arguments.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.environment.iter().map(|(k, v)| (k, v))).env(MARK, &self.dir);
        command.env("RUNTIME_DIRECTORY", runtime(&self.dir));
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(file.try_clone().unwrap());
        let mut keep_open = None;
        if self.stderr_is_stuck {
            let (reader, writer) = stuck_stream();
            command.stderr(std::os::fd::OwnedFd::from(writer));
            keep_open = Some(reader);
        } else {
            command.stderr(file);
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot run {words:?}: {e}"));
        let born = process::start_time(child.id() as i32).unwrap_or(0);
        Node {
            name: self.name,
            dir: self.dir,
            config,
            log,
            child,
            indirect: self.wrapper.iter().any(|w| w == "--fork"),
            ended: None,
            born,
            _stuck: keep_open,
        }
    }
}

/// A stream that is full; its reading end must be kept.
fn stuck_stream() -> (UnixStream, UnixStream) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    // Down to the last byte, so that not even a short line fits.
    while writer.write(b".").is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (reader, writer)
}

fn toml_array(words: &[String]) -> String {
    // JSON's strings are TOML's as well, for everything that is used here.
    Value::from(words.to_vec()).to_string()
}

/// A node that was started.
pub struct Node {
    name: String,
    dir: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Child,
    indirect: bool,
    ended: Option<ExitStatus>,
    born: u64,
    _stuck: Option<UnixStream>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What it logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it logged something with these words.
    pub fn wait_log(&self, words: &str, limit: Duration) {
        wait_until(limit, &format!("{} to log {words:?}", self.name), || self.log().contains(words));
    }

    /// The keeper's pid.
    pub fn keeper(&self) -> i32 {
        let pid = self.child.id() as i32;
        if self.indirect { children(pid).first().copied().unwrap_or(pid) } else { pid }
    }

    /// The agent's pid, if there is one at the moment.
    pub fn agent(&self) -> Option<i32> {
        children(self.keeper()).into_iter().find(|pid| is_agent(*pid) && process::alive(*pid))
    }

    /// The agent's pid, soon.
    pub fn wait_agent(&self) -> i32 {
        let mut agent = None;
        wait_until(Duration::from_secs(5), &format!("{} to have an agent", self.name), || {
            agent = self.agent();
            agent.is_some()
        });
        agent.unwrap()
    }

    /// The pid of the command's leader, if it runs.
    pub fn leader(&self) -> Option<i32> {
        // An orphan of the tree is the keeper's child as well: those of the beater are known
        // by their arguments, and the leader leads a group.
        let orphan = |pid: i32| {
            let words = process::arguments(pid);
            // One that is dying has no arguments any more.
            words.is_empty() || words.iter().any(|w| w == "--role") || words == ["sleep", "600"]
        };
        // Between fork and exec an agent still looks like its keeper.
        let born = process::arguments(self.keeper());
        let unborn = |pid: i32| process::arguments(pid) == born;
        let leads = |pid: i32| nix::unistd::getpgid(Some(Pid::from_raw(pid))).is_ok_and(|g| g.as_raw() == pid);
        children(self.keeper())
            .into_iter()
            .find(|p| !is_agent(*p) && process::alive(*p) && leads(*p) && !orphan(*p) && !unborn(*p))
    }

    /// Everything of the command that lives.
    pub fn tree(&self) -> Tree {
        let ours = [self.keeper(), self.child.id() as i32];
        Tree::of(process::marked(&self.dir).into_iter().filter(|p| !ours.contains(p) && !is_agent(*p)))
    }

    /// Everything of this node that lives, keeper and agent included.
    pub fn everything(&self) -> Tree {
        Tree::of(process::marked(&self.dir))
    }

    /// Sends a signal to the keeper.
    pub fn signal(&self, signal: Signal) {
        process::signal(self.keeper(), signal);
    }

    /// Kill -9 of everything at once: what a power failure does to a host.
    pub fn crash(&mut self) {
        process::signal(self.keeper(), Signal::SIGSTOP); // so that nothing is started meanwhile
        process::kill_marked(&self.dir);
        self.ended = self.child.wait().ok();
    }

    /// Whether the process that was started has ended.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_some()
    }

    /// Waits for its end; the exit code, or 128 + n for a signal.
    pub fn wait_end(&mut self, limit: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let what = format!("{} to end", self.name);
        wait_until(limit, &what, || self.has_ended());
        let status = self.ended.unwrap();
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// An orderly stop; the exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.wait_end(Duration::from_secs(10))
    }

    /// The same, for a test in which it may have ended by then.
    pub fn stop_if_running(&mut self) {
        if !self.has_ended() {
            self.stop();
        }
    }

    /// `locum status --json`; none while it does not answer.
    pub fn status(&self) -> Option<Value> {
        let runtime = runtime(&self.dir);
        let arguments = ["status", "-c", &self.config.display().to_string(), "--json"];
        let out = locum_in(&arguments, &[("RUNTIME_DIRECTORY", runtime.to_str().unwrap())]);
        serde_json::from_slice(&out.stdout).ok()
    }

    /// What the node says of itself, soon.
    pub fn wait_status(&self, what: &str, limit: Duration, mut cond: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_until(limit, &format!("{} to say: {what}", self.name), || {
            last = self.status().unwrap_or_default();
            cond(&last)
        });
        last
    }
}

fn is_agent(pid: i32) -> bool {
    process::arguments(pid).get(1).is_some_and(|a| a == "agent")
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- {}: last lines of its log\n{}",
                self.name,
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        if !self.has_ended() {
            process::signal(self.keeper(), Signal::SIGSTOP);
        }
        process::kill_marked(&self.dir);
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A keeper that was killed could not remove it; the next one would. One in a pid
        // namespace has another pid there.
        let logged = self.log().lines().find_map(|l| Some(PathBuf::from(l.split_once("the command's cgroup is ")?.1)));
        ground::remove_cgroups_of(self.child.id(), self.born, logged.as_deref());
    }
}
