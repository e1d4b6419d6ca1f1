//! Where the one-shot commands meet the rest of the house.

use super::check::{Containment, Finding, Mark};
use crate::config::{Config, Loaded, Patience, Target};
use crate::exit;
use crate::status::{Cluster, Local};

/// Runs the command: the keeper. Ends with the exit code of `locum run`.
pub fn run(_loaded: &Loaded, _patience: Patience) -> u8 {
    eprintln!("locum: running is not wired in this build");
    exit::SOFTWARE
}

/// The agent: started by the keeper, never by people.
pub fn agent() -> u8 {
    eprintln!("locum: the agent is started by \"locum run\" alone");
    exit::USAGE
}

/// Tries the store, the rights in it, and the health URL.
pub fn connect(_config: &Config) -> Vec<Finding> {
    vec![Finding {
        mark: Mark::Error(exit::SOFTWARE),
        subject: "connect".into(),
        text: "not wired in this build".into(),
    }]
}

/// How the command's tree could be held on this host; none if that was not found out.
pub fn containment() -> Option<Containment> {
    None
}

/// The SQL that makes schema and tables.
///
/// # Errors
/// The exit code, and why there is none.
pub fn schema_sql(config: &Config) -> Result<String, (u8, String)> {
    match config.lease.as_ref().map(|l| &l.store) {
        Some(Target::Postgres(_)) => Err((exit::SOFTWARE, "printing the schema is not wired in this build".into())),
        _ => Err((exit::CONFIGURATION, "a file: store needs no schema; its file is made by \"locum run\"".into())),
    }
}

/// Makes schema and tables; says what was done.
///
/// # Errors
/// The exit code (69 not reached, 77 rights missing), and why.
pub fn apply_schema(config: &Config) -> Result<String, (u8, String)> {
    schema_sql(config)
}

/// The cluster, as the store shows it.
///
/// # Errors
/// Why the store does not answer.
pub fn cluster(_config: &Config) -> Result<Cluster, String> {
    Err("asking the store is not wired in this build".into())
}

/// This host, as its agent tells it.
///
/// # Errors
/// Why it does not answer.
pub fn local(_config: &Config) -> Result<Local, String> {
    Err("asking the agent is not wired in this build".into())
}
