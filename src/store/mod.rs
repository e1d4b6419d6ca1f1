//! Where the lease lives: one record a service, changed only by compare-and-swap.
//!
//! Nobody but this module knows which stores exist. What is assumed of a store:
//! one linearizable register that never forgets an acknowledged write. What a
//! caller must assume of a call: it may hang ([`bounded`] cuts it off), and a call
//! that was cut off may still take effect later.

pub mod bounded;
mod file;
mod postgres;

use crate::config::{Lease, Target};
use crate::core::{Answer, Entry, Generation, Look, Member, Record, Swap, Trouble, Version};
use crate::status::Cluster;
use bounded::Calls;
use postgres::PrepareError;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A place where all hosts see one record, changed only by compare-and-swap.
///
/// Every method may block for as long as the store hangs; each is called on a
/// thread that can be given up. A method that can tell that nothing was changed
/// says [`Trouble::Refused`]; whenever in doubt, [`Trouble::Unknown`].
pub trait Store: Send {
    /// Tells the others about this node; reads the record and the members.
    fn look(&mut self, me: &Member) -> Result<Look, Trouble>;

    /// Writes `next` (and `entry` into the history, and this node's member row) if the
    /// record still has exactly `version` and the store still the generation that
    /// `next` names.
    fn swap(&mut self, version: &Version, next: &Record, entry: Option<&Entry>, me: &Member) -> Result<Swap, Trouble>;

    /// Returns early, with true, when the record may have changed: a hint, never
    /// needed for safety. A store without such hints sleeps for `limit`.
    fn wait(&mut self, limit: Duration) -> Result<bool, Trouble>;
}

/// Bounded calls to the store of `service`; nothing is connected before the first one.
/// `seen` is the highest generation that an agent before this one has seen.
///
/// # Errors
/// An address that cannot be used.
pub fn open(
    service: &str,
    lease: &Lease,
    seen: Option<&Generation>,
    deliver: impl Fn(u64, Answer) + Send + Sync + 'static,
) -> Result<Calls, String> {
    let (service, limit) = (service.to_owned(), lease.timing.store_timeout);
    Ok(match lease.store.clone() {
        Target::File(path) => {
            Calls::new(move || Box::new(file::FileStore::new(&path, &service, limit)) as Box<dyn Store>, 1, deliver)
        }
        Target::Postgres(pg) => {
            let known = Arc::new(postgres::Known::new(pg.hosts.len()));
            if let Some(seen) = seen {
                known.remember(seen.clone());
            }
            let hosts = pg.hosts.len();
            // Tried once here, so that a bad address is an error now and not in a thread.
            postgres::open(&pg, &service, limit, known.clone())?;
            let counted = known.clone();
            let make = move || match postgres::open(&pg, &service, limit, known.clone()) {
                Ok(store) => Box::new(store) as Box<dyn Store>,
                Err(why) => Box::new(Unusable(why)),
            };
            Calls::new(make, hosts, deliver).counting(move || counted.hung())
        }
    })
}

/// Stands in for a store that cannot be used.
struct Unusable(String);

impl Store for Unusable {
    fn look(&mut self, _: &Member) -> Result<Look, Trouble> {
        Err(Trouble::Refused(self.0.clone()))
    }

    fn swap(&mut self, _: &Version, _: &Record, _: Option<&Entry>, _: &Member) -> Result<Swap, Trouble> {
        Err(Trouble::Refused(self.0.clone()))
    }

    fn wait(&mut self, limit: Duration) -> Result<bool, Trouble> {
        thread::sleep(limit);
        Ok(false)
    }
}

/// What came of making a store ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Everything is there; the record was made just now, or was there before.
    Ready {
        /// Nobody may believe it before a ttl has passed.
        made: bool,
    },
    /// Not now: it is tried again.
    Later(String),
    /// Rights are missing; the text says which.
    Denied(String),
    /// It will not work before somebody does something; the text says what.
    Unusable(String),
}

impl From<PrepareError> for Prepared {
    fn from(error: PrepareError) -> Prepared {
        match &error {
            PrepareError::Unreachable(_) => Prepared::Later(error.to_string()),
            PrepareError::Denied { .. } => Prepared::Denied(error.to_string()),
            PrepareError::Refused(_) => Prepared::Unusable(error.to_string()),
        }
    }
}

/// How long one try to make a store ready may take.
const PREPARE_LIMIT: Duration = Duration::from_secs(10);
/// Between two tries.
const PREPARE_PAUSE: Duration = Duration::from_secs(1);

/// Makes what is missing in the store, on a thread of its own, trying again for as long as
/// the store cannot be reached. `deliver` is told of the first failure, and of the end.
pub fn prepare(service: &str, lease: &Lease, deliver: impl Fn(Prepared) + Send + 'static) {
    let (service, lease) = (service.to_owned(), lease.clone());
    let work = move || {
        let mut told = false;
        loop {
            match prepare_once(&service, &lease, PREPARE_LIMIT) {
                Prepared::Later(why) => {
                    if !std::mem::replace(&mut told, true) {
                        deliver(Prepared::Later(why));
                    }
                    thread::sleep(PREPARE_PAUSE);
                }
                end => return deliver(end),
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("prepare".into()).stack_size(512 * 1024).spawn(work) {
        log::error!("cannot make the store ready: cannot start a thread: {error}");
    }
}

/// A number for the first write of a record: small enough for every store's integers,
/// with room for more writes than a service will ever see.
fn random_seq() -> Result<u64, String> {
    crate::sys::random().map(|n| n >> 8).map_err(|e| format!("cannot draw a number: {e}"))
}

/// Makes the tables (where there are such) and the record of `service`, within `limit`.
pub fn prepare_once(service: &str, lease: &Lease, limit: Duration) -> Prepared {
    let (ttl, renew) = (lease.timing.ttl, lease.timing.renew);
    match &lease.store {
        Target::File(path) => match file::prepare(path, service, ttl, renew) {
            Ok(made) => Prepared::Ready { made },
            Err(why) => Prepared::Unusable(why),
        },
        Target::Postgres(pg) => {
            let known = Arc::new(postgres::Known::new(pg.hosts.len()));
            match postgres::prepare(pg, service, ttl, renew, known, limit) {
                Ok(prepared) => Prepared::Ready { made: prepared.record_made },
                Err(error) => error.into(),
            }
        }
    }
}

/// Makes the tables, and the record if a service is named. See [`prepare_once`].
pub fn apply_schema(service: Option<&str>, lease: &Lease, limit: Duration) -> Prepared {
    match (service, &lease.store) {
        (Some(service), _) => prepare_once(service, lease, limit),
        (None, Target::File(_)) => Prepared::Ready { made: false },
        (None, Target::Postgres(pg)) => match postgres::make_schema(pg, limit) {
            Ok(()) => Prepared::Ready { made: false },
            Err(error) => error.into(),
        },
    }
}

/// What a trial of a part of the store showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    /// As it should be.
    Fine(String),
    /// It works, and somebody should look at it.
    Doubtful(String),
    /// It cannot be reached or used.
    Unreachable(String),
    /// Rights are missing; the text says which.
    Denied(String),
}

/// Tries everything that a running agent would need of the store, within `limit`, and
/// writes nothing: each part by its name, with what came of it.
pub fn survey(service: &str, lease: &Lease, limit: Duration) -> Vec<(String, Tried)> {
    let own_limit = lease.timing.store_timeout;
    match &lease.store {
        Target::File(path) => {
            let tried = match file::overview(path, service) {
                Ok(_) => Tried::Fine(format!("{} is readable", lease.store)),
                Err(why) => Tried::Doubtful(why),
            };
            vec![("store".into(), tried)]
        }
        Target::Postgres(pg) => postgres::findings(&postgres::survey(pg, limit), pg, own_limit),
    }
}

/// The statements that make the tables, or none for a store that needs none.
pub fn schema(target: &Target) -> Option<String> {
    match target {
        Target::File(_) => None,
        Target::Postgres(pg) => Some(postgres::schema_sql(pg)),
    }
}

/// The cluster, for people; reads only.
///
/// # Errors
/// Why it cannot be read, within `limit`.
pub fn overview(target: &Target, service: &str, limit: Duration) -> Result<Cluster, String> {
    match target {
        Target::File(path) => file::overview(path, service),
        Target::Postgres(pg) => postgres::overview(pg, service, limit)?.cluster.ok_or_else(|| {
            format!("the store has no record of service {service} yet: locum run makes it when it starts")
        }),
    }
}
