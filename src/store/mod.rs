//! Where the lease lives: one record a service, changed only by compare-and-swap.
//!
//! Nobody but this module knows which stores exist. What is assumed of a store:
//! one linearizable register that never forgets an acknowledged write. What a
//! caller must assume of a call: it may hang ([`bounded`] cuts it off), and a call
//! that was cut off may still take effect later.

pub mod bounded;
mod file;
mod postgres;

use crate::core::{Entry, Look, Member, Record, Swap, Trouble, Version};
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
