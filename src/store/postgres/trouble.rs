//! What an error of the server or of the connection means for a call, and how it is told.
//!
//! What must never happen here: an outcome called certain that is not.

use crate::config::Postgres;
use postgres::error::{DbError, Severity, SqlState};
use std::error::Error as _;

/// What to do about a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was changed, and the same statement may well succeed now.
    Retry,
    /// Nothing was changed; this server does not take writes any more.
    Reconnect,
    /// Nothing was changed, and trying again is of no use.
    Refused,
    /// Nobody knows; the connection is of no more use.
    Unknown,
}

/// Judges a statement that was sent and failed.
pub(super) fn judge(error: &postgres::Error) -> Verdict {
    match error.as_db_error() {
        Some(db) => judge_code(db.code().code(), is_fatal(db)),
        // Without an answer from the server the statement may still run.
        None => Verdict::Unknown,
    }
}

/// An ERROR means that the transaction was rolled back as a whole. What ends the
/// session (FATAL, PANIC) may come after the commit: an administrator's shutdown ends
/// the wait for a synchronous standby so.
fn judge_code(code: &str, fatal: bool) -> Verdict {
    match code {
        _ if fatal => Verdict::Unknown,
        "40001" | "40P01" | "55P03" => Verdict::Retry,
        "25006" => Verdict::Reconnect,
        "40003" => Verdict::Unknown,
        _ if ["08", "57P", "58", "XX"].iter().any(|class| code.starts_with(class)) => Verdict::Unknown,
        _ => Verdict::Refused,
    }
}

fn is_fatal(db: &DbError) -> bool {
    match db.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Fatal | Severity::Panic),
        None => true,
    }
}

/// Whether a notice casts doubt on the statement that it came with.
pub(super) fn is_warning(notice: &DbError) -> bool {
    match notice.parsed_severity() {
        Some(severity) => !matches!(severity, Severity::Notice | Severity::Info | Severity::Debug | Severity::Log),
        None => true,
    }
}

/// Severity, SQLSTATE and text, in one line.
pub(super) fn tell_db(db: &DbError) -> String {
    let mut text = format!("{} {}: {}", db.severity(), db.code().code(), db.message());
    for more in [db.detail(), db.hint()].into_iter().flatten() {
        text.push_str(" (");
        text.push_str(&more.replace('\n', " "));
        text.push(')');
    }
    text
}

/// An error in one line: the library's words, and then every cause.
pub(super) fn tell(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return tell_db(db);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let more = e.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = e.source();
    }
    if text.contains("UnsupportedCertVersion") {
        text.push_str(
            " (the server's certificate is of X.509 version 1: make one of version 3, with a subjectAltName)",
        );
    }
    if text.contains("UnknownIssuer") {
        text.push_str(" (sslrootcert has to name the authority that signed the server's certificate)");
    }
    if text.contains("password missing") {
        return "the server asks for a password: set PGPASSWORD, or add a line to ~/.pgpass".into();
    }
    text
}

/// What a person can do about it; empty if nothing is known that would help.
pub(super) fn remedy(error: &postgres::Error, pg: &Postgres) -> String {
    match error.code() {
        Some(code) => remedy_for(code, pg),
        None => String::new(),
    }
}

fn remedy_for(code: &SqlState, pg: &Postgres) -> String {
    match code.code() {
        "42501" => format!("; as the owner of the tables run: {}", super::sql::grants(pg).join(" ")),
        "42P01" | "3F000" => "; the tables are missing: make them with `locum schema --apply`".into(),
        "42703" => format!("; the tables in schema {} are not those of this version: see `locum schema`", pg.schema),
        "25006" => "; this server does not take writes".into(),
        "53100" => "; the database server's disk is full".into(),
        _ => String::new(),
    }
}

/// Whether a pooler refused the settings that we send with the first packet.
pub(super) fn refuses_settings(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.code().code() == "08P01" || db.message().contains("startup parameter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_certain_only_where_the_server_rolled_back() {
        for (code, fatal, verdict) in [
            ("40001", false, Verdict::Retry),
            ("40P01", false, Verdict::Retry),
            ("55P03", false, Verdict::Retry),
            ("25006", false, Verdict::Reconnect),
            ("42501", false, Verdict::Refused),
            ("42P01", false, Verdict::Refused),
            ("57014", false, Verdict::Refused),
            ("57P01", false, Verdict::Unknown),
            ("57P01", true, Verdict::Unknown),
            ("57P03", true, Verdict::Unknown),
            ("08006", false, Verdict::Unknown),
            ("40003", false, Verdict::Unknown),
            ("40001", true, Verdict::Unknown),
            ("XX000", false, Verdict::Unknown),
        ] {
            assert_eq!(judge_code(code, fatal), verdict, "{code} fatal={fatal}");
        }
    }
}
