//! Everything that decides: no I/O, no clock, no thread, no log.
//!
//! A [`Node`] is one host's whole state. The outside world reaches it as an
//! [`Event`], what it wants done leaves it as a list of [`Effect`]s, and time is
//! only what the caller says it is. That is what lets the simulation run the
//! real thing, and what keeps the promise in one place.
//!
//! This module knows nobody: every other room of the house may use it.

mod lease;
mod node;
mod orders;
mod record;
mod timing;
mod watch;

pub use node::{Answer, Effect, Event, Flaw, Names, Node, Patience, Setup, View, code};
pub use orders::{Exit, Level, MEMO_MAX, Order, Report, Snapshot, Stage, Start, Tree, signal_name};
pub use record::{
    Entry, Generation, Handover, Happening, Health, Holder, Look, Member, Record, Role, Seen, Sighting, Swap, Trouble,
    Version,
};
pub use timing::{Boot, Budget, Limits, Shortfall, Timing};
pub use watch::{Supervision, Verdict, When};
