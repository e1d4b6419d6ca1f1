//! What an address of PostgreSQL leaves open is found where libpq finds it: in the
//! `PG*` variables, in `~/.pgpass`, in `~/.postgresql`.
//!
//! What must never happen here: a surprise for somebody whose `psql` gets through.

use super::mistake::{Mistake, Origin, nearest};
use super::read::{Environment, variable};
use super::url::{self, Parts};
use super::{Postgres, Secret, Shown, SslMode};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where libpq looks, beyond the address.
pub struct Surroundings<'a> {
    /// The environment.
    pub environment: &'a Environment,
    /// Our home directory.
    pub home: Option<PathBuf>,
    /// The name of the user we run as.
    pub login: String,
    /// The working directory, for relative paths.
    pub directory: &'a Path,
}

/// A PostgreSQL target, how its parts came about, and what is odd about them.
pub struct Found {
    /// The target.
    pub target: Postgres,
    /// One line for each part.
    pub shown: Vec<Shown>,
    /// What is not as it should be.
    pub warnings: Vec<Mistake>,
}

/// Variables of libpq that change where `psql` connects, and that are not read here.
const NOT_READ: &[&str] = &["PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE", "PGOPTIONS", "PGREQUIRESSL"];

/// Completes the parts of an address that stands at `origin`.
///
/// # Errors
/// What is wrong, each with its place.
pub fn complete(
    parts: &Parts,
    origin: &Origin,
    schema: &str,
    accept_async: bool,
    around: &Surroundings<'_>,
) -> Result<Found, Vec<Mistake>> {
    let mut search = Search { parts, origin, around, shown: Vec::new(), warnings: Vec::new(), mistakes: Vec::new() };
    let hosts = search.hosts();
    let user = search.pick("user", parts.user.as_deref(), "PGUSER").unwrap_or_else(|| {
        search.show("user", &around.login, Origin::Default("who runs this".into()));
        around.login.clone()
    });
    let database = search.pick("database", parts.database.as_deref(), "PGDATABASE").unwrap_or_else(|| {
        search.show("database", &user, Origin::Default("the user's name".into()));
        user.clone()
    });
    let passwords = search.passwords(&hosts, &database, &user);
    let (sslmode, sslrootcert) = search.tls();
    let sslcert = search.certificate("sslcert", "PGSSLCERT", "postgresql.crt");
    let sslkey = search.certificate("sslkey", "PGSSLKEY", "postgresql.key");
    let application_name = search.pick("application_name", parts.parameter("application_name"), "PGAPPNAME");
    for name in NOT_READ.iter().filter(|n| variable(around.environment, n).is_some()) {
        search.warnings.push(Mistake::at(&Origin::Environment((*name).into()), "not read: say it in lease.store"));
    }
    if !search.mistakes.is_empty() {
        return Err(search.mistakes);
    }
    let schema = schema.to_string();
    let target = Postgres {
        hosts,
        database,
        user,
        passwords,
        sslmode,
        sslrootcert,
        sslcert,
        sslkey,
        schema,
        accept_async,
        application_name,
    };
    Ok(Found { target, shown: search.shown, warnings: search.warnings })
}

struct Search<'a> {
    parts: &'a Parts,
    origin: &'a Origin,
    around: &'a Surroundings<'a>,
    shown: Vec<Shown>,
    warnings: Vec<Mistake>,
    mistakes: Vec<Mistake>,
}

impl Search<'_> {
    fn show(&mut self, part: &str, value: &str, origin: Origin) {
        self.shown.push(Shown { key: format!("lease.store {part}"), value: value.into(), origin });
    }

    fn variable(&self, name: &str) -> Option<&str> {
        variable(self.around.environment, name)
    }

    /// The part from the address, or from the variable.
    fn pick(&mut self, part: &str, written: Option<&str>, name: &str) -> Option<String> {
        let (value, origin) = match written {
            Some(value) => (value.to_string(), self.origin.clone()),
            None => (self.variable(name)?.to_string(), Origin::Environment(name.into())),
        };
        self.show(part, &value, origin);
        Some(value)
    }

    fn hosts(&mut self) -> Vec<(String, u16)> {
        let default_port = self.ports();
        let (given, origin) = if !self.parts.hosts.is_empty() {
            (Ok(self.parts.hosts.clone()), self.origin.clone())
        } else if let Some(list) = self.variable("PGHOSTLIST") {
            let hosts = list.split(',').map(|h| url::host(h.trim())).collect();
            (hosts, Origin::Environment("PGHOSTLIST".into()))
        } else if let Some(list) = self.variable("PGHOST") {
            let hosts = list.split(',').map(|h| Some(h.trim().to_string()).filter(|h| !h.is_empty()));
            (Ok(hosts.map(|h| (h, None)).collect()), Origin::Environment("PGHOST".into()))
        } else {
            (Ok(vec![(None, None)]), Origin::Default("the local socket".into()))
        };
        let given: Vec<(Option<String>, Option<u16>)> = given.unwrap_or_else(|e: String| {
            self.mistakes.push(Mistake::at(&origin, format!("{e}; write host:port,host:port")));
            Vec::new()
        });
        if default_port.len() > 1 && default_port.len() != given.len() {
            let text =
                format!("{} ports for {} hosts; write one for all, or one for each", default_port.len(), given.len());
            self.mistakes.push(Mistake::at(&Origin::Environment("PGPORT".into()), text));
        }
        let port = |i: usize| default_port.get(i).or(default_port.first()).copied().unwrap_or(5432);
        let socket = socket_folder();
        let hosts: Vec<(String, u16)> = given
            .into_iter()
            .enumerate()
            .map(|(i, (h, p))| (h.unwrap_or_else(|| socket.into()), p.unwrap_or_else(|| port(i))))
            .collect();
        if let Some(twice) = hosts.iter().enumerate().find(|(i, h)| hosts[..*i].contains(h)).map(|(_, h)| h) {
            self.mistakes.push(Mistake::at(&origin, format!("{}:{} is in the list of hosts twice", twice.0, twice.1)));
        }
        let text: Vec<String> = hosts.iter().map(|(h, p)| format!("{h}:{p}")).collect();
        self.show("hosts", &text.join(","), origin);
        hosts
    }

    /// `PGPORT`: one port for all hosts, or one for each.
    fn ports(&mut self) -> Vec<u16> {
        let Some(list) = self.variable("PGPORT") else { return Vec::new() };
        let list = list.to_string();
        let ports: Option<Vec<u16>> = list.split(',').map(|p| p.trim().parse().ok().filter(|p| *p > 0)).collect();
        ports.unwrap_or_else(|| {
            let origin = Origin::Environment("PGPORT".into());
            self.mistakes.push(Mistake::at(&origin, format!("{list:?}: a port is a number from 1 to 65535")));
            Vec::new()
        })
    }

    fn passwords(&mut self, hosts: &[(String, u16)], database: &str, user: &str) -> Vec<Option<Secret>> {
        let plain = match (&self.parts.password, self.variable("PGPASSWORD")) {
            (Some(p), _) => Some((p.clone(), self.origin.clone())),
            (None, Some(p)) => Some((p.to_string(), Origin::Environment("PGPASSWORD".into()))),
            (None, None) => None,
        };
        if let Some((password, origin)) = plain {
            self.show("password", "***", origin);
            return vec![Some(Secret(password)); hosts.len()];
        }
        let path = match self.parts.parameter("passfile").or(self.variable("PGPASSFILE")) {
            Some(path) => Some(PathBuf::from(path)),
            None => self.around.home.as_ref().map(|h| h.join(".pgpass")),
        };
        let text = path.as_ref().and_then(|p| self.password_file(p));
        let (Some(path), Some(text)) = (path, text) else {
            self.show("password", "none", Origin::Default(String::new()));
            return vec![None; hosts.len()];
        };
        let found: Vec<Option<(usize, Secret)>> =
            hosts.iter().map(|(host, port)| find_password(&text, pgpass_host(host), *port, database, user)).collect();
        for ((host, port), found) in hosts.iter().zip(&found) {
            let part = if hosts.len() == 1 { "password".into() } else { format!("password for {host}:{port}") };
            let name = path.display().to_string();
            match found {
                Some((line, _)) => self.show(&part, "***", Origin::File { name, line: *line }),
                None => self.show(&part, "none", Origin::Default(format!("no line of {name} fits"))),
            }
        }
        found.into_iter().map(|f| f.map(|(_, secret)| secret)).collect()
    }

    /// The text of a password file, unless libpq would ignore it.
    fn password_file(&mut self, path: &Path) -> Option<String> {
        let origin = Origin::File { name: path.display().to_string(), line: 0 };
        let meta = std::fs::metadata(path).ok()?;
        if !meta.is_file() {
            self.warnings
                .push(Mistake::at(&origin, "this password file is ignored, as libpq does: it is not a plain file"));
            return None;
        }
        if meta.mode() & 0o077 != 0 {
            let text = format!(
                "this password file is ignored, as libpq does: others can use it (mode {:04o}); chmod 600 it",
                meta.mode() & 0o7777
            );
            self.warnings.push(Mistake::at(&origin, text));
            return None;
        }
        match std::fs::read(path) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(e) => {
                self.warnings.push(Mistake::at(&origin, format!("cannot read this password file: {e}")));
                None
            }
        }
    }

    fn tls(&mut self) -> (SslMode, Option<PathBuf>) {
        let root = self.certificate("sslrootcert", "PGSSLROOTCERT", "root.crt");
        let system = root.as_deref() == Some(Path::new("system"));
        let mode = match self.pick("sslmode", self.parts.parameter("sslmode"), "PGSSLMODE") {
            None if system => {
                self.show("sslmode", "verify-full", Origin::Default("with sslrootcert=system".into()));
                SslMode::VerifyFull
            }
            None => {
                self.show("sslmode", "prefer", Origin::Default(String::new()));
                SslMode::Prefer
            }
            Some(text) => {
                let origin = self.shown.last().map_or(self.origin.clone(), |s| s.origin.clone());
                match sslmode(&text) {
                    Ok(mode) if system && mode != SslMode::VerifyFull => {
                        let right = "with sslrootcert=system it has to be verify-full, as in libpq";
                        self.mistakes.push(Mistake::at(&origin, format!("sslmode={text}: {right}")));
                        mode
                    }
                    Ok(mode) => mode,
                    Err(right) => {
                        self.mistakes.push(Mistake::at(&origin, format!("sslmode={text}: {right}")));
                        SslMode::VerifyFull
                    }
                }
            }
        };
        (mode, root.filter(|_| !system))
    }

    /// A certificate's file: as told, or in `~/.postgresql` if it is there.
    fn certificate(&mut self, part: &str, name: &str, usual: &str) -> Option<PathBuf> {
        if let Some(path) = self.pick(part, self.parts.parameter(part), name) {
            return Some(if path == "system" { path.into() } else { self.around.directory.join(path) });
        }
        let path = self.around.home.as_ref()?.join(".postgresql").join(usual);
        path.is_file().then(|| {
            self.show(part, &path.display().to_string(), Origin::Default("libpq's place for it".into()));
            path
        })
    }
}

fn sslmode(text: &str) -> Result<SslMode, String> {
    let modes = ["disable", "prefer", "require", "verify-ca", "verify-full"];
    Ok(match text {
        "disable" => SslMode::Disable,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        "allow" => return Err("allow is not offered; write prefer, or better verify-full".into()),
        other => {
            let near = nearest(other, modes).map_or("write one of".into(), |n| format!("did you mean {n}? There are"));
            return Err(format!("{near} {}", modes.join(", ")));
        }
    })
}

/// Where a local server usually has its socket: Debian's and Red Hat's place, else upstream's.
fn socket_folder() -> &'static str {
    if Path::new("/var/run/postgresql").is_dir() { "/var/run/postgresql" } else { "/tmp" }
}

/// The name of a host in a password file: the default socket is called localhost.
fn pgpass_host(host: &str) -> &str {
    if host == socket_folder() { "localhost" } else { host }
}

/// The first line (counted from 1) of a password file that fits, and its password.
fn find_password(text: &str, host: &str, port: u16, database: &str, user: &str) -> Option<(usize, Secret)> {
    let port = port.to_string();
    text.lines().enumerate().filter(|(_, l)| !l.starts_with('#')).find_map(|(i, line)| {
        let mut rest = line;
        for wanted in [host, port.as_str(), database, user] {
            rest = field(rest, wanted)?;
        }
        let password = unescaped(rest).0;
        (!password.is_empty()).then_some((i + 1, Secret(password)))
    })
}

/// What follows the first field of `line`, if that is `*` or `wanted`.
fn field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let (value, rest) = unescaped(line);
    if value == wanted { rest } else { None }
}

/// A field without its backslashes, and what follows its colon.
fn unescaped(line: &str) -> (String, Option<&str>) {
    let mut value = String::new();
    let mut chars = line.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            ':' => return (value, Some(&line[i + 1..])),
            '\\' => value.push(chars.next().map_or('\\', |(_, escaped)| escaped)),
            _ => value.push(c),
        }
    }
    (value, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_is_read_as_libpq_reads_it() {
        let text = "# db1:5432:ops:locum:comment\n\
                    db1:5432:ops:locum:one\n\
                    db2:*:ops:locum:t\\:w\\\\o\n\
                    \\:\\:1:5432:*:locum:six\n\
                    broken line\n\
                    localhost:5432:ops:locum:local\n\
                    *:*:*:other:any:rest\n\
                    db9:5432:ops:locum:\n";
        let find = |h: &str, p: u16, d: &str, u: &str| find_password(text, h, p, d, u).map(|(n, s)| (n, s.0));
        assert_eq!(find("db1", 5432, "ops", "locum"), Some((2, "one".into())));
        assert_eq!(find("db1", 5433, "ops", "locum"), None);
        assert_eq!(find("db2", 1, "ops", "locum"), Some((3, "t:w\\o".into())));
        assert_eq!(find("::1", 5432, "x", "locum"), Some((4, "six".into())));
        assert_eq!(find("localhost", 5432, "ops", "locum"), Some((6, "local".into())));
        assert_eq!(find("anywhere", 7, "x", "other"), Some((7, "any".into())));
        assert_eq!(find("db9", 5432, "ops", "locum"), None);
    }
}
