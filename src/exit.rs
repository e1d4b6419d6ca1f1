//! The one table of exit codes: what scripts and service managers may count on.

/// Did what it was asked to; for `run`: an orderly stop.
pub const OK: u8 = 0;
/// The command line is wrong.
pub const USAGE: u8 = 64;
/// The store cannot be reached.
pub const UNAVAILABLE: u8 = 69;
/// Something of the command's tree could not be removed, or Locum itself is wrong.
pub const SOFTWARE: u8 = 70;
/// The system refused: no process, no descriptor, no memory.
pub const SYSTEM: u8 = 71;
/// Somebody else holds the lease.
pub const HELD: u8 = 75;
/// The store refused: rights are missing.
pub const RIGHTS: u8 = 77;
/// The configuration is wrong.
pub const CONFIGURATION: u8 = 78;
/// The command was found, and cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;

/// The table: code, and what it means.
pub const TABLE: &[(&str, &str)] = &[
    ("0", "done; for run: stopped in order"),
    ("64", "usage: a wrong subcommand, flag or value of a flag"),
    ("69", "the store cannot be reached (check --connect, schema, status, run --try)"),
    ("70", "something of the command's tree could not be removed, or an internal fault"),
    ("71", "the system refused: the agent or a process could not be started"),
    ("75", "somebody else holds the lease (run --try, run --wait)"),
    ("77", "rights in the store are missing"),
    ("78", "the configuration is wrong"),
    ("126", "restart.when = never: the command is not executable"),
    ("127", "restart.when = never: the command was not found"),
    ("128+n", "restart.when = never: the command was ended by signal n"),
    ("else", "restart.when = never: the command's own exit code"),
];

/// The table, for people.
pub fn help() -> String {
    let mut out = String::from("Exit codes:\n");
    for (code, meaning) in TABLE {
        out.push_str(&format!("  {code:<6} {meaning}\n"));
    }
    out
}
