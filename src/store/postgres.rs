//! The lease in PostgreSQL: one row a service, one statement a call.
//!
//! A row and not an advisory lock: a lock would end with its session, move with a
//! pooler, and forget its epoch. Nothing here keeps state in a session, and no call
//! is more than one autocommit statement.
//!
//! Every call may block for as long as a server hangs, whatever its time-outs say: this
//! runs on a thread that its owner can give up. What it shares with the next such
//! thread is [`Known`].
//!
//! What must never happen here: an outcome told as certain that is not, a server that
//! is not the highest timeline ever seen, a cancel request, and a password in a message.

mod connect;
mod known;
mod operate;
mod sql;
mod tls;
mod trouble;

pub use known::Known;
pub use operate::{PrepareError, findings, make_schema, overview, prepare, schema_sql, survey};

use super::Store;
use crate::config::Postgres;
use crate::core::{Entry, Look, Member, Record, Seen, Sighting, Swap, Trouble, Version};
use connect::{Address, Session};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use trouble::Verdict;

/// Between two tries of a statement that met another one.
const PAUSE: Duration = Duration::from_millis(10);

/// How often one call may connect anew: a server that ends each session at once is not
/// to be besieged.
const MOST_CONNECTIONS: u32 = 2;

/// A service's record in PostgreSQL. One thread owns it, and its connection with it.
pub struct PostgresStore {
    address: Arc<Address>,
    known: Arc<Known>,
    service: String,
    channel: String,
    look: String,
    swap: String,
    session: Option<Session>,
    listening: Listening,
    /// When this connection last answered.
    heard: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// Not asked for yet on this connection.
    NotYet,
    Yes,
    /// A pooler is in the way, or the server refused.
    No,
}

/// A store for `service`; nothing is connected before the first call.
///
/// `store_timeout` is the bound on one call (*Q*), from which every other time-out follows;
/// `known` is one for all stores that an agent opens, one after the other, on this address.
///
/// # Errors
/// An address without hosts.
pub fn open(pg: &Postgres, service: &str, store_timeout: Duration, known: Arc<Known>) -> Result<PostgresStore, String> {
    if pg.hosts.is_empty() {
        return Err("cannot use the store: its address names no host".into());
    }
    let lock_timeout = connect::lock_timeout(store_timeout);
    Ok(PostgresStore {
        address: Arc::new(Address::new(pg, service, store_timeout)),
        known,
        service: service.into(),
        channel: sql::channel(service),
        look: sql::look(pg, lock_timeout),
        swap: sql::swap(pg, lock_timeout),
        session: None,
        listening: Listening::NotYet,
        heard: Instant::now(),
    })
}

/// A parameter with its type: so no statement has to be prepared to learn it.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Whether a statement may be sent again when nobody knows what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// It says the same twice.
    Harmless,
    /// Only once it is certain that the first one changed nothing.
    Never,
}

impl Store for PostgresStore {
    fn look(&mut self, me: &Member) -> Result<Look, Trouble> {
        let (role, health) = (me.role.to_string(), me.health.to_string());
        let service = self.service.clone();
        let params: [Param; 7] = [
            (&service, Type::TEXT),
            (&me.node, Type::TEXT),
            (&me.instance, Type::TEXT),
            (&me.host, Type::TEXT),
            (&me.version, Type::TEXT),
            (&role, Type::TEXT),
            (&health, Type::TEXT),
        ];
        let statement = self.look.clone();
        let row = self.run("read the lease", &statement, &params, Repeat::Harmless)?;
        let sighting = self.sighting(&row)?;
        // The statement sees the members as they were before it: our own row is what we said.
        let others: Option<&str> = row.try_get("members").unwrap_or_default();
        let mut members = sql::members_of(others);
        members.push(Seen { member: me.clone(), age: Duration::ZERO });
        members.sort_by(|a, b| a.member.node.cmp(&b.member.node));
        Ok(Look { sighting, members })
    }

    fn swap(&mut self, version: &Version, next: &Record, entry: Option<&Entry>, me: &Member) -> Result<Swap, Trouble> {
        let Some(generation) = &next.generation else {
            return Err(Trouble::Refused("cannot write the lease: the record names no generation".into()));
        };
        let refused = |e: serde_json::Error| Trouble::Refused(format!("cannot write the lease: {e}"));
        let seen_system = version.generation.as_ref().map(|g| g.system.as_str());
        let seen_timeline = version.generation.as_ref().map(|g| i64::from(g.timeline));
        let (seen_epoch, seen_seq) = (sql::number(version.epoch), sql::number(version.seq));
        let format = i32::try_from(next.format).unwrap_or(i32::MAX);
        let timeline = i64::from(generation.timeline);
        let (epoch, token, seq) = (sql::number(next.epoch), sql::number(next.token), sql::number(next.seq));
        let node = next.holder.as_ref().map(|h| h.node.as_str());
        let instance = next.holder.as_ref().map(|h| h.instance.as_str());
        let (ttl, renew) = (sql::milliseconds(next.ttl), sql::milliseconds(next.renew));
        let unfenced = serde_json::to_string(&next.unfenced).map_err(refused)?;
        let handover = next.handover.as_ref().map(serde_json::to_string).transpose().map_err(refused)?;
        let what = entry.map(|e| e.what.to_string());
        let entry_node = entry.map(|e| e.node.as_str());
        let entry_epoch = entry.map(|e| sql::number(e.epoch));
        let entry_token = entry.map(|e| sql::number(e.token));
        let entry_why = entry.map(|e| e.why.as_str());
        let (role, health) = (me.role.to_string(), me.health.to_string());
        let (service, channel) = (self.service.clone(), self.channel.clone());
        let params: [Param; 31] = [
            (&service, Type::TEXT),
            (&seen_system, Type::TEXT),
            (&seen_timeline, Type::INT8),
            (&seen_epoch, Type::INT8),
            (&seen_seq, Type::INT8),
            (&format, Type::INT4),
            (&generation.system, Type::TEXT),
            (&timeline, Type::INT8),
            (&epoch, Type::INT8),
            (&token, Type::INT8),
            (&seq, Type::INT8),
            (&node, Type::TEXT),
            (&instance, Type::TEXT),
            (&ttl, Type::FLOAT8),
            (&renew, Type::FLOAT8),
            (&unfenced, Type::TEXT),
            (&handover, Type::TEXT),
            (&next.why, Type::TEXT),
            (&what, Type::TEXT),
            (&entry_node, Type::TEXT),
            (&entry_epoch, Type::INT8),
            (&entry_token, Type::INT8),
            (&entry_why, Type::TEXT),
            (&channel, Type::TEXT),
            (&me.node, Type::TEXT),
            (&me.instance, Type::TEXT),
            (&me.host, Type::TEXT),
            (&me.version, Type::TEXT),
            (&role, Type::TEXT),
            (&health, Type::TEXT),
            (&next.previous, Type::TEXT),
        ];
        let statement = self.swap.clone();
        let row = self.run("write the lease", &statement, &params, Repeat::Never)?;
        match row.try_get::<_, bool>("done") {
            Ok(true) => Ok(Swap::Done),
            Ok(false) => Ok(Swap::Changed(self.sighting(&row)?)),
            Err(e) => Err(Trouble::Unknown(format!("cannot write the lease: {}", trouble::tell(&e)))),
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, Trouble> {
        let start = Instant::now();
        let mut told = false;
        if self.listens()
            && let Some(session) = &mut self.session
        {
            let heard = session.client.notifications().timeout_iter(limit).next();
            match heard {
                Ok(note) => {
                    told = note.is_some();
                    // It has just been read to its end: no look for a good-bye before the next statement.
                    self.heard = if told { Instant::now() } else { self.heard };
                }
                Err(_) => self.hang_up(),
            }
        }
        if !told {
            thread::sleep(limit.saturating_sub(start.elapsed()));
        }
        Ok(told)
    }
}

impl PostgresStore {
    /// One statement, on a connection that is made if there is none, repeated while it
    /// is certain (or harmless) and there is time: the single row of its answer.
    fn run(&mut self, what: &str, statement: &str, params: &[Param], repeat: Repeat) -> Result<Row, Trouble> {
        let limit = self.address.limit;
        let until = Instant::now() + limit;
        let mut last = String::new();
        let mut connections = 0;
        loop {
            // Half a call must be left for a further try, or its owner gives up on us.
            let left = until.saturating_duration_since(Instant::now());
            if !last.is_empty() && (left < limit / 2 || connections >= MOST_CONNECTIONS) {
                return Err(Trouble::Refused(last));
            }
            let session = match &mut self.session {
                Some(session) => session,
                None => {
                    connections += 1;
                    self.listening = Listening::NotYet;
                    self.heard = Instant::now();
                    let session = connect::connect(&self.address, &self.known, left * 3 / 4)
                        .map_err(|why| Trouble::Refused(format!("cannot {what}: {why}")))?;
                    self.session.insert(session)
                }
            };
            let place = self.address.label(session.host);
            let mark = self.known.begin(session.host, limit);
            if let Err(e) = read_what_came(&mut session.client, self.heard.elapsed()) {
                last = format!("cannot {what} at {place}: {}", trouble::tell(&e));
                self.hang_up();
                continue;
            }
            session.warnings.take();
            let answer = session.client.query_typed(statement, params);
            let warning = session.warnings.take();
            drop(mark);
            self.heard = Instant::now();
            let error = match (answer, warning) {
                (Ok(_), Some(text)) if repeat == Repeat::Never => {
                    self.hang_up();
                    return Err(Trouble::Unknown(format!(
                        "cannot tell whether the lease was written at {place}: {text}"
                    )));
                }
                (Ok(rows), _) => match rows.into_iter().next() {
                    Some(row) => return Ok(row),
                    None => return Err(Trouble::Unknown(format!("cannot {what} at {place}: empty answer"))),
                },
                (Err(e), Some(text)) => {
                    log::warn!("the database server at {place} says: {text}");
                    e
                }
                (Err(e), None) => e,
            };
            last = format!(
                "cannot {what} at {place}: {}{}",
                trouble::tell(&error),
                trouble::remedy(&error, &self.address.pg)
            );
            match trouble::judge(&error) {
                Verdict::Retry => thread::sleep(PAUSE),
                Verdict::Reconnect => self.hang_up(),
                Verdict::Refused => return Err(Trouble::Refused(last)),
                Verdict::Unknown => {
                    self.hang_up();
                    if repeat == Repeat::Never {
                        return Err(Trouble::Unknown(last));
                    }
                }
            }
        }
    }

    /// What an answer shows; a server that fell behind what was seen before is left at once.
    fn sighting(&mut self, row: &Row) -> Result<Sighting, Trouble> {
        let sighting = sql::sighting(row).map_err(|e| Trouble::Refused(format!("cannot read the lease: {e}")))?;
        let present = &sighting.generation;
        if let Some(seen) = self.known.highest()
            && (seen.system != present.system || seen.timeline > present.timeline)
        {
            let why = format!("cannot use the store: it answers as generation {present}, and {seen} was seen before");
            self.hang_up();
            return Err(Trouble::Refused(why));
        }
        self.known.remember(present.clone());
        Ok(sighting)
    }

    /// Drops the connection, here on the thread that owns it: if that hangs, it is
    /// counted, and the owner of this thread gives it up. Never a cancel request.
    fn hang_up(&mut self) {
        if let Some(session) = self.session.take() {
            let mark = self.known.begin(session.host, self.address.limit);
            drop(session);
            drop(mark);
        }
    }

    /// Whether this connection tells of claims and releases: asks for it once.
    fn listens(&mut self) -> bool {
        if let (Listening::NotYet, Some(session)) = (self.listening, &mut self.session) {
            self.listening = Listening::No;
            if session.direct {
                let mark = self.known.begin(session.host, self.address.limit);
                let asked = session.client.batch_execute(&format!("LISTEN {}", sql::quoted(&self.channel)));
                drop(mark);
                match asked {
                    Ok(()) => self.listening = Listening::Yes,
                    Err(e) => {
                        log::debug!("no wake-ups from the database server: {}", trouble::tell(&e));
                        self.hang_up();
                    }
                }
            }
        }
        self.listening == Listening::Yes
    }
}

/// After a shorter silence than this, nobody looks for a good-bye.
const SILENCE: Duration = Duration::from_millis(100);

/// Takes what lies in the socket already: wake-ups that an answer will outdate anyway,
/// and the server's good-bye, which is better seen before a statement is sent than after.
/// Only a read that may wait asks the kernel at all. The library's timer rounds up to the
/// next millisecond, and a whole one to two.
fn read_what_came(client: &mut Client, silence: Duration) -> Result<(), postgres::Error> {
    while client.notifications().iter().next()?.is_some() {}
    if silence >= SILENCE {
        while client.notifications().timeout_iter(Duration::from_nanos(1)).next()?.is_some() {}
    }
    if client.is_closed() { client.check_connection() } else { Ok(()) }
}
