//! What is wrong with a configuration, in words that name the place and the remedy.
//!
//! What must never happen here: a password in a message.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of a file, counted from 1; 0 is the file as a whole.
    File {
        /// The file, as the user named it.
        name: String,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag, or the command at the end of the command line.
    Flag(String),
    /// Nobody gave it; the text says how it came about, if it is not a plain default.
    Default(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line: 0 } => f.write_str(name),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment(name) => write!(f, "environment {name}"),
            Origin::Flag(name) if name.starts_with('-') => write!(f, "flag {name}"),
            Origin::Flag(name) => f.write_str(name),
            Origin::Default(how) if how.is_empty() => f.write_str("default"),
            Origin::Default(how) => write!(f, "default: {how}"),
        }
    }
}

/// One thing that is wrong, or, as a warning, not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Where it stands, if it stands anywhere.
    pub origin: Option<Origin>,
    /// Key, value, and what would be right.
    pub text: String,
}

impl Mistake {
    /// A mistake at a place.
    pub fn at(origin: &Origin, text: impl Into<String>) -> Mistake {
        Mistake { origin: Some(origin.clone()), text: text.into() }
    }

    /// A mistake without a place: something is missing.
    pub fn missing(text: impl Into<String>) -> Mistake {
        Mistake { origin: None, text: text.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of the places; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Mistake>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// The candidate that `word` was probably meant to be: at most a third of it differs.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|c| (distance(&word.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// How many letters have to be inserted, removed, replaced or swapped with their
/// neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// An address without its secrets, whatever it looks like: for messages about
/// addresses that could not be understood. Hides too much rather than too little.
pub fn masked(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").map_or(("", address), |(s, r)| (&address[..s.len() + 3], r));
    let rest = match (rest.rfind('@'), odd_port(rest)) {
        (Some(at), _) => match rest[..at].find(':') {
            Some(colon) => format!("{}:***{}", &rest[..colon], &rest[at..]),
            None => rest.to_string(),
        },
        (None, Some(colon)) if !scheme.is_empty() => format!("{}:***", &rest[..colon]),
        (None, _) => rest.to_string(),
    };
    let mut out = String::from(scheme);
    for (i, part) in rest.split_inclusive(['?', '&']).enumerate() {
        match part.split_once('=') {
            Some((name, value)) if i > 0 && name.to_lowercase().contains("pass") => {
                out.push_str(name);
                out.push_str("=***");
                out.push_str(if value.ends_with('&') { "&" } else { "" });
            }
            _ => out.push_str(part),
        }
    }
    out
}

/// Where a colon stands whose port is no number: it may be a password that lacks its @.
fn odd_port(rest: &str) -> Option<usize> {
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    let mut start = 0;
    for piece in authority.split(',') {
        if let Some(colon) = piece.find(':').filter(|_| !piece.starts_with('['))
            && !piece[colon + 1..].chars().all(|c| c.is_ascii_digit() || c == ':')
        {
            return Some(start + colon);
        }
        start += piece.len() + 1;
    }
    None
}

/// Whether an address carries a password.
pub fn has_password(address: &str) -> bool {
    masked(address) != address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_their_word_and_strangers_do_not() {
        let words = ["lease.ttl", "lease.renew", "health.timeout", "cycle"];
        for (typed, meant) in [
            ("lease.tll", Some("lease.ttl")),
            ("lease.tlt", Some("lease.ttl")),
            ("Cycle", Some("cycle")),
            ("cicle", Some("cycle")),
            ("health.timeuot", Some("health.timeout")),
            ("banana", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, words), meant, "{typed}");
        }
    }

    #[test]
    fn no_spelling_of_a_password_survives_the_mask() {
        for (address, shown) in [
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres://h:5432/db", "postgres://h:5432/db"),
            ("postgres://u:geheim@h/db", "postgres://u:***@h/db"),
            ("postgres://u:ge@heim@h/db", "postgres://u:***@h/db"),
            ("postgres://u:ge/heim@h/db", "postgres://u:***@h/db"),
            ("postgres://u:ge?heim@h/db", "postgres://u:***@h/db"),
            ("postgres://h/db?user=u&password=geheim&x=1", "postgres://h/db?user=u&password=***&x=1"),
            ("postgres://h/db?sslpassword=geheim", "postgres://h/db?sslpassword=***"),
            ("u:geheim@h", "u:***@h"),
            ("postgres://u:geheim/db", "postgres://u:***"),
            ("postgres://h:1,h2:5432/db", "postgres://h:1,h2:5432/db"),
            ("postgres://[::1]:5432/db", "postgres://[::1]:5432/db"),
            ("file:/var/lib/x", "file:/var/lib/x"),
        ] {
            assert_eq!(masked(address), shown);
            assert_eq!(has_password(address), shown.contains("***"), "{address}");
        }
    }
}
