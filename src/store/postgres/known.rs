//! What outlives one worker of the store: shared by all workers of one agent.
//!
//! A worker that hangs is written off and a fresh one starts from nothing; what it
//! had learned of the servers, and that it still hangs, must not be lost with it.

use crate::core::Generation;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many calls to one host may be under way before it counts as frozen.
pub(super) const MOST_CALLS: usize = 3;

/// The highest generation seen, and the calls that are under way on each host.
#[derive(Debug)]
pub struct Known {
    highest: Mutex<Option<Generation>>,
    calls: Vec<Mutex<Vec<Call>>>,
    number: AtomicU64,
}

#[derive(Debug)]
struct Call {
    number: u64,
    due: Instant,
}

impl Known {
    /// Nothing seen yet, on a list of so many hosts.
    pub fn new(hosts: usize) -> Known {
        Known {
            highest: Mutex::new(None),
            calls: (0..hosts).map(|_| Mutex::new(Vec::new())).collect(),
            number: AtomicU64::new(0),
        }
    }

    /// How many calls, over all hosts, are under way for longer than they may take.
    /// They hold a thread each until their server thaws or their socket dies.
    pub fn hung(&self) -> u32 {
        let now = Instant::now();
        let late = |calls: &Mutex<Vec<Call>>| open(calls).iter().filter(|c| c.due <= now).count();
        self.calls.iter().map(late).sum::<usize>().try_into().unwrap_or(u32::MAX)
    }

    /// The generation with the highest timeline that any worker saw.
    pub fn highest(&self) -> Option<Generation> {
        open(&self.highest).clone()
    }

    /// Takes note of a generation; a lower timeline than known, or one of another
    /// server, changes nothing. A fresh agent restores this from its memo.
    pub fn remember(&self, seen: Generation) {
        let mut highest = open(&self.highest);
        match &*highest {
            Some(known) if known.system != seen.system || known.timeline >= seen.timeline => {}
            _ => *highest = Some(seen),
        }
    }

    /// Whether so many calls to this host are under way that another would be of no use.
    pub(super) fn is_frozen(&self, host: usize) -> bool {
        self.calls.get(host).is_some_and(|calls| open(calls).len() >= MOST_CALLS)
    }

    /// Marks a call to a host that may take `limit`; it ends when the mark is dropped.
    pub(super) fn begin(self: &Arc<Known>, host: usize, limit: Duration) -> Mark {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        if let Some(calls) = self.calls.get(host) {
            open(calls).push(Call { number, due: Instant::now() + limit });
        }
        Mark { known: self.clone(), host, number }
    }
}

/// A call under way.
pub(super) struct Mark {
    known: Arc<Known>,
    host: usize,
    number: u64,
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Some(calls) = self.known.calls.get(self.host) {
            open(calls).retain(|c| c.number != self.number);
        }
    }
}

/// Nothing that is kept under these locks can be left half done by a panic.
pub(super) fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(system: &str, timeline: u32) -> Generation {
        Generation { system: system.into(), timeline }
    }

    #[test]
    fn the_highest_timeline_is_never_forgotten() {
        let known = Known::new(1);
        known.remember(generation("a", 3));
        known.remember(generation("a", 2));
        known.remember(generation("b", 9));
        assert_eq!(known.highest(), Some(generation("a", 3)));
        known.remember(generation("a", 4));
        assert_eq!(known.highest(), Some(generation("a", 4)));
    }

    #[test]
    fn calls_are_counted_while_they_last() {
        let known = Arc::new(Known::new(2));
        let late = known.begin(1, Duration::ZERO);
        let young = known.begin(1, Duration::from_secs(600));
        assert_eq!(known.hung(), 1);
        assert!(!known.is_frozen(1));
        let third = known.begin(1, Duration::ZERO);
        assert!(known.is_frozen(1) && !known.is_frozen(0));
        drop((late, young, third));
        assert_eq!(known.hung(), 0);
        assert!(!known.is_frozen(1));
    }
}
