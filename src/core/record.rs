//! The one record that all hosts see, and what a store says of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What changes when a store is replaced or rolled back: for PostgreSQL the system
/// identifier and the timeline, for a file the identity drawn when it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Which store this is.
    pub system: String,
    /// Counts the promotions of a store's standbys; 1 where there is no such thing.
    pub timeline: u32,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.system, self.timeline)
    }
}

/// Who holds the lease: a node, and which life of its keeper.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The node's name within the service.
    pub node: String,
    /// Drawn at random when the keeper starts, and lives as long as it.
    pub instance: String,
}

/// The one record that all hosts of a service see.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// Version of this layout; a record of a later one is refused.
    pub format: u32,
    /// Grows by one with each change of holder.
    pub epoch: u64,
    /// The fencing token: never decreases, whatever happens to the store.
    pub token: u64,
    /// Grows by one with each write.
    pub seq: u64,
    /// Who holds the lease, or nobody.
    pub holder: Option<Holder>,
    /// The node that held it under the epoch before; empty if none did.
    pub previous: String,
    /// The holder's promise: it is gone this long after its last renewal.
    pub ttl: Duration,
    /// How often the holder renews: a hint for when to look, and nothing else.
    pub renew: Duration,
    /// The generation under which this was written; none for a record just made,
    /// which nobody may believe before a ttl has passed.
    pub generation: Option<Generation>,
    /// Former holders that never released, oldest first, until a fence succeeded.
    pub unfenced: Vec<Holder>,
    /// The node that a hand-over is meant for.
    pub handover: Option<Handover>,
    /// Why the last change of holder happened, for people.
    pub why: String,
}

/// A released lease that is meant for one node, for a while.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Handover {
    /// The node that may claim.
    pub to: String,
    /// For how long it excludes the others, counted by each from its own first sighting.
    pub limit: Duration,
}

impl Record {
    /// The layout this program writes.
    pub const FORMAT: u32 = 1;

    /// The record of a service that has none: nobody, under no generation. `seq` is drawn
    /// at random, so that a record that was deleted and made again is never taken for the
    /// one before it; epoch and token go on from what a history still knows.
    pub fn fresh(ttl: Duration, renew: Duration, seq: u64) -> Record {
        Record {
            format: Record::FORMAT,
            epoch: 0,
            token: 0,
            seq,
            holder: None,
            previous: String::new(),
            ttl,
            renew,
            generation: None,
            unfenced: Vec::new(),
            handover: None,
            why: "its record was made".into(),
        }
    }

    /// The version that a swap has to name to replace this record.
    pub fn version(&self) -> Version {
        Version { generation: self.generation.clone(), epoch: self.epoch, seq: self.seq }
    }
}

/// Which state of the record a swap is meant for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The generation under which the record was written.
    pub generation: Option<Generation>,
    /// Its epoch.
    pub epoch: u64,
    /// Its sequence number.
    pub seq: u64,
}

/// What one look at the store showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The record, or none if the service has no record.
    pub record: Option<Record>,
    /// The generation of the store at the moment of the look.
    pub generation: Generation,
    /// How long ago the record was written, by the store's own clock: a hint for when
    /// to look next and a figure for people; never used to decide.
    pub age: Option<Duration>,
}

/// What a node is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It holds the lease.
    Active,
    /// It waits for it.
    Standby,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Active => "active",
            Role::Standby => "standby",
        })
    }
}

/// The health of a node's command, as the others are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// The command does not run here.
    Idle,
    /// Started, and not yet ready.
    Starting,
    /// The last check passed.
    Healthy,
    /// The last check failed.
    Failing,
    /// It is being stopped.
    Stopping,
    /// It ended, and waits for its next start.
    Waiting,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Idle => "idle",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Failing => "failing",
            Health::Stopping => "stopping",
            Health::Waiting => "waiting",
        })
    }
}

/// What a node tells the others of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// The life of its keeper.
    pub instance: String,
    /// The name of the machine.
    pub host: String,
    /// The version of the program.
    pub version: String,
    /// What it is.
    pub role: Role,
    /// How its command is.
    pub health: Health,
}

/// A member as the store shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it said of itself.
    pub member: Member,
    /// How long ago it was heard, by the store's clock: for people.
    pub age: Duration,
}

/// The answer to a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The record, with the generation of the store.
    pub sighting: Sighting,
    /// Every member of the service, ourselves included.
    pub members: Vec<Seen>,
}

/// The answer to a swap.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, for a moment")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swap {
    /// The record is now what we wrote.
    Done,
    /// The record had another version (or the store another generation); nothing was written.
    Changed(Sighting),
}

/// Why a call to the store gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The call certainly changed nothing: it was never sent, or refused as a whole.
    Refused(String),
    /// Nobody knows whether it took effect, or still will.
    Unknown(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused(why) | Trouble::Unknown(why) => f.write_str(why),
        }
    }
}

/// What happened to the lease, for the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// Claimed from nobody.
    Claim,
    /// Claimed from a holder that had fallen silent.
    Takeover,
    /// Given back in order, with proof that the tree was gone.
    Release,
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Happening::Claim => "claim",
            Happening::Takeover => "takeover",
            Happening::Release => "release",
        })
    }
}

/// A line of history, written in the same statement as the swap that it tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub what: Happening,
    /// Who did it.
    pub node: String,
    /// Under which epoch.
    pub epoch: u64,
    /// The fencing token of that epoch.
    pub token: u64,
    /// Why, for people.
    pub why: String,
}
