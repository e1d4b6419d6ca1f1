//! The simulated store: one register with compare-and-swap, and everything that goes
//! wrong around one.
//!
//! It keeps the contract of `src/store/mod.rs`, and section 3 of the design: an
//! acknowledged write is not forgotten, unless the generation changes with it.

use super::clock::Ns;
use crate::core::{Generation, Record, Sighting, Swap, Version};
use std::time::Duration;

/// Whether it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Up,
    /// Calls hang; what they asked for runs when it thaws.
    Frozen,
    /// Calls fail at once.
    Down,
}

/// The register.
pub struct Register {
    pub record: Option<Record>,
    pub generation: Generation,
    pub condition: Condition,
    written: Ns,
    /// What the store's clock shows is this far from the truth.
    pub clock_error: i64,
    /// Every state that it was ever in since the record was made, for a rollback.
    past: Vec<Option<Record>>,
}

impl Register {
    pub fn new(record: Option<Record>) -> Register {
        Register {
            past: vec![record.clone()],
            record,
            generation: Generation { system: "sim".into(), timeline: 1 },
            condition: Condition::Up,
            written: 0,
            clock_error: 0,
        }
    }

    pub fn sighting(&self, t: Ns) -> Sighting {
        let age = (t as i64 + self.clock_error - self.written as i64).max(0) as u64;
        Sighting {
            record: self.record.clone(),
            generation: self.generation.clone(),
            age: Some(Duration::from_nanos(age)),
        }
    }

    /// The one way to change the record.
    pub fn swap(&mut self, t: Ns, version: &Version, next: &Record) -> Swap {
        let stands = self.record.as_ref().is_some_and(|record| record.version() == *version);
        if !stands || next.generation.as_ref() != Some(&self.generation) {
            return Swap::Changed(self.sighting(t));
        }
        self.put(t, Some(next.clone()));
        Swap::Done
    }

    fn put(&mut self, t: Ns, record: Option<Record>) {
        self.record = record;
        self.past.push(self.record.clone());
        self.written = (t as i64 + self.clock_error).max(0) as u64;
    }

    /// An operator deletes the row: what was before cannot come back.
    pub fn delete(&mut self) {
        self.record = None;
        self.past = vec![None];
    }

    /// The row is made anew; nobody wrote it under any generation.
    pub fn remake(&mut self, t: Ns, record: Record) {
        self.put(t, Some(record));
    }

    /// A standby becomes the primary; `lost` is how many of the last writes it never got.
    pub fn promote(&mut self, lost: usize) {
        self.generation.timeline += 1;
        let keep = self.past.len().saturating_sub(lost).max(1);
        self.past.truncate(keep);
        self.record = self.past[keep - 1].clone();
    }

    pub fn writes(&self) -> usize {
        self.past.len()
    }
}
