//! File, environment and flags become one checked [`Config`], each value with its origin.
//!
//! What must never happen here: a value that is silently ignored, and an error
//! that does not say where the value stands and what would be right.

mod duration;
mod keys;
mod lease;
mod libpq;
mod mistake;
mod read;
mod resolve;
mod url;
mod value;

pub use duration::{NoDuration, duration, duration_text};
pub use keys::{KEYS, Key, help};
pub use mistake::{Errors, Mistake, Origin, nearest};
pub use read::{Environment, Flag, SECRET_VARIABLES};
pub use resolve::{Loaded, Need, Shown, Sources, load};
pub use value::{Literal, signal_text};

use crate::core::Timing;
pub use crate::core::{Patience, When};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything an agent and a keeper have to know, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The name that all hosts share.
    pub service: String,
    /// What to run.
    pub command: Command,
    /// Between two health checks.
    pub cycle: Duration,
    /// How the command is started and stopped.
    pub process: Process,
    /// When the command is started again.
    pub restart: Restart,
    /// How the command's health is judged.
    pub health: Health,
    /// The lease, or none: then the command always runs.
    pub lease: Option<Lease>,
    /// Where the log goes and what it holds.
    pub log: Log,
}

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// A program and its arguments; never empty.
    Argv(Vec<String>),
    /// A line for `$SHELL -c` (`/bin/sh` if that is not set).
    Shell(String),
}

/// Section `process`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The signal that asks the command to stop.
    pub stop_signal: i32,
    /// How long it may take, before the whole tree is killed.
    pub stop_timeout: Duration,
    /// The working directory; none is ours.
    pub directory: Option<PathBuf>,
    /// Who the command runs as; none is us.
    pub user: Option<Identity>,
}

/// A user, resolved when the configuration was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name, for `USER` and `LOGNAME`.
    pub name: String,
    /// The home directory, for `HOME`.
    pub home: PathBuf,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Every group id, the primary one included.
    pub groups: Vec<u32>,
}

/// Section `restart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// After which ends.
    pub when: When,
    /// Pause before a start = delay × min(failed tries, `max_factor`).
    pub delay: Duration,
    /// Caps the pause.
    pub max_factor: u32,
}

/// Section `health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Asked with GET in each cycle; none: alive means healthy.
    pub url: Option<String>,
    /// Never ready for this long after a start: kill and restart.
    pub start_timeout: Duration,
    /// Failing for this long: stop and restart.
    pub timeout: Duration,
    /// The longest that one check may take, whatever the endpoint does.
    pub request_timeout: Duration,
}

/// Section `lease`, where a store is configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The store, with everything that is needed to reach it.
    pub store: Target,
    /// This host's name within the service.
    pub node: String,
    /// The durations.
    pub timing: Timing,
    /// What to do when somebody else holds the lease at the start.
    pub patience: Patience,
}

/// A store's address, resolved: nothing is read from the environment or a file after this.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// `file:/path`: the record and its lock stand beside each other in a local folder.
    File(PathBuf),
    /// `postgres://…`.
    Postgres(Postgres),
}

/// How to reach PostgreSQL, with libpq's variables and files already consulted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postgres {
    /// Host name or address (or a socket's folder) and port, in their order.
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// One password for each host (from `~/.pgpass` they may differ), or none.
    pub passwords: Vec<Option<Secret>>,
    /// As in libpq.
    pub sslmode: SslMode,
    /// PEM file of the authorities to trust; none: the system's.
    pub sslrootcert: Option<PathBuf>,
    /// PEM file of our certificate.
    pub sslcert: Option<PathBuf>,
    /// PEM file of its key.
    pub sslkey: Option<PathBuf>,
    /// The schema of our tables: always named, never looked up by the search path.
    pub schema: String,
    /// Several hosts and no synchronous standby: go on all the same.
    pub accept_async: bool,
    /// What the server shows in its list of sessions; none: the program chooses.
    #[serde(default)]
    pub application_name: Option<String>,
}

/// As in libpq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the certificate is not checked.
    Prefer,
    /// TLS; the certificate is not checked, unless `sslrootcert` is given.
    Require,
    /// TLS, and the certificate is signed by an authority we trust.
    VerifyCa,
    /// The same, and it names the host we asked for.
    VerifyFull,
}

/// A value that no log, status or debug output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// The address without its secrets, for logs.
impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::File(path) => write!(f, "file:{}", path.display()),
            Target::Postgres(pg) => {
                write!(f, "postgres://{}@", pg.user)?;
                for (i, (host, port)) in pg.hosts.iter().enumerate() {
                    write!(f, "{}{host}:{port}", if i == 0 { "" } else { "," })?;
                }
                write!(f, "/{}", pg.database)
            }
        }
    }
}

/// Section `log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The least level that is written: error, warn, info, debug or trace.
    pub level: String,
    /// Another level for some modules.
    pub modules: BTreeMap<String, String>,
    /// Where to, instead of stderr; reopened on HUP.
    pub file: Option<PathBuf>,
}
