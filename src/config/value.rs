//! From what somebody wrote to a value of the right kind, or to words that say what
//! would be right.

use super::Command;
use super::duration::{NoDuration, duration, duration_text};
use super::keys::LEVELS;
use super::mistake::nearest;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a key's value has to be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A name of a service or a node.
    Name,
    /// A command line: an array, or a string for the shell.
    Command,
    /// A duration within these bounds.
    Duration {
        /// The least, inclusive.
        least: Duration,
        /// The most, inclusive.
        most: Duration,
    },
    /// A signal, by name or number.
    Signal,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number within these bounds.
    Count {
        /// The least, inclusive.
        least: u32,
        /// The most, inclusive.
        most: u32,
    },
    /// A fraction from 0 up to this.
    Fraction {
        /// The most, inclusive.
        most: f64,
    },
    /// A path.
    Path,
    /// A user of this machine; looked up later.
    User,
    /// An address for HTTP.
    Url,
    /// An address of a store; taken apart later.
    Store,
    /// A name in PostgreSQL that needs no quotes.
    Identifier,
    /// A level for each of some modules.
    Levels,
}

/// What somebody wrote, with the type it was written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Literal {
    /// From a flag or the environment: text without a type.
    Plain(String),
    /// A string in the file.
    Text(String),
    /// A number in the file.
    Number(String),
    /// An array of strings.
    List(Vec<String>),
    /// A table of strings.
    Table(BTreeMap<String, String>),
    /// Something that no key wants: its type, and its text.
    Other(&'static str, String),
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Plain(s) | Literal::Text(s) => write!(f, "{s:?}"),
            Literal::Number(s) => f.write_str(s),
            Literal::List(items) => write!(f, "{items:?}"),
            Literal::Table(items) => {
                let items: Vec<String> = items.iter().map(|(k, v)| format!("{k} = {v:?}")).collect();
                write!(f, "{{ {} }}", items.join(", "))
            }
            Literal::Other(_, text) => f.write_str(text),
        }
    }
}

impl Literal {
    fn type_name(&self) -> &'static str {
        match self {
            Literal::Plain(_) | Literal::Text(_) => "a string",
            Literal::Number(_) => "a number",
            Literal::List(_) => "an array",
            Literal::Table(_) => "a table",
            Literal::Other(name, _) => name,
        }
    }

    /// The text, if it was written as text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Literal::Plain(s) | Literal::Text(s) => Some(s),
            _ => None,
        }
    }

    /// The text, or the remark that a string is wanted.
    fn wanted_text(&self, example: &str) -> Result<&str, String> {
        self.text().ok_or_else(|| format!("this is {}; write a string, like {example}", self.type_name()))
    }

    /// How to write `text` in the place where this stands: with quotes in the file.
    fn advice(&self, text: &str) -> String {
        if matches!(self, Literal::Plain(_)) { text.into() } else { format!("{text:?}") }
    }
}

/// A value of the right kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a name, a choice, a path, a user or an address.
    Text(String),
    /// Of a command.
    Command(Command),
    /// Of a duration.
    Duration(Duration),
    /// Of a signal.
    Signal(i32),
    /// Of a count.
    Count(u32),
    /// Of a fraction.
    Fraction(f64),
    /// Of levels.
    Levels(BTreeMap<String, String>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(s) => f.write_str(s),
            Value::Command(Command::Argv(argv)) => write!(f, "{argv:?}"),
            Value::Command(Command::Shell(line)) => write!(f, "{line:?}"),
            Value::Duration(d) => f.write_str(&duration_text(*d)),
            Value::Signal(n) => f.write_str(&signal_text(*n)),
            Value::Count(n) => write!(f, "{n}"),
            Value::Fraction(x) => write!(f, "{x}"),
            Value::Levels(levels) => {
                let items: Vec<String> = levels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                f.write_str(&items.join(","))
            }
        }
    }
}

/// Makes a value of what was written.
///
/// # Errors
/// Words that say what is wrong and what would be right; key and place are the caller's.
pub fn convert(kind: &Kind, given: &Literal) -> Result<Value, String> {
    match kind {
        Kind::Name => name(given.wanted_text("\"shop\"")?).map(Value::Text),
        Kind::Command => command(given).map(Value::Command),
        Kind::Duration { least, most } => bounded_duration(given, *least, *most).map(Value::Duration),
        Kind::Signal => signal(given).map(Value::Signal),
        Kind::Choice(words) => choice(given, words).map(Value::Text),
        Kind::Count { least, most } => count(given, *least, *most).map(Value::Count),
        Kind::Fraction { most } => fraction(given, *most).map(Value::Fraction),
        Kind::Path => filled(given.wanted_text("\"/var/lib/locum\"")?, "a path").map(Value::Text),
        Kind::User => filled(given.wanted_text("\"nobody\"")?, "the name of a user").map(Value::Text),
        Kind::Url => http_url(given.wanted_text("\"http://127.0.0.1:8080/health\"")?).map(Value::Text),
        Kind::Store => filled(given.wanted_text("\"postgres://locum@db1,db2/ops\"")?, "an address").map(Value::Text),
        Kind::Identifier => identifier(given.wanted_text("\"locum\"")?).map(Value::Text),
        Kind::Levels => levels(given).map(Value::Levels),
    }
}

fn filled(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("this is empty; write {what}, or leave the key out"));
    }
    if text.contains('\0') { Err("a zero byte cannot be part of it".into()) } else { Ok(text.into()) }
}

fn name(text: &str) -> Result<String, String> {
    filled(text, "a name")?;
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '/') {
        return Err("a name has no spaces, slashes or control characters".into());
    }
    if text.len() > 100 { Err("a name has at most 100 bytes".into()) } else { Ok(text.into()) }
}

fn identifier(text: &str) -> Result<String, String> {
    let first = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let rest = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if first && rest && text.len() <= 63 && !text.starts_with("pg_") {
        Ok(text.into())
    } else {
        Err("write lower-case letters, digits and _ (at most 63, first a letter, not pg_…)".into())
    }
}

fn command(given: &Literal) -> Result<Command, String> {
    let example = "write an array like [\"/usr/bin/shop\", \"--port\", \"80\"], or a string for the shell";
    match given {
        Literal::List(argv) if argv.first().is_none_or(String::is_empty) => Err(format!("no program; {example}")),
        Literal::List(argv) if argv.iter().any(|a| a.contains('\0')) => Err("a zero byte cannot be part of it".into()),
        Literal::List(argv) => Ok(Command::Argv(argv.clone())),
        Literal::Plain(line) | Literal::Text(line) if line.trim().is_empty() => {
            Err(format!("this is empty; {example}"))
        }
        Literal::Plain(line) | Literal::Text(line) => filled(line, "a command").map(Command::Shell),
        other => Err(format!("this is {}; {example}", other.type_name())),
    }
}

fn choice(given: &Literal, words: &[&str]) -> Result<String, String> {
    let all = words.join(", ");
    let text = given.text().ok_or_else(|| format!("this is {}; write one of {all}", given.type_name()))?;
    if words.contains(&text) {
        return Ok(text.into());
    }
    Err(match nearest(text, words.iter().copied()) {
        Some(near) => format!("did you mean {}? Possible are {all}", given.advice(near)),
        None => format!("write one of {all}"),
    })
}

fn count(given: &Literal, least: u32, most: u32) -> Result<u32, String> {
    let text = match given {
        Literal::Number(s) | Literal::Plain(s) => s,
        Literal::Text(s) if s.parse::<u32>().is_ok() => {
            return Err(format!("this is a string; write {s} without quotes"));
        }
        other => return Err(format!("this is {}; write a whole number from {least} to {most}", other.type_name())),
    };
    match text.parse::<u32>() {
        Ok(n) if (least..=most).contains(&n) => Ok(n),
        _ => Err(format!("write a whole number from {least} to {most}")),
    }
}

fn fraction(given: &Literal, most: f64) -> Result<f64, String> {
    let right = format!("write a fraction from 0 to {most}, like 0.002 for 0.2 %");
    let text = match given {
        Literal::Number(s) | Literal::Plain(s) => s,
        other => return Err(format!("this is {}; {right}", other.type_name())),
    };
    match text.replace('_', "").parse::<f64>() {
        Ok(x) if (0.0..=most).contains(&x) => Ok(x),
        _ => Err(right),
    }
}

fn http_url(text: &str) -> Result<String, String> {
    let example = "write an address like http://127.0.0.1:8080/health";
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return Err(match text.split_once("://") {
            Some((scheme, _)) => format!("the scheme {scheme} is not one of http, https; {example}"),
            None => format!("this is no address; {example}"),
        });
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("spaces and control characters have to be percent-encoded (%20)".into());
    }
    let (host, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((inner, after)) if after.is_empty() || after.starts_with(':') => (inner, after.strip_prefix(':')),
        Some(_) => return Err(format!("the host is not understood; {example}")),
        None => host.split_once(':').map_or((host, None), |(h, p)| (h, Some(p))),
    };
    if host.is_empty() {
        return Err(format!("the host is missing; {example}"));
    }
    if let Some(port) = port.filter(|p| !p.parse::<u16>().is_ok_and(|n| n > 0)) {
        // Not shown: what stands here may be part of a password with an unescaped slash.
        let _ = port;
        return Err(format!("the port is not a number from 1 to 65535; {example}"));
    }
    Ok(text.into())
}

fn levels(given: &Literal) -> Result<BTreeMap<String, String>, String> {
    let example = "write a level per module, like { store = \"debug\" }";
    let pairs: BTreeMap<String, String> = match given {
        Literal::Table(pairs) => pairs.clone(),
        Literal::Plain(text) => {
            let mut pairs = BTreeMap::new();
            for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                let (module, level) = pair.split_once('=').ok_or("write module=level,module=level")?;
                pairs.insert(module.trim().to_string(), level.trim().to_string());
            }
            pairs
        }
        other => return Err(format!("this is {}; {example}", other.type_name())),
    };
    for (module, level) in &pairs {
        if !LEVELS.contains(&level.as_str()) {
            return Err(format!("{level:?} for {module} is no level; write one of {}", LEVELS.join(", ")));
        }
    }
    Ok(pairs)
}

fn signal(given: &Literal) -> Result<i32, String> {
    let right = "write a name like TERM, SIGINT or RTMIN+3, or a number from 1 to 64";
    let text = match given {
        Literal::Number(s) | Literal::Plain(s) | Literal::Text(s) => s.trim(),
        other => return Err(format!("this is {}; {right}", other.type_name())),
    };
    let number = match text.parse::<i32>() {
        Ok(n) => Some(n),
        Err(_) => signal_named(text),
    };
    match number {
        Some(nix::libc::SIGSTOP | nix::libc::SIGCONT | nix::libc::SIGTSTP) => {
            Err("this signal ends no process; write TERM, INT, QUIT, HUP, USR1 or the like".into())
        }
        Some(n) if (1..=64).contains(&n) => Ok(n),
        _ => Err(right.into()),
    }
}

fn signal_named(text: &str) -> Option<i32> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return Some(nix::libc::SIGRTMIN().checked_add(offset)?).filter(|n| *n <= nix::libc::SIGRTMAX());
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// A signal's name, without SIG; its number if it has none.
pub fn signal_text(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().trim_start_matches("SIG").to_string(),
        Err(_) => number.to_string(),
    }
}

fn bounded_duration(given: &Literal, least: Duration, most: Duration) -> Result<Duration, String> {
    let text = match given {
        Literal::Plain(s) | Literal::Text(s) => s.as_str(),
        Literal::Number(s) => {
            return Err(format!("a duration has a unit: write \"{s}s\" for seconds, \"{s}ms\" for milliseconds"));
        }
        other => return Err(format!("this is {}; write a duration, like \"5s\"", other.type_name())),
    };
    let d = duration(text).map_err(|trouble| match trouble {
        NoDuration::UnitMissing => {
            let (s, ms) = (given.advice(&format!("{text}s")), given.advice(&format!("{text}ms")));
            format!("a duration has a unit: write {s} for seconds, {ms} for milliseconds")
        }
        NoDuration::UnitUnknown(unit) => {
            format!("{unit:?} is no unit; there are ms, s, m, h and d: write {}", given.advice("5s"))
        }
        NoDuration::TooLong => format!("too long; write at most {}", given.advice(&duration_text(most))),
        NoDuration::NotUnderstood => {
            format!("this is no duration; write one like {} or {}", given.advice("500ms"), given.advice("5s"))
        }
    })?;
    if d < least {
        return Err(format!("too short; write at least {}", given.advice(&duration_text(least))));
    }
    if d > most { Err(format!("too long; write at most {}", given.advice(&duration_text(most)))) } else { Ok(d) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let read = |s: &str| signal(&Literal::Plain(s.into()));
        for (text, number) in
            [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("15", 15), ("INT", 2), ("USR1", 10), ("RTMIN+3", 37)]
        {
            assert_eq!(read(text), Ok(number), "{text}");
        }
        assert_eq!(signal(&Literal::Number("9".into())), Ok(9));
        for text in ["STOP", "CONT", "0", "65", "-1", "SIG", "TREM", "RTMIN+99", "RTMIN+2147483647"] {
            assert!(read(text).is_err(), "{text}");
        }
        assert_eq!((signal_text(15).as_str(), signal_text(37).as_str()), ("TERM", "37"));
    }

    #[test]
    fn addresses_of_health_checks_are_looked_at_before_the_first_check() {
        for good in ["http://h", "https://h:8443/x?y=1", "http://[::1]:80/", "http://u:p@h/"] {
            assert!(http_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "h:80",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://h:0/",
            "http://h:x/",
            "http://h/a b",
            "http://[::1]x/",
        ] {
            assert!(http_url(bad).is_err(), "{bad}");
        }
    }
}
