//! The one table of keys: it yields the parser, the environment names, the help and
//! what `locum check` shows. A key that is not in here does not exist.

use super::value::Kind;
use std::time::Duration;

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file, sections with dots.
    pub name: &'static str,
    /// What its value has to be.
    pub kind: Kind,
    /// What holds if nobody gives it.
    pub default: Default,
    /// One line for people.
    pub help: &'static str,
}

/// What holds if nobody gives a key.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Nothing.
    Nothing,
    /// This text, converted like a given one.
    Text(&'static str),
    /// Worked out from other values, in these words.
    Derived(&'static str),
}

impl Key {
    /// The environment variable that gives this key.
    pub fn variable(&self) -> String {
        format!("LOCUM_{}", self.name.to_uppercase().replace('.', "_"))
    }

    /// The default, for people.
    pub fn default_text(&self) -> &'static str {
        match self.default {
            Default::Nothing => "-",
            Default::Text(text) | Default::Derived(text) => text,
        }
    }
}

/// From `least`, in milliseconds, to a day.
const fn span(least: u64) -> Kind {
    Kind::Duration { least: Duration::from_millis(least), most: Duration::from_secs(86_400) }
}

const fn key(name: &'static str, kind: Kind, default: Default, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

use self::Default::{Derived, Nothing, Text};

/// Every key, in the order in which people meet them.
pub const KEYS: &[Key] = &[
    key("service", Kind::Name, Derived("the command's name without a store"), "the name that all hosts share"),
    key("command", Kind::Command, Nothing, "what to run: an array, or a string for $SHELL -c"),
    key("cycle", span(10), Text("5s"), "between two health checks, and renewals"),
    key("process.stop_signal", Kind::Signal, Text("TERM"), "the signal that asks the command to stop"),
    key("process.stop_timeout", span(0), Text("20s"), "then the whole tree is killed"),
    key("process.directory", Kind::Path, Nothing, "the command's working directory"),
    key("process.user", Kind::User, Nothing, "who the command runs as"),
    key(
        "restart.when",
        Kind::Choice(&["always", "on-failure", "never"]),
        Text("always"),
        "after which ends it is started again",
    ),
    key("restart.delay", span(0), Text("3s"), "pause before a start, times the failed tries"),
    key("restart.max_factor", Kind::Count { least: 1, most: 10_000 }, Text("10"), "caps that pause"),
    key("health.url", Kind::Url, Nothing, "asked with GET each cycle; none: alive is healthy"),
    key("health.start_timeout", span(1), Text("60s"), "not ready for so long after a start: restart"),
    key("health.timeout", span(1), Text("30s"), "failing for so long: restart"),
    key("health.request_timeout", span(1), Derived("min(5s, health.timeout)"), "the longest that one check may take"),
    key("lease.store", Kind::Store, Nothing, "postgres://… or file:…; none: no lease, always run"),
    key("lease.node", Kind::Name, Derived("the host's name"), "this host's name in the service"),
    key("lease.ttl", span(500), Text("20s"), "how long the lease lasts without a renewal"),
    key("lease.renew", span(10), Derived("min(cycle, ttl/4)"), "between two renewals"),
    key("lease.store_timeout", span(10), Derived("min(2s, ttl/10)"), "the longest that one store call may take"),
    key("lease.stop_timeout", span(0), Derived("min(5s, ttl/4)"), "time to stop when the lease is in doubt"),
    key("lease.kill_margin", span(5), Derived("min(500ms, ttl/20)"), "time to kill the tree and confirm it"),
    key("lease.clock_error", Kind::Fraction { most: 0.1 }, Text("0.002"), "bound on the error of a clock's rate"),
    key(
        "lease.async_store",
        Kind::Choice(&["refuse", "accept"]),
        Text("refuse"),
        "several hosts, no synchronous standby",
    ),
    key("lease.schema", Kind::Identifier, Text("locum"), "the database schema of the tables"),
    key("log.level", Kind::Choice(LEVELS), Text("info"), "error, warn, info, debug or trace"),
    key("log.modules", Kind::Levels, Nothing, "a level per module: { store = \"debug\" }"),
    key("log.file", Kind::Path, Derived("stderr"), "where the log goes; reopened on HUP"),
];

/// The levels of the log, most severe first.
pub const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

/// The smallest renewal cycle, store time-out and kill margin that may be proposed.
pub const LEAST: Duration = Duration::from_millis(10);

/// The key of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// The key that somebody probably meant: a typo, or a right name in a wrong section.
pub fn meant(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let leaf = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    super::mistake::nearest(name, KEYS.iter().map(|k| k.name))
        .or_else(|| KEYS.iter().map(|k| k.name).find(|k| leaf(k) == last))
        .or_else(|| {
            let leaves: Vec<&str> = KEYS.iter().map(|k| leaf(k.name)).collect();
            let near = super::mistake::nearest(last, leaves)?;
            KEYS.iter().map(|k| k.name).find(|k| leaf(k) == near)
        })
}

/// The names of the sections.
pub fn sections() -> Vec<&'static str> {
    let mut all: Vec<&str> = KEYS.iter().filter_map(|k| Some(k.name.split_once('.')?.0)).collect();
    all.dedup();
    all
}

/// The table as `locum help configuration` prints it.
pub fn help() -> String {
    let mut out = String::from(
        "Keys of the configuration file (TOML). A flag outranks the environment, the\n\
         environment the file, the file the default. A variable is the key in upper\n\
         case, dots as underscores: lease.ttl is LOCUM_LEASE_TTL; an empty one counts\n\
         as not set. Any key is also a flag: --set lease.ttl=30s. Durations have a\n\
         unit: 500ms, 5s, 2m, 1h.\n\n",
    );
    for k in KEYS {
        out.push_str(&format!("  {:<23} {}\n", k.name, k.help));
        if !matches!(k.default, Nothing) {
            out.push_str(&format!("  {:<23}   default: {}\n", "", k.default_text()));
        }
    }
    out.push_str(
        "\nPostgreSQL is reached as with psql: what the address does not say comes from\n\
         PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGPASSFILE, PGSSLMODE,\n\
         PGSSLROOTCERT, PGSSLCERT, PGSSLKEY and ~/.pgpass. PGHOSTLIST (host:port,\n\
         host:port) and SERVER_ID (lease.node) are read too.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::{Literal, convert};

    #[test]
    fn every_default_is_a_right_value_and_fits_its_key() {
        for k in KEYS {
            if let Text(text) = k.default {
                convert(&k.kind, &Literal::Plain(text.into())).unwrap_or_else(|e| panic!("{}: {e}", k.name));
            }
        }
    }

    #[test]
    fn names_are_unique_and_make_unique_variables() {
        for (i, k) in KEYS.iter().enumerate() {
            assert!(KEYS[i + 1..].iter().all(|o| o.name != k.name && o.variable() != k.variable()), "{}", k.name);
        }
        assert_eq!(find("lease.store_timeout").map(Key::variable).as_deref(), Some("LOCUM_LEASE_STORE_TIMEOUT"));
    }

    #[test]
    fn a_key_in_the_wrong_place_is_understood() {
        for (typed, right) in [
            ("lease.tll", Some("lease.ttl")),
            ("ttl", Some("lease.ttl")),
            ("health.stop_signal", Some("process.stop_signal")),
            ("leese.store", Some("lease.store")),
            ("banana", None),
        ] {
            assert_eq!(meant(typed), right, "{typed}");
        }
    }

    #[test]
    fn the_help_fits_the_width_of_a_screen() {
        for line in help().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
