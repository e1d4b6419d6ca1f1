//! The lease rule: when a challenger may claim, and what a holder may count on.
//!
//! `docs/safety.md` argues why these rules keep two trees from ever living at
//! once; each rule here names the sentence of it that it carries out.

use super::node::Flaw;
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
    pub(super) flaw: Option<Flaw>,
}

#[derive(Clone, Debug)]
struct Sighted {
    record: Record,
    generation: Generation,
    /// Read after the answer of the first look that showed exactly this version.
    since: Boot,
}

impl Watch {
    pub(super) fn new(highest_token: u64, flaw: Option<Flaw>) -> Watch {
        Watch { seen: None, highest_token, flaw }
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
        let since = match &self.seen {
            Some(seen) if same => seen.since,
            Some(seen) if self.is_flawed(Flaw::CountOverGenerations) && seen.record.version() == record.version() => {
                seen.since
            }
            _ => now,
        };
        self.seen = Some(Sighted { record: record.clone(), generation: sighting.generation.clone(), since });
        self.highest_token = self.highest_token.max(record.token);
    }

    fn is_flawed(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
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
        let watched = match self.flaw {
            Some(Flaw::FastChallenger) => now.fast_since(seen.since),
            _ => now.slow_since(seen.since),
        };
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
        let patience = match self.flaw {
            Some(Flaw::ImpatientChallenger) => timing.patience(ttl).mul_f64(0.93),
            Some(Flaw::OwnTtl) => timing.patience(timing.ttl),
            _ => timing.patience(ttl),
        };
        Some((patience.saturating_sub(watched), Ground::Silence))
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

#[cfg(test)]
mod tests {
    use super::super::record::Handover;
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn at(s: u64) -> Boot {
        Boot::ZERO.plus(S(1_000 + s))
    }

    fn timing() -> Timing {
        Timing::for_ttl(S(20), S(5))
    }

    fn generation(timeline: u32) -> Generation {
        Generation { system: "7".into(), timeline }
    }

    fn holder(node: &str) -> Holder {
        Holder { node: node.into(), instance: format!("{node}-1") }
    }

    /// Nobody holds it, as written under timeline 1.
    fn free() -> Record {
        Record { epoch: 4, token: 40, generation: Some(generation(1)), ..Record::fresh(S(20), S(5), 9) }
    }

    fn held() -> Record {
        Record { holder: Some(holder("b")), ..free() }
    }

    fn sighting(record: &Record, timeline: u32) -> Sighting {
        Sighting { record: Some(record.clone()), generation: generation(timeline), age: None }
    }

    fn watch(highest_token: u64, record: &Record, timeline: u32) -> Watch {
        let mut watch = Watch::new(highest_token, None);
        watch.sight(at(0), &sighting(record, timeline));
        watch
    }

    #[test]
    fn nobody_is_believed_only_if_every_guard_holds() {
        let patience = timing().patience(S(20));
        let to = |to: &str| Some(Handover { to: to.into(), limit: S(3) });
        let cases = [
            ("free", free(), 1, 0, Duration::ZERO, Ground::Free),
            ("a token just as high", free(), 1, 40, Duration::ZERO, Ground::Free),
            ("a store that forgot a token", free(), 1, 41, patience, Ground::Silence),
            ("another timeline", free(), 2, 0, patience, Ground::Silence),
            ("a record just made", Record { generation: None, ..free() }, 1, 0, patience, Ground::Silence),
            ("meant for us", Record { handover: to("a"), ..free() }, 1, 0, Duration::ZERO, Ground::Free),
            ("meant for another", Record { handover: to("c"), ..free() }, 1, 0, S(3), Ground::Free),
            ("held", held(), 1, 0, patience, Ground::Silence),
        ];
        for (name, record, timeline, highest, left, ground) in cases {
            let claim = watch(highest, &record, timeline).claim_in(at(0), "a", &timing());
            assert_eq!(claim, Some((left, ground)), "{name}");
        }
        assert_eq!(Watch::new(0, None).claim_in(at(0), "a", &timing()), None, "nothing seen");
    }

    #[test]
    fn a_hand_over_excludes_others_from_their_own_first_sighting_and_not_for_ever() {
        let record = Record { handover: Some(Handover { to: "c".into(), limit: S(3) }), ..free() };
        let watch = watch(0, &record, 1);
        assert_eq!(watch.claim_in(at(2), "a", &timing()), Some((S(1), Ground::Free)));
        assert_eq!(watch.claim_in(at(3), "a", &timing()), Some((Duration::ZERO, Ground::Free)));
    }

    #[test]
    fn silence_is_measured_with_the_ttl_of_the_record_and_the_longer_one_in_doubt() {
        for (name, ttl, timeline, highest, counts) in [
            ("a longer promise", S(60), 1, 0, S(60)),
            ("a shorter promise", S(4), 1, 0, S(4)),
            ("a shorter one, under another timeline", S(4), 2, 0, S(20)),
            ("a longer one, under another timeline", S(60), 2, 0, S(60)),
            ("a shorter one, from a store that forgot", S(4), 1, 41, S(20)),
        ] {
            let watch = watch(highest, &Record { ttl, ..held() }, timeline);
            let left = watch.claim_in(at(0), "a", &timing());
            assert_eq!(left, Some((timing().patience(counts), Ground::Silence)), "{name}");
        }
    }

    #[test]
    fn the_count_begins_anew_with_another_version_or_generation_only() {
        let later = |record: &Record, timeline| {
            let mut watch = watch(0, &held(), 1);
            watch.sight(at(15), &sighting(record, timeline));
            watch.claim_in(at(15), "a", &timing()).map(|(left, _)| left)
        };
        let all = timing().patience(S(20));
        assert_eq!(later(&held(), 1), Some(all - S(15)), "the same");
        assert_eq!(later(&Record { seq: 10, ..held() }, 1), Some(all), "a renewal");
        assert_eq!(later(&Record { epoch: 5, ..held() }, 1), Some(all), "another holder");
        assert_eq!(later(&held(), 2), Some(all), "the store was replaced");
        let mut gone = watch(0, &held(), 1);
        gone.sight(at(5), &Sighting { record: None, generation: generation(1), age: None });
        assert_eq!(gone.claim_in(at(99), "a", &timing()), None, "no record, no claim");
    }

    #[test]
    fn the_count_runs_on_the_slower_clock() {
        let watch = watch(0, &held(), 1);
        let slept = Boot { boot: at(100).boot, raw: at(5).raw };
        let left = watch.claim_in(slept, "a", &timing()).map(|(left, _)| left);
        assert_eq!(left, Some(timing().patience(S(20)) - S(5)));
    }

    #[test]
    fn a_token_never_decreases() {
        let line = 1_u64 << 32;
        for (name, token, highest, timeline, claimed) in [
            ("first of its timeline", 0, 0, 1, line + 1),
            ("next", line + 1, 0, 1, line + 2),
            ("over a promotion", line + 7, 0, 2, 2 * line + 1),
            ("over a lossy one", line + 2, line + 7, 2, 2 * line + 1),
            ("a store that forgot", line + 2, line + 7, 1, line + 8),
            ("a timeline that was reset", 9 * line + 3, 0, 1, 9 * line + 4),
        ] {
            let watch = watch(highest, &Record { token, ..held() }, timeline);
            let write = watch.claim(&holder("a"), &timing()).unwrap();
            assert_eq!(write.next.token, claimed, "{name}");
        }
    }

    #[test]
    fn a_claim_over_a_silent_holder_carries_it_as_unfenced() {
        let write = watch(0, &held(), 1).claim(&holder("a"), &timing()).unwrap();
        assert_eq!(write.version, held().version());
        assert_eq!((write.next.epoch, write.next.seq), (5, 10));
        assert_eq!(write.next.unfenced, [holder("b")]);
        let write = watch(0, &write.next, 1).claim(&holder("c"), &timing()).unwrap();
        assert_eq!(write.next.unfenced, [holder("b"), holder("a")]);
        let write = watch(0, &free(), 1).claim(&holder("a"), &timing()).unwrap();
        assert!(write.next.unfenced.is_empty());
    }

    #[test]
    fn the_limit_is_the_least_over_what_is_confirmed_and_what_is_unresolved() {
        let limits = |s| timing().limits(at(s), S(20));
        let mut lease = Held::new(4, 40, limits(0));
        lease.sent(limits(5));
        assert_eq!(lease.limits(), limits(0), "a renewal without an answer extends nothing");
        lease.confirm(limits(10), held(), generation(1));
        assert_eq!(lease.limits(), limits(10), "a confirmed one alone counts");
        let short = timing().limits(at(15), S(2));
        lease.sent(short);
        lease.sent(limits(16));
        assert_eq!(lease.limits(), short, "a shorter promise counts from the moment it is sent");
        lease.sent(Limits::PAST);
        assert_eq!(lease.limits(), Limits::PAST, "a release counts as zero");
        assert!(lease.has_run_out(at(16)));
        lease.confirm(limits(20), held(), generation(1));
        assert_eq!(lease.limits(), limits(20), "until a later swap is confirmed");
    }
}
