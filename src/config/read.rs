//! Collects what was written: the file, then the environment over it, then the flags.
//!
//! Nothing is converted here. Nothing that was written is passed over either: an
//! unknown key is a mistake, an unknown variable of ours at least a warning.

use super::keys::{self, KEYS, Key};
use super::mistake::{Mistake, Origin, nearest};
use super::value::Literal;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use toml::de::{DeTable, DeValue};

/// A value as it was written, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What was written.
    pub literal: Literal,
    /// Where.
    pub origin: Origin,
}

/// What was read so far.
#[derive(Default)]
pub struct Reading {
    /// What was written for each key, the later source over the earlier one.
    pub layers: BTreeMap<&'static str, Given>,
    /// Keys that somebody meant to give, and misspelt: they are not missing.
    pub meant: BTreeSet<&'static str>,
    /// What is wrong.
    pub mistakes: Vec<Mistake>,
    /// What is allowed, but not as it should be.
    pub warnings: Vec<Mistake>,
}

impl Reading {
    fn wrong(&mut self, origin: &Origin, text: impl Into<String>) {
        self.mistakes.push(Mistake::at(origin, text));
    }

    fn unknown_key(&mut self, origin: &Origin, name: &str) {
        self.meant.extend(keys::meant(name));
        self.wrong(origin, unknown_key(name));
    }
}

/// Reads the values of a file's text.
///
/// # Errors
/// The text is no TOML; the mistakes say where.
pub fn file(name: &str, text: &str, reading: &mut Reading) -> Result<(), ()> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let reader = File { name, text };
    if errors.is_empty() {
        reader.table("", document.get_ref(), reading);
        return Ok(());
    }
    for error in errors {
        // The error's own rendering quotes the line, which may hold a password.
        let at = error.span().map_or(0, |s| s.start);
        let message = error.message().trim().replace('\n', ", ");
        reading.wrong(&reader.origin(at), format!("cannot read the TOML: {message}"));
    }
    Err(())
}

struct File<'a> {
    name: &'a str,
    text: &'a str,
}

impl File<'_> {
    /// The place of a byte of the text.
    fn origin(&self, at: usize) -> Origin {
        let before = self.text.as_bytes().iter().take(at);
        Origin::File { name: self.name.into(), line: 1 + before.filter(|b| **b == b'\n').count() }
    }

    fn table(&self, section: &str, table: &DeTable<'_>, reading: &mut Reading) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let origin = self.origin(key.span().start);
            let name =
                if section.is_empty() { key.get_ref().to_string() } else { format!("{section}.{}", key.get_ref()) };
            if let Some(known) = keys::find(&name) {
                reading.layers.insert(known.name, Given { literal: literal(value.get_ref()), origin });
                continue;
            }
            match value.get_ref() {
                DeValue::Table(inner) if keys::sections().contains(&name.as_str()) => {
                    self.table(&name, inner, reading);
                }
                DeValue::Table(inner) if section.is_empty() => {
                    reading.wrong(&origin, unknown_section(&name));
                    let inner = inner.keys().map(|k| format!("{name}.{}", k.get_ref()));
                    reading.meant.extend(inner.filter_map(|k| keys::meant(&k)));
                }
                _ if keys::sections().contains(&name.as_str()) => {
                    reading.wrong(&origin, format!("{name} is a section: write [{name}] and its keys below"));
                }
                _ => reading.unknown_key(&origin, &name),
            }
        }
    }
}

fn literal(value: &DeValue<'_>) -> Literal {
    match value {
        DeValue::String(s) => Literal::Text(s.to_string()),
        DeValue::Integer(i) => Literal::Number(i.to_string()),
        DeValue::Float(x) => Literal::Number(x.as_str().into()),
        DeValue::Boolean(b) => Literal::Other("a boolean", b.to_string()),
        DeValue::Datetime(d) => Literal::Other("a date", d.to_string()),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(|i| i.get_ref().as_str().map(String::from)).collect();
            texts.map_or(Literal::Other("an array of other things than strings", "[…]".into()), Literal::List)
        }
        DeValue::Table(pairs) => {
            let texts: Option<BTreeMap<String, String>> =
                pairs.iter().map(|(k, v)| Some((k.get_ref().to_string(), v.get_ref().as_str()?.to_string()))).collect();
            texts.map_or(Literal::Other("a table of other things than strings", "{…}".into()), Literal::Table)
        }
    }
}

fn unknown_section(name: &str) -> String {
    match nearest(name, keys::sections()) {
        Some(near) => format!("unknown section [{name}]; did you mean [{near}]?"),
        None => format!("unknown section [{name}]; there are {}", keys::sections().join(", ")),
    }
}

/// Says that there is no such key, and which one was probably meant.
fn unknown_key(name: &str) -> String {
    match keys::meant(name) {
        Some(near) => format!("unknown key {name}; did you mean {near}?"),
        None => format!("unknown key {name}; \"locum help configuration\" lists them all"),
    }
}

/// Variables that the command of a Locum is given: one that runs inside another sees them.
const GIVEN_TO_COMMANDS: &[&str] =
    &["LOCUM_TOKEN", "LOCUM_EPOCH", "LOCUM_NODE", "LOCUM_PREVIOUS_NODE", "LOCUM_INSTANCE"];

/// Variables that can hold a password of ours: the command must not be given them.
pub const SECRET_VARIABLES: &[&str] = &["LOCUM_LEASE_STORE", "LOCUM_HEALTH_URL", "PGPASSWORD"];

/// The environment.
pub type Environment = BTreeMap<String, OsString>;

/// The text of a variable; none if it is not set, or empty.
pub fn variable<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).and_then(|v| v.to_str()).filter(|v| !v.is_empty())
}

/// Reads the values of the environment.
pub fn environment(env: &Environment, reading: &mut Reading) {
    for (name, value) in env {
        if (name.starts_with("LOCUM_") || name.starts_with("PG")) && value.to_str().is_none() {
            reading.wrong(&Origin::Environment(name.clone()), "this is not UTF-8");
        }
    }
    let mut by_name = |key: &'static str, name: &str| {
        if let Some(value) = variable(env, name) {
            let given = Given { literal: Literal::Plain(value.into()), origin: Origin::Environment(name.into()) };
            reading.layers.insert(key, given);
        }
    };
    // IOM's name for a node yields to ours.
    by_name("lease.node", "SERVER_ID");
    for key in KEYS {
        by_name(key.name, &key.variable());
    }
    let ours: Vec<String> = KEYS.iter().map(Key::variable).collect();
    let nested = env.contains_key("LOCUM_INSTANCE");
    for name in env.keys().filter(|n| n.starts_with("LOCUM_") && !ours.contains(n)) {
        let origin = Origin::Environment(name.clone());
        if GIVEN_TO_COMMANDS.contains(&name.as_str()) {
            if !nested {
                let text = "this is what the command is given, and nothing reads it here";
                let hint = if name == "LOCUM_NODE" { "; this node's name is LOCUM_LEASE_NODE" } else { "" };
                reading.warnings.push(Mistake::at(&origin, format!("{text}{hint}")));
            }
        } else if let Some(near) = nearest(name, ours.iter().map(String::as_str)) {
            reading.wrong(&origin, format!("unknown variable; did you mean {near}?"));
        } else {
            let text = "unknown variable; \"locum help configuration\" lists them all";
            reading.warnings.push(Mistake::at(&origin, text));
        }
    }
}

/// One flag: a key, and what was written for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as the user knows it, like `--ttl`.
    pub name: String,
    /// The key it stands for; with `--set` anything that was written.
    pub key: String,
    /// Its value.
    pub literal: Literal,
}

/// Reads the values of the flags.
pub fn flags(flags: &[Flag], reading: &mut Reading) {
    for flag in flags {
        let origin = Origin::Flag(flag.name.clone());
        let Some(key) = keys::find(&flag.key) else {
            reading.unknown_key(&origin, &flag.key);
            continue;
        };
        let given = Given { literal: flag.literal.clone(), origin: origin.clone() };
        if let Some(Given { origin: Origin::Flag(other), .. }) = reading.layers.insert(key.name, given) {
            reading.wrong(&origin, format!("{} was already given by {other}; leave one out", key.name));
        }
    }
}
