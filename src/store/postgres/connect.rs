//! From a list of hosts to one connection to the one server that may be trusted.
//!
//! libpq takes the first host that takes writes, and with the library here one that
//! accepts and never answers keeps the others from ever being asked. An old primary that was started
//! again takes writes too. So every host is asked at once, each on a thread of its
//! own, and what they say is judged together: the highest timeline wins, and never
//! one below the highest that was ever seen.
//!
//! What must never happen here: waiting longer than the caller allows, and dropping a
//! connection that hangs on a thread that somebody waits for.

use super::known::{Known, MOST_CALLS, open};
use super::{sql, tls, trouble};
use crate::config::{Postgres, SslMode};
use crate::core::Generation;
use postgres::config::{ChannelBinding, SslMode as Tls};
use postgres::{Client, Config, NoTls};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Where to connect, as whom, and how long a call may take.
pub(super) struct Address {
    pub(super) pg: Postgres,
    pub(super) application: String,
    /// Bound on one call (*Q*).
    pub(super) limit: Duration,
}

impl Address {
    /// What a service connects with; `limit` bounds one call.
    pub(super) fn new(pg: &Postgres, service: &str, limit: Duration) -> Address {
        Address { pg: pg.clone(), application: format!("locum/{service}"), limit }
    }

    /// `host:port`, for people.
    pub(super) fn label(&self, host: usize) -> String {
        match self.pg.hosts.get(host) {
            Some((name, port)) => format!("{name}:{port}"),
            None => "no host".into(),
        }
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) recovery: bool,
    pub(super) read_only: bool,
    pub(super) generation: Generation,
    pub(super) sync_names: String,
    pub(super) version: String,
    /// When it was started: tells two names of one server from two servers.
    pub(super) started: String,
    pub(super) tls: Option<String>,
}

/// The notices of severity WARNING that came in since somebody last asked.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<Option<String>>>);

impl Warnings {
    fn note(&self, text: String) {
        open(&self.0).get_or_insert(text);
    }

    /// The first warning since the last call of this.
    pub(super) fn take(&self) -> Option<String> {
        open(&self.0).take()
    }
}

/// A connection that has proved to answer.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) host: usize,
    pub(super) facts: Facts,
    pub(super) warnings: Warnings,
    /// Our settings arrived: there is no pooler between the server and us.
    pub(super) direct: bool,
}

/// What came of asking one host.
pub(super) enum Found {
    /// It answered.
    Server(Box<Session>),
    /// It did not, and why.
    Silent(String),
}

/// Asks every host at once. `enough` is shown each answer as it comes and says how
/// long to wait for those that are still missing; hosts that did not answer by then are told so.
pub(super) fn ask_all(
    address: &Arc<Address>,
    known: &Arc<Known>,
    limit: Duration,
    mut enough: impl FnMut(&Session) -> Option<Duration>,
) -> Vec<Found> {
    let start = Instant::now();
    let mut until = start + limit;
    let count = address.pg.hosts.len();
    let mut found: Vec<Option<Found>> = (0..count).map(|_| None).collect();
    // A rendezvous: an answer is either taken, or stays on its own thread.
    let (sender, answers) = sync_channel::<(usize, Found)>(0);
    for (host, slot) in found.iter_mut().enumerate() {
        if known.is_frozen(host) {
            *slot = Some(Found::Silent(format!("not asked: {MOST_CALLS} calls to it are still unanswered")));
            continue;
        }
        let (address, known, sender) = (address.clone(), known.clone(), sender.clone());
        let ask = move || ask_and_hand_over(&address, &known, host, start + limit, &sender);
        if let Err(e) = thread::Builder::new().name(format!("pg-connect-{host}")).spawn(ask) {
            *slot = Some(Found::Silent(format!("cannot start a thread: {e}")));
        }
    }
    drop(sender);
    while found.iter().any(Option::is_none) {
        match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((host, answer)) => {
                if let Found::Server(session) = &answer
                    && let Some(more) = enough(session)
                {
                    until = until.min(Instant::now() + more);
                }
                if let Some(slot) = found.get_mut(host) {
                    *slot = Some(answer);
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    let waited = start.elapsed().as_secs_f64();
    found.into_iter().map(|f| f.unwrap_or_else(|| Found::Silent(format!("no answer within {waited:.1} s")))).collect()
}

/// A late answer finds nobody to take it, and its client is dropped here, where nobody
/// waits; until that is done the call counts as under way.
fn ask_and_hand_over(
    address: &Address,
    known: &Arc<Known>,
    host: usize,
    until: Instant,
    sender: &SyncSender<(usize, Found)>,
) {
    let _mark = known.begin(host, address.limit);
    let found = match ask(address, host, until) {
        Ok(session) => Found::Server(Box::new(session)),
        Err(why) => Found::Silent(why),
    };
    if let Err(unwanted) = sender.send((host, found)) {
        drop(unwanted);
    }
}

/// Connects to one host and asks what it is.
fn ask(address: &Address, host: usize, until: Instant) -> Result<Session, String> {
    let (name, port) = address.pg.hosts.get(host).ok_or("there is no such host")?;
    if name.starts_with('/') {
        return open_session(address, host, None, until);
    }
    let places: Vec<IpAddr> = (name.as_str(), *port)
        .to_socket_addrs()
        .map_err(|e| format!("cannot look up {name}: {e}"))?
        .map(|a| a.ip())
        .collect();
    let mut last = format!("cannot look up {name}: no address");
    for (i, place) in places.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(places.len() - i).unwrap_or(1);
        match open_session(address, host, Some(*place), Instant::now() + share) {
            Ok(session) => return Ok(session),
            Err(why) => last = why,
        }
    }
    Err(last)
}

/// Connects, giving way where libpq and poolers need it: without our settings if a
/// pooler refuses them, without TLS if that is only preferred.
fn open_session(address: &Address, host: usize, place: Option<IpAddr>, until: Instant) -> Result<Session, String> {
    let warnings = Warnings::default();
    let mut settings = true;
    let mut encrypted = address.pg.sslmode != SslMode::Disable && place.is_some();
    loop {
        let mark = settings.then(|| format!("{:p}", Arc::as_ptr(&warnings.0)));
        let config = config(address, host, place, until, mark.as_deref(), encrypted, &warnings);
        let connected = if encrypted { config.connect(tls::connector(&address.pg)?) } else { config.connect(NoTls) };
        let client = match connected {
            Ok(client) => client,
            Err(e) if settings && trouble::refuses_settings(&e) => {
                settings = false;
                continue;
            }
            Err(e) if encrypted && address.pg.sslmode == SslMode::Prefer && wants_plain(&e) => {
                encrypted = false;
                continue;
            }
            Err(e) => return Err(trouble::tell(&e)),
        };
        return hello(client, host, warnings, mark.as_deref());
    }
}

/// A failed handshake, or a server that wants this user only without TLS.
fn wants_plain(error: &postgres::Error) -> bool {
    match error.as_db_error() {
        Some(db) => db.code().code() == "28000",
        None => !error.is_closed() && error.to_string().contains("TLS"),
    }
}

fn config(
    address: &Address,
    host: usize,
    place: Option<IpAddr>,
    until: Instant,
    mark: Option<&str>,
    encrypted: bool,
    warnings: &Warnings,
) -> Config {
    let pg = &address.pg;
    let limit = address.limit;
    let mut config = Config::new();
    if let Some((name, port)) = pg.hosts.get(host) {
        // The name is for the certificate, the address for the socket: the library's own
        // look-up would take a thread of its own, and as long as it likes.
        config.host(name).port(*port);
    }
    if let Some(ip) = place {
        config.hostaddr(ip);
    }
    config.user(&pg.user).dbname(&pg.database).application_name(&address.application);
    if let Some(Some(password)) = pg.passwords.get(host) {
        config.password(&password.0);
    }
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    config
        .connect_timeout(left)
        // Not below a second: one lost segment is sent again after 200 ms at the earliest.
        .tcp_user_timeout(limit.max(Duration::from_secs(1)))
        .keepalives(true)
        // The kernel counts these in whole seconds.
        .keepalives_idle(limit.max(Duration::from_secs(1)))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(2)
        .ssl_mode(match (encrypted, pg.sslmode) {
            (false, _) => Tls::Disable,
            (true, SslMode::Prefer) => Tls::Prefer,
            (true, _) => Tls::Require,
        })
        .channel_binding(ChannelBinding::Prefer);
    if let Some(mark) = mark {
        config.options(&settings(limit, mark));
    }
    let warnings = warnings.clone();
    config.notice_callback(move |notice| {
        if trouble::is_warning(&notice) {
            warnings.note(trouble::tell_db(&notice));
        } else {
            log::debug!("the database server says: {}", trouble::tell_db(&notice));
        }
    });
    config
}

/// What a session of ours must have whatever the defaults of server, database and role
/// are. The mark shows whether the settings reached the server at all.
fn settings(limit: Duration, mark: &str) -> String {
    let ms = limit.as_millis().max(1);
    format!(
        "-c default_transaction_isolation=read\\ committed -c search_path=pg_catalog -c client_min_messages=warning \
         -c lock_timeout={}ms -c statement_timeout={ms}ms -c idle_in_transaction_session_timeout={ms}ms \
         -c locum.direct={mark}",
        lock_timeout(limit).as_millis().max(1)
    )
}

/// How long a statement may wait for the row: time for another try must be left in *Q*.
pub(super) fn lock_timeout(limit: Duration) -> Duration {
    limit / 3
}

fn hello(mut client: Client, host: usize, warnings: Warnings, mark: Option<&str>) -> Result<Session, String> {
    let row = match client.query_typed(sql::HELLO, &[]) {
        Ok(rows) => rows.into_iter().next().ok_or("it does not say what it is")?,
        Err(e) => return Err(trouble::tell(&e)),
    };
    let text = |e: postgres::Error| trouble::tell(&e);
    let direct: String = row.try_get("direct").map_err(text)?;
    let facts = Facts {
        recovery: row.try_get("recovery").map_err(text)?,
        read_only: row.try_get("read_only").map_err(text)?,
        generation: Generation {
            system: row.try_get("system").map_err(text)?,
            timeline: sql::timeline(row.try_get("timeline").map_err(text)?)?,
        },
        sync_names: row.try_get("sync_names").map_err(text)?,
        version: row.try_get("version").map_err(text)?,
        started: row.try_get("started").map_err(text)?,
        tls: row.try_get("tls").map_err(text)?,
    };
    warnings.take();
    Ok(Session { client, host, facts, warnings, direct: mark == Some(direct.as_str()) })
}

/// The one server that may be written to.
///
/// # Errors
/// None can be had within `limit`, or none may be trusted; the message names every host.
pub(super) fn connect(address: &Arc<Address>, known: &Arc<Known>, limit: Duration) -> Result<Session, String> {
    // Once one takes writes, a silent one gets a moment to say that it has a later timeline.
    let enough = |s: &Session| (!s.facts.recovery && !s.facts.read_only).then_some(limit / 4);
    let found = ask_all(address, known, limit, enough);
    let host = judge(address, known, &found)?;
    // The other connections are dropped here: each has just answered, so that does not hang.
    match found.into_iter().nth(host) {
        Some(Found::Server(session)) => {
            known.remember(session.facts.generation.clone());
            Ok(*session)
        }
        _ => Err("the chosen host did not answer".into()),
    }
}

/// Which host is the one server that may be written to.
///
/// # Errors
/// None is; the message names every host.
pub(super) fn judge(address: &Address, known: &Known, found: &[Found]) -> Result<usize, String> {
    let view = |(host, found): (usize, &Found)| {
        let facts = match found {
            Found::Server(session) => Ok(session.facts.clone()),
            Found::Silent(why) => Err(why.clone()),
        };
        (address.label(host), facts)
    };
    let hosts: Vec<_> = found.iter().enumerate().map(view).collect();
    choose(&hosts, known.highest().as_ref(), address.pg.accept_async)
}

/// Judges what the hosts said, each with its label; the index of the one to use.
fn choose(
    hosts: &[(String, Result<Facts, String>)],
    highest: Option<&Generation>,
    accept_async: bool,
) -> Result<usize, String> {
    let writable: Vec<(usize, &str, &Facts)> = hosts
        .iter()
        .enumerate()
        .filter_map(|(i, (label, facts))| match facts {
            Ok(f) if !f.recovery && !f.read_only => Some((i, label.as_str(), f)),
            _ => None,
        })
        .collect();
    let Some((_, first_label, first)) = writable.first() else {
        return Err(match hosts {
            [_] => tell_hosts(hosts),
            _ => format!("no host takes writes: {}", tell_hosts(hosts)),
        });
    };
    let system = match highest {
        Some(seen) => {
            if !writable.iter().any(|(_, _, f)| f.generation.system == seen.system) {
                return Err(format!(
                    "{first_label} is another database cluster (system identifier {}) than the one seen before ({}); \
                     if it was replaced on purpose, restart locum on every host",
                    first.generation.system, seen.system
                ));
            }
            &seen.system
        }
        None => {
            if let Some((_, label, other)) =
                writable.iter().find(|(_, _, f)| f.generation.system != first.generation.system)
            {
                return Err(format!(
                    "{first_label} and {label} are two different database clusters (system identifiers {} and {}); \
                     all hosts of the list must be copies of one",
                    first.generation.system, other.generation.system
                ));
            }
            &first.generation.system
        }
    };
    let ours: Vec<_> = writable.into_iter().filter(|(_, _, f)| f.generation.system == *system).collect();
    let Some((host, label, best)) = ours.iter().max_by_key(|(_, _, f)| f.generation.timeline) else {
        return Err(format!("no host takes writes: {}", tell_hosts(hosts)));
    };
    let timeline = best.generation.timeline;
    if let Some((_, other, _)) =
        ours.iter().find(|(_, _, f)| f.generation.timeline == timeline && f.started != best.started)
    {
        return Err(format!(
            "{label} and {other} are two servers that both take writes on timeline {timeline}; stop one of them"
        ));
    }
    // A standby that already follows a later timeline knows of a promotion too.
    let told = hosts.iter().filter_map(|(_, f)| f.as_ref().ok()).filter(|f| f.generation.system == *system);
    let floor = told.map(|f| f.generation.timeline).chain(highest.map(|g| g.timeline)).max().unwrap_or(0);
    if timeline < floor {
        return Err(format!(
            "{label} is an old primary: it is on timeline {timeline}, and {floor} has been seen; stop it, and bring \
             back the promoted server ({})",
            tell_hosts(hosts)
        ));
    }
    if hosts.len() > 1 && best.sync_names.is_empty() && !accept_async {
        return Err(format!(
            "{label} has an empty synchronous_standby_names: a failover could forget who holds the lease, and two hosts \
             would run the command; set it there, or set lease.async_store = \"accept\" to live with that"
        ));
    }
    Ok(*host)
}

fn tell_hosts(hosts: &[(String, Result<Facts, String>)]) -> String {
    let tell = |(label, facts): &(String, Result<Facts, String>)| match facts {
        Ok(f) if f.recovery => format!("{label}: a standby, takes no writes"),
        Ok(f) if f.read_only => format!("{label}: default_transaction_read_only is on"),
        Ok(f) => format!("{label}: on timeline {}", f.generation.timeline),
        Err(why) => format!("{label}: {why}"),
    };
    hosts.iter().map(tell).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(system: &str, timeline: u32) -> Facts {
        Facts {
            recovery: false,
            read_only: false,
            generation: Generation { system: system.into(), timeline },
            sync_names: "s".into(),
            version: "15".into(),
            started: format!("{system}{timeline}"),
            tls: None,
        }
    }

    fn pick(hosts: &[Result<Facts, &'static str>], highest: Option<Generation>) -> Result<usize, String> {
        let views: Vec<_> =
            hosts.iter().enumerate().map(|(i, f)| (format!("db{i}:5432"), f.clone().map_err(String::from))).collect();
        choose(&views, highest.as_ref(), false)
    }

    fn seen(system: &str, timeline: u32) -> Option<Generation> {
        Some(Generation { system: system.into(), timeline })
    }

    #[test]
    fn the_highest_timeline_wins() {
        assert_eq!(pick(&[Ok(server("a", 1)), Ok(server("a", 2))], None), Ok(1));
        assert_eq!(pick(&[Err("refused"), Ok(server("a", 2))], seen("a", 2)), Ok(1));
    }

    #[test]
    fn an_old_primary_is_never_taken() {
        assert!(pick(&[Ok(server("a", 1)), Err("refused")], seen("a", 2)).unwrap_err().contains("old primary"));
        let standby = Facts { recovery: true, ..server("a", 2) };
        assert!(pick(&[Ok(server("a", 1)), Ok(standby)], None).unwrap_err().contains("old primary"));
    }

    #[test]
    fn another_cluster_is_never_taken() {
        assert!(pick(&[Ok(server("b", 9))], seen("a", 1)).unwrap_err().contains("another database cluster"));
        assert!(pick(&[Ok(server("a", 1)), Ok(server("b", 1))], None).unwrap_err().contains("two different"));
        assert_eq!(pick(&[Ok(server("b", 9)), Ok(server("a", 1))], seen("a", 1)), Ok(1));
    }

    #[test]
    fn two_primaries_on_one_timeline_are_refused_and_two_names_of_one_are_not() {
        let twin = Facts { started: "later".into(), ..server("a", 1) };
        assert!(pick(&[Ok(server("a", 1)), Ok(twin)], None).unwrap_err().contains("two servers"));
        assert!(pick(&[Ok(server("a", 1)), Ok(server("a", 1))], None).is_ok());
    }

    #[test]
    fn several_hosts_need_a_synchronous_standby() {
        let lossy = Facts { sync_names: String::new(), ..server("a", 1) };
        assert!(pick(&[Ok(lossy.clone()), Err("refused")], None).unwrap_err().contains("synchronous_standby_names"));
        assert_eq!(pick(&[Ok(lossy)], None), Ok(0));
    }

    #[test]
    fn standbys_alone_are_told_one_by_one() {
        let standby = Facts { recovery: true, ..server("a", 2) };
        let why = pick(&[Ok(standby), Err("no answer")], None).unwrap_err();
        assert_eq!(why, "no host takes writes: db0:5432: a standby, takes no writes; db1:5432: no answer");
    }
}
