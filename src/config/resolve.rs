//! From what was written to one checked [`Config`]: conversion, defaults, and the checks
//! between keys. All mistakes are collected; a check between keys is left out while one
//! of them is a mistake already.

use super::duration::duration_text;
use super::keys::{self, Default as KeyDefault, KEYS, LEAST};
use super::mistake::{Errors, Mistake, Origin, has_password, masked};
use super::read::{self, Environment, Flag, Given, Reading};
use super::value::{Kind, Literal, Value, convert};
use super::{Command, Config, Health, Identity, Log, Patience, Process, Restart, When};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file, if one was named.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Environment,
    /// The flags, the command at the end among them.
    pub flags: Vec<Flag>,
    /// What to do while somebody else holds the lease.
    pub patience: Patience,
    /// The working directory: relative paths are made absolute with it.
    pub directory: PathBuf,
    /// What has to be there.
    pub need: Need,
}

/// What has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Everything that `run` needs.
    Everything,
    /// The service, and the store if there is one: the command may be empty.
    Status,
    /// The store alone: the command may be empty, and so may the service.
    Store,
}

impl Sources {
    /// The sources of this process: its environment and its working directory.
    pub fn here(file: Option<PathBuf>, flags: Vec<Flag>, patience: Patience, need: Need) -> Sources {
        let name = |k: OsString| k.into_string().ok();
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((name(k)?, v))).collect();
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Sources { file, environment, flags, patience, directory, need }
    }
}

/// A value as `locum check` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The key.
    pub key: String,
    /// The value, secrets masked.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A configuration that was read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every effective value.
    pub values: Vec<Shown>,
    /// What is allowed, but not as it should be.
    pub warnings: Vec<Mistake>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// Everything that is wrong with it, each with place, key, value and remedy.
pub fn load(sources: &Sources) -> Result<Loaded, Errors> {
    let Some(path) = &sources.file else { return load_text(sources, None) };
    let name = path.display().to_string();
    let origin = Origin::File { name: name.clone(), line: 0 };
    let fail = |text: String| Errors(vec![Mistake::at(&origin, text)]);
    let path = sources.directory.join(path);
    if path.is_dir() {
        return Err(fail("cannot read the configuration: this is a folder".into()));
    }
    let bytes = std::fs::read(&path).map_err(|e| fail(format!("cannot read the configuration: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = 1 + e.as_bytes().iter().take(e.utf8_error().valid_up_to()).filter(|b| **b == b'\n').count();
        fail(format!("cannot read the configuration: line {line} is not UTF-8"))
    })?;
    let mode = std::fs::metadata(&path).map_or(0, |m| m.mode());
    load_text(sources, Some(File { name: &name, text: &text, mode }))
}

/// A file that was read.
struct File<'a> {
    name: &'a str,
    text: &'a str,
    mode: u32,
}

fn load_text(sources: &Sources, file: Option<File<'_>>) -> Result<Loaded, Errors> {
    let mut reading = Reading::default();
    let mode = file.as_ref().map_or(0, |f| f.mode);
    if let Some(file) = &file
        && read::file(file.name, file.text, &mut reading).is_err()
    {
        // What the file lacks because it is broken is not worth a word.
        reading.mistakes.sort();
        return Err(Errors(reading.mistakes));
    }
    read::environment(&sources.environment, &mut reading);
    read::flags(&sources.flags, &mut reading);
    let Reading { layers, meant: faulty, mistakes, warnings } = reading;
    let mut table =
        Table { sources, layers, values: BTreeMap::new(), shown: Vec::new(), mistakes, warnings, faulty, mode };
    table.convert_all();
    let config = table.config();
    table.show_absent();
    let Table { mut shown, mut mistakes, mut warnings, .. } = table;
    // A file's mistakes in the order of its lines, whatever the order of discovery.
    mistakes.sort();
    mistakes.dedup();
    warnings.sort();
    shown.sort_by_key(|s| KEYS.iter().position(|k| s.key.split(' ').next() == Some(k.name)));
    match config {
        Some(config) if mistakes.is_empty() => Ok(Loaded { config, values: shown, warnings }),
        _ => Err(Errors(mistakes)),
    }
}

/// The table of keys, filled in.
pub(super) struct Table<'a> {
    pub(super) sources: &'a Sources,
    pub(super) layers: BTreeMap<&'static str, Given>,
    pub(super) values: BTreeMap<&'static str, Value>,
    pub(super) shown: Vec<Shown>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    pub(super) faulty: BTreeSet<&'static str>,
    /// The permission bits of the file.
    pub(super) mode: u32,
}

impl Table<'_> {
    fn convert_all(&mut self) {
        for key in KEYS {
            if let Some(given) = self.layers.get(key.name).cloned() {
                match convert(&key.kind, &given.literal) {
                    Ok(value) => {
                        self.values.insert(key.name, value);
                    }
                    Err(right) => self.wrong(key.name, &right),
                }
                self.refuse_open_secret(key.name, &key.kind, &given);
            }
            if let (KeyDefault::Text(text), false) = (key.default, self.values.contains_key(key.name)) {
                // The defaults convert: a test in `keys` tries each.
                if let Ok(value) = convert(&key.kind, &Literal::Plain(text.into())) {
                    self.values.insert(key.name, value);
                }
            }
            let secret = matches!(key.kind, Kind::Store | Kind::Url);
            if let (Some(value), false) = (self.values.get(key.name), self.faulty.contains(key.name)) {
                let value = if secret { masked(&value.to_string()) } else { value.to_string() };
                let origin = self.origin(key.name);
                let value = if value.is_empty() { "none".into() } else { value };
                self.shown.push(Shown { key: key.name.into(), value, origin });
            }
        }
    }

    /// What nobody gave is effective too.
    fn show_absent(&mut self) {
        for key in KEYS.iter().filter(|k| !k.name.starts_with("lease.")) {
            let value = match (key.name, key.default) {
                ("health.url", _) => "none: alive means healthy",
                ("log.file", _) => "stderr",
                (_, KeyDefault::Nothing) => "none",
                _ => continue,
            };
            if self.shown.iter().all(|s| s.key != key.name) {
                let origin = Origin::Default(String::new());
                self.shown.push(Shown { key: key.name.into(), value: value.into(), origin });
            }
        }
    }

    /// A password in a flag can be read by everybody with `ps`; in an open file, by some.
    fn refuse_open_secret(&mut self, key: &'static str, kind: &Kind, given: &Given) {
        let Some(text) = given.literal.text() else { return };
        let secret = match kind {
            Kind::Store => has_password(text),
            Kind::Url => {
                let end = text.match_indices('/').nth(2).map_or(text.len(), |(i, _)| i);
                has_password(&text[..end])
            }
            _ => false,
        };
        match &given.origin {
            _ if !secret => {}
            Origin::Flag(_) => {
                let instead = match kind {
                    Kind::Store => "write it into ~/.pgpass, PGPASSWORD or the configuration file",
                    _ => "write the address into the configuration file",
                };
                self.faulty.insert(key);
                let text = format!("{key}: a password in a flag is seen by everybody in ps; {instead}");
                self.mistakes.push(Mistake::at(&given.origin, text));
            }
            Origin::File { .. } if self.mode & 0o044 != 0 => {
                let text = format!(
                    "{key} holds a password, and others can read this file (mode {:04o}); chmod 600 it",
                    self.mode & 0o7777
                );
                self.warnings.push(Mistake::at(&given.origin, text));
            }
            _ => {}
        }
    }

    pub(super) fn origin(&self, key: &str) -> Origin {
        self.layers.get(key).map_or(Origin::Default(String::new()), |g| g.origin.clone())
    }

    pub(super) fn is_given(&self, key: &str) -> bool {
        self.layers.contains_key(key)
    }

    /// Notes that what was written for `key` is wrong.
    pub(super) fn wrong(&mut self, key: &'static str, right: &str) {
        self.faulty.insert(key);
        let mistake = match self.layers.get(key) {
            Some(given) => {
                let secret = matches!(keys::find(key).map(|k| k.kind), Some(Kind::Store | Kind::Url));
                let value = given.literal.to_string();
                let value = if secret { masked(&value) } else { value };
                Mistake::at(&given.origin, format!("{key} = {value}: {right}"))
            }
            None => Mistake::missing(format!("{key}: {right}")),
        };
        self.mistakes.push(mistake);
    }

    /// Sets a value that was worked out, if none was given, and shows it.
    pub(super) fn derive(&mut self, key: &'static str, value: Value, how: &str) {
        if !self.is_given(key) {
            self.shown.push(Shown { key: key.into(), value: value.to_string(), origin: Origin::Default(how.into()) });
            self.values.insert(key, value);
        }
    }

    pub(super) fn duration(&self, key: &str) -> Duration {
        match self.values.get(key) {
            Some(Value::Duration(d)) => *d,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.values.get(key) {
            Some(Value::Text(s)) => Some(s.clone()),
            _ => None,
        }
    }

    fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.sources.directory.join(self.text(key)?);
        if let Some(shown) = self.shown.iter_mut().find(|s| s.key == key) {
            shown.value = path.display().to_string();
        }
        Some(path)
    }

    fn config(&mut self) -> Option<Config> {
        let command = self.command();
        let cycle = self.duration("cycle");
        let process = Process {
            stop_signal: if let Some(Value::Signal(n)) = self.values.get("process.stop_signal") { *n } else { 15 },
            stop_timeout: self.duration("process.stop_timeout"),
            directory: self.directory(),
            user: self.user(),
        };
        let restart = Restart {
            when: match self.text("restart.when").as_deref() {
                Some("never") => When::Never,
                Some("on-failure") => When::OnFailure,
                _ => When::Always,
            },
            delay: self.duration("restart.delay"),
            max_factor: if let Some(Value::Count(n)) = self.values.get("restart.max_factor") { *n } else { 1 },
        };
        let health = self.health(cycle);
        let lease = self.lease(cycle);
        let service = self.service(command.as_ref());
        let log = Log {
            level: self.text("log.level").unwrap_or_default(),
            modules: if let Some(Value::Levels(m)) = self.values.get("log.modules") {
                m.clone()
            } else {
                BTreeMap::new()
            },
            file: self.path("log.file"),
        };
        let command = command.or((self.sources.need != Need::Everything).then(|| Command::Argv(Vec::new())))?;
        Some(Config { service: service?, command, cycle, process, restart, health, lease: lease?, log })
    }

    fn command(&mut self) -> Option<Command> {
        if let Some(Value::Command(command)) = self.values.get("command") {
            return Some(command.clone());
        }
        let missing = !self.is_given("command") && !self.faulty.contains("command");
        if self.sources.need == Need::Everything && missing {
            self.wrong(
                "command",
                "missing; write command = [\"/usr/bin/shop\", \"--port\", \"80\"], or give it behind --",
            );
        }
        None
    }

    fn service(&mut self, command: Option<&Command>) -> Option<String> {
        if self.faulty.contains("service") {
            return None;
        }
        if let Some(service) = self.text("service") {
            return Some(service);
        }
        if self.sources.need == Need::Store {
            return Some(String::new());
        }
        let base = match command {
            Some(command) => base_name(command),
            None if self.sources.need == Need::Everything || self.faulty.contains("command") => return None,
            None => String::new(),
        };
        if command.is_none() && !self.is_given("lease.store") {
            self.wrong("service", "missing; name the configuration with -c FILE, or the service with --service");
            return None;
        }
        if self.is_given("lease.store") {
            let example = if base.is_empty() { "shop" } else { &base };
            self.wrong(
                "service",
                &format!("missing; with a store all hosts have to share a name: write service = {example:?}"),
            );
            return None;
        }
        let service = if base.is_empty() { "command".into() } else { base };
        self.derive("service", Value::Text(service.clone()), "the command's name");
        Some(service)
    }

    fn directory(&mut self) -> Option<PathBuf> {
        let path = self.path("process.directory")?;
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => self.wrong("process.directory", "this is no folder; write the path of one"),
            // It may be mounted or made by the time the command starts here.
            Err(e) => {
                let origin = self.origin("process.directory");
                self.warnings
                    .push(Mistake::at(&origin, format!("process.directory: cannot enter {}: {e}", path.display())));
            }
        }
        Some(path)
    }

    fn user(&mut self) -> Option<Identity> {
        let name = self.text("process.user")?;
        match identity(&name) {
            Ok(identity) => {
                let me = nix::unistd::geteuid();
                if !me.is_root() && me.as_raw() != identity.uid {
                    self.wrong(
                        "process.user",
                        "only root can run the command as another user; start Locum as root, or leave the key out",
                    );
                }
                Some(identity)
            }
            Err(right) => {
                self.wrong("process.user", &right);
                None
            }
        }
    }

    fn health(&mut self, cycle: Duration) -> Health {
        let timeout = self.duration("health.timeout");
        self.derive(
            "health.request_timeout",
            Value::Duration(timeout.min(Duration::from_secs(5))),
            "min(5s, health.timeout)",
        );
        let url = self.text("health.url");
        let matters = url.is_some() || self.is_given("health.timeout");
        if matters && timeout <= cycle && !self.any_faulty(&["health.timeout", "cycle"]) {
            let (t, c) = (duration_text(timeout), duration_text(cycle));
            // At least two checks have to fail: one answer that is lost restarts nothing.
            let (longer, shorter) =
                (duration_text(cycle * 3), duration_text(super::lease::round_down(timeout / 3).max(LEAST)));
            if self.is_given("health.timeout") {
                let right =
                    format!("it must be longer than cycle ({c}); write \"{longer}\" here, or cycle = \"{shorter}\"");
                self.wrong("health.timeout", &right);
            } else {
                let right = format!(
                    "it must be shorter than health.timeout (default {t}); write health.timeout = \"{longer}\""
                );
                self.wrong("cycle", &right);
            }
        }
        let request_timeout = self.duration("health.request_timeout");
        if request_timeout > timeout && !self.any_faulty(&["health.request_timeout", "health.timeout"]) {
            let t = duration_text(timeout);
            self.wrong(
                "health.request_timeout",
                &format!("it must not be longer than health.timeout ({t}); write at most \"{t}\""),
            );
        }
        Health { url, start_timeout: self.duration("health.start_timeout"), timeout, request_timeout }
    }

    pub(super) fn any_faulty(&self, keys: &[&str]) -> bool {
        keys.iter().any(|k| self.faulty.contains(k))
    }
}

/// The name of a command: the last part of its program's path.
fn base_name(command: &Command) -> String {
    let program = match command {
        Command::Argv(argv) => argv.first().map_or("", String::as_str),
        Command::Shell(line) => line.split_whitespace().find(|w| *w != "exec" && !w.contains('=')).unwrap_or(""),
    };
    let name = Path::new(program).file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    name.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(60).collect()
}

/// Looks a user up, by name or number, with every group.
fn identity(name: &str) -> Result<Identity, String> {
    use nix::unistd::{Uid, User, getgrouplist};
    let cannot = |e: nix::errno::Errno| format!("cannot look up this user: {}", e.desc());
    let user = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    let user =
        user.map_err(cannot)?.ok_or("there is no such user on this machine; write the name of one that exists")?;
    let c_name = CString::new(user.name.as_str()).map_err(|_| "a zero byte cannot be part of a name".to_string())?;
    let groups = getgrouplist(&c_name, user.gid).map_err(cannot)?;
    Ok(Identity {
        home: user.dir,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        name: user.name,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
