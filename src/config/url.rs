//! Takes the address of a store apart. Only what it says: what it leaves open is
//! found by `libpq`.
//!
//! What must never happen here: a piece of a password in a message, however the
//! address is misspelt.

use std::path::PathBuf;

/// An address, taken apart.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub enum Address {
    /// `file:`, and the path as written.
    File(PathBuf),
    /// `postgres:`.
    Postgres(Parts),
}

/// The parts of a PostgreSQL address, percent-decoded.
#[derive(Clone, Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub struct Parts {
    /// Host and port, either of which may be missing.
    pub hosts: Vec<(Option<String>, Option<u16>)>,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The database.
    pub database: Option<String>,
    /// The parameters, each of [`PARAMETERS`] and none twice.
    pub parameters: Vec<(String, String)>,
}

impl Parts {
    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The parameters that an address of PostgreSQL may have.
pub const PARAMETERS: &[&str] = &["sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "application_name"];

/// Parameters that libpq has and we do otherwise.
const OTHERWISE: &[(&str, &str)] = &[
    ("connect_timeout", "every call is bounded by lease.store_timeout; leave it out"),
    ("target_session_attrs", "the writable host is found by asking each; leave it out"),
    ("host", "write the hosts before the database: postgres://h1,h2/db"),
    ("port", "write the port behind the host: postgres://h1:5433/db"),
    ("user", "write the user before the host: postgres://user@h1/db"),
    ("dbname", "write the database behind the host: postgres://h1/db"),
    ("password", "write it before the host (postgres://user:password@h1/db), or better into ~/.pgpass"),
    ("options", "nothing is set per session, so that it works through a pooler; leave it out"),
    ("search_path", "the tables are always named with their schema: lease.schema"),
];

/// The schemes that exist, for messages.
const SCHEMES: &str = "postgres://user@host1,host2/database, file:/path";

/// Takes an address apart.
///
/// # Errors
/// Words that say what is wrong and what would be right.
pub fn parse(address: &str) -> Result<Address, String> {
    let Some((scheme, rest)) = address.split_once(':') else {
        return Err(format!("this is no address; there are {SCHEMES}"));
    };
    match scheme {
        "file" => file(rest),
        "postgres" | "postgresql" => {
            let rest = rest.strip_prefix("//").ok_or("two slashes are missing: write postgres://user@host/database")?;
            postgres(rest).map(Address::Postgres)
        }
        // A host and a port are no scheme.
        _ if rest.starts_with("//") => Err(format!("there is no store {scheme}://; there are {SCHEMES}")),
        _ => Err(format!("this is no address of a store; there are {SCHEMES}")),
    }
}

fn file(rest: &str) -> Result<Address, String> {
    let path = match rest.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return Err("a host cannot be part of it: write file:/path or file:///path".into()),
        None => rest,
    };
    if path.is_empty() || path.ends_with('/') {
        return Err("the name of a file is missing: write file:/var/lib/locum/shop".into());
    }
    Ok(Address::File(path.into()))
}

fn postgres(rest: &str) -> Result<Parts, String> {
    let (front, query) = rest.split_once('?').map_or((rest, None), |(f, q)| (f, Some(q)));
    let (authority, database) = front.split_once('/').map_or((front, None), |(a, d)| (a, Some(d)));
    // An @ behind the first slash or question mark means that one of these stood in a password.
    if !authority.contains('@') && database.is_some_and(|d| d.contains('@')) || rest.contains('#') {
        return Err("in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40 and : as %3A".into());
    }
    let (login, hosts) = authority.rsplit_once('@').map_or((None, authority), |(l, h)| (Some(l), h));
    let mut parts = Parts::default();
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
        parts.user = Some(decoded(user)?).filter(|u| !u.is_empty());
        parts.password = password.map(decoded).transpose()?.filter(|p| !p.is_empty());
    }
    if !hosts.is_empty() {
        parts.hosts = hosts.split(',').map(host).collect::<Result<_, _>>()?;
    }
    parts.database = database.map(decoded).transpose()?.filter(|d| !d.is_empty());
    for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("a parameter has a value: write ?name=value&name=value")?;
        let (name, value) = (decoded(name)?, decoded(value)?);
        if !PARAMETERS.contains(&name.as_str()) {
            return Err(unknown_parameter(&name));
        }
        if parts.parameter(&name).is_some() {
            return Err(format!("the parameter {name} is there twice"));
        }
        parts.parameters.push((name, value));
    }
    Ok(parts)
}

fn unknown_parameter(name: &str) -> String {
    if let Some((_, instead)) = OTHERWISE.iter().find(|(n, _)| *n == name) {
        return format!("the parameter {name} is not taken: {instead}");
    }
    let near = super::mistake::nearest(name, PARAMETERS.iter().copied());
    let near = near.map_or("there are".into(), |n| format!("did you mean {n}? There are"));
    format!("unknown parameter {name}; {near} {}", PARAMETERS.join(", "))
}

/// Reads one `host:port`, `[v6]:port`, `host` or `:port`.
///
/// # Errors
/// Says what would be right.
pub fn host(text: &str) -> Result<(Option<String>, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or("a ] is missing behind the address [")?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':').ok_or("write [address]:port")?),
            };
            (host, port)
        }
        None if text.matches(':').count() > 1 => {
            return Err("an address with several colons is written in brackets: [::1]:5432".into());
        }
        None => text.split_once(':').map_or((text, None), |(h, p)| (h, Some(p))),
    };
    let port = match port.filter(|p| !p.is_empty()) {
        None => None,
        // Not shown: a password whose @ is missing stands in the same place.
        Some(p) => Some(p.parse::<u16>().ok().filter(|n| *n > 0).ok_or("a port is a number from 1 to 65535")?),
    };
    Ok((Some(decoded(host)?).filter(|h| !h.is_empty()), port))
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok()).filter(|h| !h.starts_with('+'));
        let byte = hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|b| *b != 0);
        bytes.push(byte.ok_or("a % is followed by two hexadecimal digits; a plain % is written %25")?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "the percent-encoding does not give UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pg(text: &str) -> Parts {
        match parse(text) {
            Ok(Address::Postgres(parts)) => parts,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn at(hosts: &[(&str, u16)]) -> Vec<(Option<String>, Option<u16>)> {
        let some = |h: &str| Some(h.to_string()).filter(|h| !h.is_empty());
        hosts.iter().map(|(h, p)| (some(h), Some(*p).filter(|p| *p > 0))).collect()
    }

    #[test]
    fn addresses_are_read_as_libpq_reads_them() {
        let full = pg("postgres://u%40x:p%3A%2Fw@db1:5433,db2/ops?sslmode=verify-full&sslrootcert=/etc/ca%20x.pem");
        assert_eq!(full.user.as_deref(), Some("u@x"));
        assert_eq!(full.password.as_deref(), Some("p:/w"));
        assert_eq!(full.hosts, at(&[("db1", 5433), ("db2", 0)]));
        assert_eq!(full.database.as_deref(), Some("ops"));
        assert_eq!(full.parameter("sslrootcert"), Some("/etc/ca x.pem"));
        assert_eq!(pg("postgresql://"), Parts::default());
        assert_eq!(pg("postgres:///ops").database.as_deref(), Some("ops"));
        assert_eq!(pg("postgres://[::1]:99/x").hosts, at(&[("::1", 99)]));
        assert_eq!(pg("postgres://%2Frun%2Fpg/x").hosts, at(&[("/run/pg", 0)]));
        assert_eq!(pg("postgres://:5433").hosts, at(&[("", 5433)]));
        assert_eq!(pg("postgres://u@").user.as_deref(), Some("u"));
    }

    #[test]
    fn file_addresses_are_paths() {
        for (text, path) in [("file:/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("file:b", "b"), ("file:./b", "./b")] {
            assert_eq!(parse(text), Ok(Address::File(path.into())));
        }
        for text in ["file:", "file:/a/", "file://host/a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_said_without_its_secrets() {
        for (text, words) in [
            ("db1", "this is no address; there are postgres://user@host1,host2/database, file:/path"),
            ("db1:5432", "this is no address of a store; there are postgres://"),
            ("mysql://db1/x", "there is no store mysql://; there are postgres://"),
            ("etcd://e1", "there is no store etcd://"),
            ("postgres:db1", "two slashes are missing"),
            ("postgres://u:geheim@db:x/y", "a port is a number from 1 to 65535"),
            ("postgres://u:geheim/y", "a port is a number"),
            ("postgres://u:ge/heim@db/y", "write / as %2F"),
            ("postgres://u:ge#heim@db/y", "# as %23"),
            ("postgres://::1/y", "in brackets: [::1]:5432"),
            ("postgres://u:geheim%4@db/y", "a plain % is written %25"),
            ("postgres://db/y?sslmod=require", "unknown parameter sslmod; did you mean sslmode?"),
            (
                "postgres://db/y?banana=1",
                "banana; there are sslmode, sslrootcert, sslcert, sslkey, passfile, application_name",
            ),
            ("postgres://db/y?connect_timeout=3", "bounded by lease.store_timeout"),
            ("postgres://db/y?password=geheim", "write it before the host"),
            ("postgres://db/y?sslmode", "a parameter has a value"),
            ("postgres://db/y?sslmode=a&sslmode=b", "the parameter sslmode is there twice"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("heim"), "{text}: {error}");
        }
    }
}
