//! The command as it will be executed: its path, its arguments, its environment.
//!
//! What must never happen here: a secret of ours, or a variable that our own service
//! manager meant for us, reaching the command.

use crate::config::{Command, Config, Target};
use crate::sys::{Executable, Program};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Where the numbers of each start go.
pub struct Slots {
    pub epoch: usize,
    pub token: usize,
    pub previous: usize,
}

type Variables = BTreeMap<OsString, OsString>;

/// Lays out the configured command.
pub fn command(config: &Config, instance: &str) -> io::Result<(Program, Slots)> {
    let ours: Variables = std::env::vars_os().collect();
    let shell = ours.get(OsStr::new("SHELL")).filter(|s| !s.is_empty()).cloned();
    let arguments: Vec<OsString> = match &config.command {
        Command::Argv(argv) => argv.iter().map(OsString::from).collect(),
        Command::Shell(line) => vec![shell.unwrap_or_else(|| "/bin/sh".into()), "-c".into(), line.into()],
    };
    let path = ours.get(OsStr::new("PATH")).cloned();
    let name = arguments.first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let file = Executable::Paths(candidates(name, path.as_deref())?);
    let mut program = Program::new(file, &arguments, environment(ours, config, instance).into_iter())?;
    let slots = Slots {
        epoch: program.add_slot("LOCUM_EPOCH"),
        token: program.add_slot("LOCUM_TOKEN"),
        previous: program.add_slot("LOCUM_PREVIOUS_NODE"),
    };
    Ok((program, slots))
}

/// What our service manager meant for us alone.
pub fn is_for_us(name: &OsStr) -> bool {
    let name = name.as_bytes();
    [&b"NOTIFY_SOCKET"[..], b"WATCHDOG_PID", b"WATCHDOG_USEC"].contains(&name) || name.starts_with(b"LISTEN_")
}

fn environment(mut ours: Variables, config: &Config, instance: &str) -> Variables {
    let postgres = matches!(&config.lease, Some(lease) if matches!(lease.store, Target::Postgres(_)));
    let kept_back =
        |name: &OsStr| is_for_us(name) || name.as_bytes().starts_with(b"LOCUM_") || postgres && name == "PGPASSWORD";
    ours.retain(|name, _| !kept_back(name));
    if let Some(user) = &config.process.user {
        ours.insert("HOME".into(), user.home.clone().into());
        ours.insert("USER".into(), user.name.clone().into());
        ours.insert("LOGNAME".into(), user.name.clone().into());
    }
    let node = config.lease.as_ref().map(|l| l.node.as_str()).unwrap_or_default();
    ours.insert("LOCUM_SERVICE".into(), config.service.clone().into());
    ours.insert("LOCUM_NODE".into(), node.into());
    ours.insert(super::MARK.into(), instance.into());
    ours
}

/// The paths to try, as execvp would: a name with a slash is a path already.
fn candidates(name: &OsStr, path: Option<&OsStr>) -> io::Result<Vec<CString>> {
    if name.is_empty() || name.as_bytes().contains(&b'/') {
        return Ok(vec![CString::new(name.as_bytes())?]);
    }
    let path = path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let paths = std::env::split_paths(path).map(|folder| {
        let folder = if folder.as_os_str().is_empty() { ".".into() } else { folder };
        CString::new(folder.join(name).into_os_string().into_vec())
    });
    Ok(paths.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_in_path_and_a_path_is_not() {
        let table: [(&str, Option<&str>, &[&str]); 5] = [
            ("sh", Some("/a:/b"), &["/a/sh", "/b/sh"]),
            ("sh", Some("/a:"), &["/a/sh", "./sh"]),
            ("./sh", Some("/a"), &["./sh"]),
            ("/bin/sh", None, &["/bin/sh"]),
            ("sh", None, &["/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh"]),
        ];
        for (name, path, expected) in table {
            let found = candidates(OsStr::new(name), path.map(OsStr::new)).unwrap();
            let found: Vec<_> = found.iter().map(|p| p.to_str().unwrap()).collect();
            assert_eq!(found, expected, "{name} in {path:?}");
        }
        assert!(candidates(OsStr::new("a\0b"), None).is_err());
    }

    #[test]
    fn what_is_meant_for_us_is_known() {
        for name in ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            assert!(is_for_us(OsStr::new(name)), "{name}");
        }
        assert!(!is_for_us(OsStr::new("PATH")));
    }
}
