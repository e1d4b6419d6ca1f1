//! The lease rule: when a challenger may claim, and what a holder may count on.
//!
//! `docs/safety.md` argues why these rules keep two trees from ever living at
//! once; each rule here names the sentence of it that it carries out.

use super::record::{Entry, Generation, Happening, Holder, Record, Sighting, Version};
use super::timing::{Boot, Limits, Timing};
use std::time::Duration;

/// Why a claim is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// The record says nobody, and may be believed (rule a).
    Free,
    /// One version was seen for the whole of the promised time (rule b).
    Silence,
}

/// What a challenger has seen, and since when.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    seen: Option<Sighted>,
    /// The highest token this node ever saw: one below it comes from a store that forgot.
    pub(super) highest_token: u64,
}

#[derive(Clone, Debug)]
struct Sighted {
    record: Record,
    generation: Generation,
    /// Read after the answer of the first look that showed exactly this version.
    since: Boot,
}

impl Watch {
    pub(super) fn new(highest_token: u64) -> Watch {
        Watch { seen: None, highest_token }
    }

    /// Takes note of an answer. The count starts anew with another version, and
    /// with another generation of the store: what was lost between the two is unknown.
    pub(super) fn sight(&mut self, now: Boot, sighting: &Sighting) {
        let Some(record) = &sighting.record else {
            self.seen = None;
            return;
        };
        let same = self
            .seen
            .as_ref()
            .is_some_and(|seen| seen.record.version() == record.version() && seen.generation == sighting.generation);
        if !same {
            self.seen = Some(Sighted { record: record.clone(), generation: sighting.generation.clone(), since: now });
        }
        self.highest_token = self.highest_token.max(record.token);
    }

    /// Forgets what was seen: the next sighting starts the count.
    pub(super) fn forget(&mut self) {
        self.seen = None;
    }

    /// The record last seen.
    pub(super) fn record(&self) -> Option<&Record> {
        self.seen.as_ref().map(|seen| &seen.record)
    }

    /// How long until this node may claim, and on which ground; none if there is no
    /// record to claim. `me` is this node's name, `timing` its own.
    pub(super) fn claim_in(&self, now: Boot, me: &str, timing: &Timing) -> Option<(Duration, Ground)> {
        let seen = self.seen.as_ref()?;
        let watched = now.slow_since(seen.since);
        let believed = seen.record.holder.is_none()
            && seen.record.generation.as_ref() == Some(&seen.generation)
            && seen.record.token >= self.highest_token;
        if believed {
            let excluded = match &seen.record.handover {
                Some(handover) if handover.to != me => handover.limit.saturating_sub(watched),
                _ => Duration::ZERO,
            };
            return Some((excluded, Ground::Free));
        }
        // A record that fails the guards of rule (a), whomever it names, may hide a later
        // promise that was lost: then our own ttl counts too, if it is the longer one.
        let present = seen.record.generation.as_ref() == Some(&seen.generation);
        let ttl = match seen.record.holder {
            Some(_) if present && seen.record.token >= self.highest_token => seen.record.ttl,
            _ => seen.record.ttl.max(timing.ttl),
        };
        Some((timing.patience(ttl).saturating_sub(watched), Ground::Silence))
    }

    /// The record that a claim by `me` would write over the one last seen, the version
    /// it names, and the line of history that goes with it.
    pub(super) fn claim(&self, me: &Holder, timing: &Timing) -> Option<Write> {
        let seen = self.seen.as_ref()?;
        let old = &seen.record;
        // A timeline counts more than any number of claims under the one before.
        let floor = u64::from(seen.generation.timeline) << 32;
        let token = old.token.max(self.highest_token).max(floor) + 1;
        let mut unfenced = old.unfenced.clone();
        let (what, why) = match &old.holder {
            Some(silent) => {
                // One entry a node: the newest instance stands for those before it.
                unfenced.retain(|former| former.node != silent.node);
                unfenced.push(silent.clone());
                let why = format!("{} fell silent for longer than its ttl of {:?}", silent.node, old.ttl);
                (Happening::Takeover, why)
            }
            None => (Happening::Claim, format!("nobody held it: {}", old.why)),
        };
        let next = Record {
            format: Record::FORMAT,
            epoch: old.epoch + 1,
            token,
            seq: old.seq + 1,
            previous: old.holder.as_ref().map_or_else(|| old.previous.clone(), |holder| holder.node.clone()),
            holder: Some(me.clone()),
            ttl: timing.ttl,
            renew: timing.renew,
            generation: Some(seen.generation.clone()),
            unfenced,
            handover: None,
            why: why.clone(),
        };
        let entry = Entry { what, node: me.node.clone(), epoch: next.epoch, token, why };
        Some(Write { version: old.version(), next, entry: Some(entry) })
    }
}

/// A swap, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) version: Version,
    pub(super) next: Record,
    pub(super) entry: Option<Entry>,
}

/// A lease that this node holds, or believes to hold until it is told otherwise.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) epoch: u64,
    pub(super) token: u64,
    /// The record as we know it, with the generation of the store; none for an agent
    /// that was started over a running lease and has not looked yet.
    pub(super) record: Option<(Record, Generation)>,
    /// From the last confirmed swap.
    confirmed: Limits,
    /// The tightest of what every swap since, not yet answered or never answered,
    /// would give if it alone took effect.
    doubt: Limits,
}

impl Held {
    /// A lease that was just confirmed, or one that a keeper lives under already.
    pub(super) fn new(epoch: u64, token: u64, confirmed: Limits) -> Held {
        Held { epoch, token, record: None, confirmed, doubt: Limits::FOREVER }
    }

    /// What is in force: the minimum over the last confirmed swap and each unresolved one.
    pub(super) fn limits(&self) -> Limits {
        self.confirmed.tightest(self.doubt)
    }

    /// Whether it gives nothing any more, by time or by a release that was sent: others
    /// may have held it since.
    pub(super) fn has_run_out(&self, now: Boot) -> bool {
        now.has_reached(self.limits().end)
    }

    /// A swap that would give `limits` leaves: until it is confirmed, it may or may not count.
    pub(super) fn sent(&mut self, limits: Limits) {
        self.doubt = self.doubt.tightest(limits);
    }

    /// A swap was confirmed: it alone counts, and none of those before it can take effect
    /// any more, since each names a version that is gone.
    pub(super) fn confirm(&mut self, limits: Limits, record: Record, generation: Generation) {
        self.confirmed = limits;
        self.doubt = Limits::FOREVER;
        self.record = Some((record, generation));
    }

    /// The renewal that is due: everything as it is, one write later.
    pub(super) fn renewal(&self, timing: &Timing) -> Option<Write> {
        let (old, generation) = self.record.as_ref()?;
        let next = Record {
            seq: old.seq + 1,
            ttl: timing.ttl,
            renew: timing.renew,
            generation: Some(generation.clone()),
            ..old.clone()
        };
        Some(Write { version: old.version(), next, entry: None })
    }

    /// The release, with its reason.
    pub(super) fn release(&self, me: &Holder, why: &str) -> Option<Write> {
        let (old, generation) = self.record.as_ref()?;
        let next = Record {
            seq: old.seq + 1,
            previous: me.node.clone(),
            holder: None,
            generation: Some(generation.clone()),
            handover: None,
            why: format!("released by {}: {why}", me.node),
            ..old.clone()
        };
        let entry = Entry {
            what: Happening::Release,
            node: me.node.clone(),
            epoch: self.epoch,
            token: self.token,
            why: why.to_string(),
        };
        Some(Write { version: old.version(), next, entry: Some(entry) })
    }
}
