//! What is done once, for a start or for a person: make the tables and the record,
//! ask every host how it is, show the cluster.
//!
//! Each call here takes its own thread and a deadline: a hung server costs its caller
//! the deadline and no more.

use super::super::Tried;
use super::connect::{self, Address, Found, Session};
use super::{Known, sql, trouble};
use crate::config::Postgres;
use crate::core::{Generation, Record};
use crate::status::Cluster;
use postgres::types::Type;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// The statements that make schema and tables, and in comments the rights that a role
/// needs at run time. Running them again changes nothing.
pub fn schema_sql(pg: &Postgres) -> String {
    format!(
        "-- Tables of locum in schema {}. Running this again changes nothing.\n{}\n{}\n\
         -- Rights of the role that locum connects as, unless it is the owner:\n{}",
        sql::quoted(&pg.schema),
        sql::make_schema(pg),
        sql::make_tables(pg),
        sql::grants(pg).map(|line| format!("-- {line}\n")).concat()
    )
}

/// What [`prepare`] found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The tables were missing, and are there now; of several hosts, each that saw it says so.
    pub tables_made: bool,
    /// The record was made just now: nobody may believe it before a ttl has passed.
    pub record_made: bool,
}

/// Why a store could not be prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareError {
    /// No server could be asked, or it did not answer in time: worth another try.
    Unreachable(String),
    /// Rights are missing; `remedy` is SQL for somebody who has them.
    Denied {
        /// What was refused.
        why: String,
        /// What to run.
        remedy: String,
    },
    /// The server refused, and will again.
    Refused(String),
}

impl fmt::Display for PrepareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrepareError::Unreachable(why) | PrepareError::Refused(why) => write!(f, "cannot prepare the store: {why}"),
            PrepareError::Denied { why, remedy } => write!(f, "cannot prepare the store: {why}\n{remedy}"),
        }
    }
}

impl std::error::Error for PrepareError {}

/// Makes the tables if they are missing and rights allow it, and the service's record
/// if it has none. Any number of hosts may do this at once, and again at each start.
///
/// `deadline` bounds the whole; `ttl` and `renew` are written into a new record.
///
/// # Errors
/// See [`PrepareError`].
pub fn prepare(
    pg: &Postgres,
    service: &str,
    ttl: Duration,
    renew: Duration,
    known: Arc<Known>,
    deadline: Duration,
) -> Result<Prepared, PrepareError> {
    let address = Arc::new(Address::new(pg, service, deadline));
    let service = service.to_owned();
    let fresh = Record::fresh(ttl, renew, super::super::random_seq().map_err(PrepareError::Refused)?);
    bounded(deadline, move || {
        let mut session = connect::connect(&address, &known, deadline * 3 / 4).map_err(PrepareError::Unreachable)?;
        let _mark = known.begin(session.host, deadline);
        let place = address.label(session.host);
        prepare_with(&mut session, &address.pg, &service, &fresh, &place)
    })
    .unwrap_or_else(|| Err(PrepareError::Unreachable(late(deadline))))
}

/// Makes the tables if they are missing; whether they were.
fn tables_with(session: &mut Session, pg: &Postgres, place: &str) -> Result<bool, PrepareError> {
    let failed = |e: postgres::Error, doing: &str| failed(&e, doing, pg, place);
    let rights = rights(session, pg).map_err(|e| failed(e, "look for our tables"))?;
    if !rights.tables.iter().all(|t| t.present) {
        make_tables(session, pg, rights.schema_present).map_err(|e| failed(e, "make the tables"))?;
        return Ok(true);
    }
    if !rights.suffice() {
        let why = format!("user {} may not use the tables in schema {} at {place}", pg.user, pg.schema);
        return Err(PrepareError::Denied { why, remedy: remedy(pg) });
    }
    Ok(false)
}

fn failed(error: &postgres::Error, doing: &str, pg: &Postgres, place: &str) -> PrepareError {
    let why = format!("cannot {doing} at {place}: {}", trouble::tell(error));
    match error.code().map(|c| c.code()) {
        Some("42501") => PrepareError::Denied { why, remedy: remedy(pg) },
        Some(_) => PrepareError::Refused(why),
        None => PrepareError::Unreachable(why),
    }
}

fn prepare_with(
    session: &mut Session,
    pg: &Postgres,
    service: &str,
    fresh: &Record,
    place: &str,
) -> Result<Prepared, PrepareError> {
    let tables_made = tables_with(session, pg, place)?;
    let failed = |e: postgres::Error, doing: &str| failed(&e, doing, pg, place);
    let (ttl, interval) = (sql::milliseconds(fresh.ttl), sql::milliseconds(fresh.renew));
    let rows = session
        .client
        .query_typed(
            &sql::make_record(pg),
            &[
                (&service, Type::TEXT),
                (&i32::try_from(fresh.format).unwrap_or(i32::MAX), Type::INT4),
                (&sql::number(fresh.seq), Type::INT8),
                (&ttl, Type::FLOAT8),
                (&interval, Type::FLOAT8),
                (&fresh.why, Type::TEXT),
            ],
        )
        .map_err(|e| failed(e, "make the record"))?;
    match session.warnings.take() {
        Some(text) => {
            Err(PrepareError::Unreachable(format!("cannot tell whether the record was made at {place}: {text}")))
        }
        None => Ok(Prepared { tables_made, record_made: !rows.is_empty() }),
    }
}

/// One batch is one transaction, and takes its lock first: the others wait, and then
/// find everything there. A right to make schemas is asked for only where one is missing.
fn make_tables(session: &mut Session, pg: &Postgres, schema_present: bool) -> Result<(), postgres::Error> {
    let schema = if schema_present { String::new() } else { sql::make_schema(pg) };
    let batch = format!("{}\n{schema}\n{}", sql::one_at_a_time(pg), sql::make_tables(pg));
    let mut tries = 3;
    loop {
        tries -= 1;
        match session.client.batch_execute(&batch) {
            // Made by somebody who does not take our lock, a database administrator for example.
            Err(e)
                if tries > 0
                    && e.code().is_some_and(|c| ["42P06", "42P07", "42710", "23505", "55P03"].contains(&c.code())) => {}
            other => return other,
        }
    }
}

fn remedy(pg: &Postgres) -> String {
    format!(
        "let a database administrator run `locum schema --apply` (or what `locum schema` prints), and then:\n  {}\n\
         or let locum make its tables itself:\n  {}",
        sql::grants(pg).join("\n  "),
        sql::grant_create(pg)
    )
}

/// What the role may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The schema is there.
    pub schema_present: bool,
    /// It may be used.
    pub schema_usage: bool,
    /// lease, member and history, in this order.
    pub tables: Vec<TableRights>,
}

/// What the role may do with one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRights {
    /// The table.
    pub name: String,
    /// It is there.
    pub present: bool,
    /// Granted.
    pub select: bool,
    /// Granted.
    pub insert: bool,
    /// Granted.
    pub update: bool,
}

impl Rights {
    /// Whether everything is there and allowed that a running agent needs.
    pub fn suffice(&self) -> bool {
        // History is only added to; `locum status` reads it.
        let enough = |t: &TableRights| t.present && t.select && t.insert && (t.update || t.name == "history");
        self.schema_usage && self.tables.len() == sql::TABLES.len() && self.tables.iter().all(enough)
    }
}

fn rights(session: &mut Session, pg: &Postgres) -> Result<Rights, postgres::Error> {
    let rows = session.client.query_typed(sql::RIGHTS, &[(&pg.schema, Type::TEXT)])?;
    let mut rights = Rights { schema_present: false, schema_usage: false, tables: Vec::new() };
    for row in rows {
        rights.schema_present = row.try_get("schema_present")?;
        rights.schema_usage = row.try_get("usage")?;
        rights.tables.push(TableRights {
            name: row.try_get("name")?,
            present: row.try_get("present")?,
            select: row.try_get("can_select")?,
            insert: row.try_get("can_insert")?,
            update: row.try_get("can_update")?,
        });
    }
    Ok(rights)
}

/// How every host of the list is, and what is wrong with the list as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Each host in its order (`host:port`), with its facts or why there are none.
    pub hosts: Vec<(String, Result<HostFacts, String>)>,
    /// The host that locum would use, or why it would use none.
    pub choice: Result<String, String>,
    /// What to run where the rights of the role do not suffice.
    pub remedy: String,
}

/// What one server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// It is a standby.
    pub in_recovery: bool,
    /// System identifier and timeline.
    pub generation: Generation,
    /// As the server has it; empty: a failover may lose what was committed.
    pub synchronous_standby_names: String,
    /// The protocol of this connection, or none without TLS.
    pub tls: Option<String>,
    /// The server's version.
    pub version: String,
    /// No pooler is in the way: wake-ups arrive.
    pub direct: bool,
    /// What our role may do there.
    pub rights: Rights,
    /// One statement there and back.
    pub round_trip: Duration,
}

/// Asks every host at once; returns within `deadline`. Nothing is written.
pub fn survey(pg: &Postgres, deadline: Duration) -> Survey {
    let known = Arc::new(Known::new(pg.hosts.len()));
    let address = Arc::new(Address::new(pg, "check", deadline));
    let labels: Vec<String> = (0..pg.hosts.len()).map(|host| address.label(host)).collect();
    let answer = bounded(deadline, move || {
        let found = connect::ask_all(&address, &known, deadline * 3 / 4, |_| None);
        let choice = connect::judge(&address, &known, &found).map(|host| address.label(host));
        let facts: Vec<_> = found
            .into_iter()
            .map(|f| match f {
                Found::Server(mut session) => host_facts(&mut session, &address.pg).map_err(|e| trouble::tell(&e)),
                Found::Silent(why) => Err(why),
            })
            .collect();
        (facts, choice)
    });
    let (facts, choice) =
        answer.unwrap_or_else(|| (labels.iter().map(|_| Err(late(deadline))).collect(), Err(late(deadline))));
    Survey { hosts: labels.into_iter().zip(facts).collect(), choice, remedy: remedy(pg) }
}

fn host_facts(session: &mut Session, pg: &Postgres) -> Result<HostFacts, postgres::Error> {
    let before = Instant::now();
    let rights = rights(session, pg)?;
    let round_trip = before.elapsed();
    let facts = session.facts.clone();
    Ok(HostFacts {
        in_recovery: facts.recovery,
        generation: facts.generation,
        synchronous_standby_names: facts.sync_names,
        tls: facts.tls,
        version: facts.version,
        direct: session.direct,
        rights,
        round_trip,
    })
}

/// A survey, told to people: a line for each host, and one for the choice.
/// `store_timeout` is what the running agent would grant a call.
pub fn findings(survey: &Survey, pg: &Postgres, store_timeout: Duration) -> Vec<(String, Tried)> {
    let mut all = Vec::new();
    for (host, facts) in &survey.hosts {
        let subject = format!("store {host}");
        let facts = match facts {
            Ok(facts) => facts,
            // One silent host of several is what the list is for.
            Err(why) if survey.hosts.len() > 1 => {
                all.push((subject, Tried::Doubtful(why.clone())));
                continue;
            }
            Err(why) => {
                all.push((subject, Tried::Unreachable(why.clone())));
                continue;
            }
        };
        let role = if facts.in_recovery { "standby" } else { "takes writes" };
        let tls = facts.tls.as_deref().unwrap_or("no TLS");
        let pooler = if facts.direct { "" } else { ", behind a pooler (no wake-ups: a hand-over takes a cycle)" };
        let trip = facts.round_trip;
        let text = format!(
            "PostgreSQL {}, {role}, timeline {}, {tls}, round trip {:.1} ms{pooler}",
            facts.version,
            facts.generation.timeline,
            trip.as_secs_f64() * 1e3
        );
        let tried = if trip > store_timeout / 4 {
            Tried::Doubtful(format!("{text}: slow against lease.store_timeout of {store_timeout:?}"))
        } else {
            Tried::Fine(text)
        };
        all.push((subject, tried));
        if !facts.in_recovery {
            all.push((format!("rights {host}"), rights_told(&facts.rights, pg, &survey.remedy)));
        }
    }
    match (&survey.choice, survey.hosts.as_slice()) {
        (Ok(host), _) => all.push(("store".into(), Tried::Fine(format!("{host} would be used")))),
        // Its own line has said why already.
        (Err(_), [(_, Err(_))]) => {}
        (Err(why), _) => all.push(("store".into(), Tried::Unreachable(why.clone()))),
    }
    all
}

fn rights_told(rights: &Rights, pg: &Postgres, remedy: &str) -> Tried {
    if rights.suffice() {
        return Tried::Fine(format!("user {} may use the tables in schema {}", pg.user, pg.schema));
    }
    if rights.tables.iter().any(|table| !table.present) {
        return Tried::Doubtful(format!(
            "the tables in schema {} are missing: locum run makes them if it may, or run locum schema --apply",
            pg.schema
        ));
    }
    Tried::Denied(format!("user {} may not use the tables in schema {}\n{remedy}", pg.user, pg.schema))
}

/// Makes schema and tables if they are missing, within `deadline`.
///
/// # Errors
/// See [`PrepareError`].
pub fn make_schema(pg: &Postgres, deadline: Duration) -> Result<(), PrepareError> {
    let known = Arc::new(Known::new(pg.hosts.len()));
    let address = Arc::new(Address::new(pg, "schema", deadline));
    bounded(deadline, move || {
        let mut session = connect::connect(&address, &known, deadline * 3 / 4).map_err(PrepareError::Unreachable)?;
        let _mark = known.begin(session.host, deadline);
        let place = address.label(session.host);
        tables_with(&mut session, &address.pg, &place).map(|_| ())
    })
    .unwrap_or_else(|| Err(PrepareError::Unreachable(late(deadline))))
}

/// The cluster as one server shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    /// Which server answered, as `host:port`.
    pub server: String,
    /// Its system identifier and timeline.
    pub generation: Generation,
    /// It is a standby: what it shows may be old.
    pub in_recovery: bool,
    /// None if the service has no record yet.
    pub cluster: Option<Cluster>,
}

/// Reads the service's record, members and history; from a standby server if no other
/// answers. Nothing is written, and no member is made.
///
/// # Errors
/// No server answered within `deadline`, or it refused; in words.
pub fn overview(pg: &Postgres, service: &str, deadline: Duration) -> Result<Overview, String> {
    let known = Arc::new(Known::new(pg.hosts.len()));
    let address = Arc::new(Address::new(pg, service, deadline));
    let service = service.to_owned();
    let answer = bounded(deadline, move || {
        let limit = deadline * 3 / 4;
        let enough = |s: &Session| (!s.facts.recovery).then_some(limit / 4);
        let found = connect::ask_all(&address, &known, limit, enough);
        let choice = connect::judge(&address, &known, &found);
        let mut sessions: Vec<Session> = found
            .into_iter()
            .filter_map(|f| match f {
                Found::Server(session) => Some(*session),
                Found::Silent(_) => None,
            })
            .collect();
        // A store that must not be written to may still be read.
        let best = match &choice {
            Ok(host) => sessions.iter().position(|s| s.host == *host),
            Err(_) => (0..sessions.len()).max_by_key(|i| {
                let facts = &sessions[*i].facts;
                (facts.generation.timeline, !facts.recovery)
            }),
        };
        let mut session = match best {
            Some(i) => sessions.swap_remove(i),
            None => return Err(choice.err().unwrap_or_default()),
        };
        drop(sessions);
        let place = address.label(session.host);
        overview_with(&mut session, &address.pg, &service, place)
    });
    answer.unwrap_or_else(|| Err(late(deadline))).map_err(|why| format!("cannot read the lease: {why}"))
}

fn overview_with(session: &mut Session, pg: &Postgres, service: &str, place: String) -> Result<Overview, String> {
    let rows = session
        .client
        .query_typed(&sql::overview(pg), &[(&service, Type::TEXT)])
        .map_err(|e| format!("{place}: {}{}", trouble::tell(&e), trouble::remedy(&e, pg)))?;
    let row = rows.first().ok_or_else(|| format!("{place}: empty answer"))?;
    let text = |e: postgres::Error| format!("{place}: {}", trouble::tell(&e));
    let sighting = sql::sighting(row)?;
    let since: Option<f64> = row.try_get("since").map_err(text)?;
    let members = sql::members_of(row.try_get("members").map_err(text)?);
    Ok(Overview {
        generation: session.facts.generation.clone(),
        in_recovery: session.facts.recovery,
        cluster: sighting.record.map(|record| Cluster {
            since: record.holder.is_some().then_some(since).flatten(),
            holder: record.holder.map(|h| h.node),
            epoch: record.epoch,
            token: record.token,
            renewed: sighting.age.map(|age| age.as_secs_f64()),
            ttl: record.ttl.as_secs_f64(),
            why: record.why,
            members,
        }),
        server: place,
    })
}

/// Runs `work` on a thread of its own; none if it takes longer. The thread then ends
/// by itself when its server thaws or its socket dies.
fn bounded<T: Send + 'static>(deadline: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, answer) = channel();
    let run = move || {
        let _ = sender.send(work());
    };
    thread::Builder::new().name("pg-once".into()).spawn(run).ok()?;
    answer.recv_timeout(deadline).ok()
}

fn late(deadline: Duration) -> String {
    format!("no answer within {:.1} s", deadline.as_secs_f64())
}
