//! The node's side towards the store: what is seen there, and what is asked next.

use super::*;

impl Node {
    pub(super) fn answered(&mut self, now: Boot, id: u64, answer: Answer) {
        let Some(call) = self.calling.take_if(|call| call.id == id) else {
            return;
        };
        match answer {
            Answer::Wait(hint) => {
                if hint != Ok(false) {
                    self.next_look = now;
                }
                if let Err(trouble) = hint {
                    self.next_look = now.plus(self.pause());
                    self.wait_at = self.next_look;
                    self.in_trouble(now, &trouble);
                }
            }
            Answer::Look(Ok(look)) => {
                self.out_of_trouble(now);
                self.sighted(now, &look.sighting);
            }
            Answer::Look(Err(trouble)) => self.failed(now, &call, &trouble),
            Answer::Swap(Ok(Swap::Done)) => {
                self.out_of_trouble(now);
                self.swapped(now, call);
            }
            Answer::Swap(Ok(Swap::Changed(sighting))) => {
                self.out_of_trouble(now);
                self.write_at = now;
                self.sighted(now, &sighting);
            }
            Answer::Swap(Err(trouble)) => self.failed(now, &call, &trouble),
        }
    }

    /// A swap of ours took effect.
    pub(super) fn swapped(&mut self, now: Boot, call: Call) {
        let (Some((record, generation)), Some(timing)) = (call.next, self.setup.timing) else {
            return;
        };
        self.generation = Some(generation.clone());
        let s = if self.is_flawed(Flaw::CountFromReply) { now } else { call.asked };
        let ttl = match self.flaw() {
            Some(Flaw::ForgetClockError) => timing.patience(record.ttl),
            _ => record.ttl,
        };
        let limits = timing.limits(s, ttl);
        self.write_at = if self.finish.is_some() { now } else { call.asked.plus(timing.renew) };
        match call.kind {
            Kind::Claim => {
                let mut held = Held::new(record.epoch, record.token, limits);
                let (epoch, token, why) = (record.epoch, record.token, record.why.clone());
                held.confirm(limits, record, generation);
                self.held = Some(held);
                self.claim_in_doubt = false;
                self.claimed_once = true;
                self.challenger.forget();
                self.challenger.highest_token = self.challenger.highest_token.max(token);
                self.tell(Level::Info, format!("active: holds the lease as epoch {epoch}, token {token}: {why}"));
                self.tell_limits(epoch, limits);
                self.order_lease(epoch, limits);
            }
            Kind::Renew => {
                let Some(held) = &mut self.held else { return };
                let first = held.limits() == Limits::PAST;
                held.confirm(limits, record, generation);
                let epoch = held.epoch;
                self.claimed_once = true;
                self.claim_in_doubt = false;
                if self.finish.as_ref().is_some_and(|finish| finish.sealed != Sealed::No) {
                    // The keeper was told that this lease is over, and that stands.
                    held.sent(Limits::PAST);
                    return;
                }
                if first {
                    self.tell(
                        Level::Info,
                        format!("active: a claim whose answer was lost is ours after all, epoch {epoch}"),
                    );
                }
                self.tell_limits(epoch, limits);
                self.order_lease(epoch, limits);
            }
            Kind::Release => {
                self.held = None;
                self.tell(Level::Info, "released the lease".into());
                self.end();
            }
            Kind::Look | Kind::Wait => {}
        }
    }

    /// An answer that shows the record.
    pub(super) fn sighted(&mut self, now: Boot, sighting: &Sighting) {
        let Some(timing) = self.setup.timing else { return };
        self.generation = Some(sighting.generation.clone());
        self.challenger.sight(now, sighting);
        match &sighting.record {
            None if !self.told_missing => {
                self.told_missing = true;
                self.tell(
                    Level::Error,
                    "the store has no record of this service (was it deleted?): it is made when locum run starts \
                     again, or by locum schema --apply"
                        .into(),
                );
            }
            None => {}
            Some(_) => self.told_missing = false,
        }
        let flaw = self.flaw();
        // A store that was rolled back may show a lease of ours that others have had since.
        let present = sighting.record.as_ref().is_some_and(|r| r.generation.as_ref() == Some(&sighting.generation));
        if let Some(held) = &mut self.held {
            let trusted = present || !held.has_run_out(now);
            if let Some(record) = &sighting.record
                && trusted
                && is_ours(record, &self.me, held.epoch, flaw)
            {
                held.token = record.token;
                held.record = Some((record.clone(), sighting.generation.clone()));
                self.write_at = now;
                return;
            }
            let to = match &sighting.record {
                Some(_) if !trusted => "it had run out when the store was replaced by a standby".into(),
                Some(Record { holder: Some(holder), epoch, .. }) => {
                    format!("{} holds it under epoch {epoch}", holder.node)
                }
                Some(Record { epoch, .. }) => format!("the record says nobody, epoch {epoch}"),
                None => "the record is gone".into(),
            };
            self.lost(now, &to);
            self.told_standby = sighting.record.as_ref().map_or(0, |record| record.epoch);
        } else if let Some(record) = &sighting.record
            && present
            && record.holder.as_ref().is_some_and(|holder| {
                holder.instance == self.me.instance
                    || (self.is_flawed(Flaw::RenewByName) && holder.node == self.me.node)
            })
            && (record.epoch > self.given_up || self.finish.is_some())
            && self.command.is_gone()
        {
            // A claim whose reply was lost: it may only be renewed (or, on the way out, given back).
            let mut held = Held::new(record.epoch, record.token, Limits::PAST);
            held.record = Some((record.clone(), sighting.generation.clone()));
            self.held = Some(held);
            self.write_at = now;
        } else {
            self.claim_in_doubt = false;
            self.next_look = now.plus(next_look(sighting, &timing));
            // Who asked to try once has to see a holder that is dead since long replaced, too.
            if !is_overdue(sighting) {
                self.consider_patience(now, sighting.record.as_ref());
            }
            self.tell_standby(now, sighting);
            if self.is_flawed(Flaw::TrustStoreClock)
                && let (Some(record), Some(age)) = (&sighting.record, sighting.age)
                && age >= record.ttl
                && self.command.is_gone()
            {
                self.claim(now);
            }
        }
    }

    /// Says once for each epoch who is active, and what has to happen for us to take over.
    fn tell_standby(&mut self, now: Boot, sighting: &Sighting) {
        let (Some(Record { holder: Some(holder), epoch, .. }), Some(timing)) = (&sighting.record, self.setup.timing)
        else {
            return;
        };
        if self.told_standby == *epoch || self.finish.is_some() || self.asked_to_stop {
            return;
        }
        self.told_standby = *epoch;
        let who = if holder.node == self.me.node { "another run under this node's name" } else { holder.node.as_str() };
        let left = self.challenger.claim_in(now, &self.me.node, &timing).map_or(timing.ttl, |(left, _)| left);
        let text =
            format!("standby: {who} holds the lease as epoch {epoch}; takes over after {} of silence", secs(left));
        self.tell(Level::Info, text);
    }

    /// Whoever asked for `--try` or `--wait` is told when the time is over.
    pub(super) fn consider_patience(&mut self, now: Boot, record: Option<&Record>) {
        let (Some(until), false, None) = (self.patient_until, self.claimed_once, &self.finish) else {
            return;
        };
        if !now.has_reached(until) {
            return;
        }
        match (record.and_then(|record| record.holder.as_ref()), &self.trouble) {
            (Some(holder), _) => {
                let why = format!("{} holds the lease", holder.node);
                self.tell(Level::Warn, format!("giving up: {why}"));
                self.begin_finish(now, code::HELD, &why);
            }
            (None, Some((_, trouble))) => {
                let why = trouble.clone();
                self.tell(Level::Error, format!("giving up: {why}"));
                self.begin_finish(now, code::UNAVAILABLE, &why);
            }
            (None, None) if matches!(self.setup.patience, Patience::Wait(_)) => {
                self.tell(Level::Warn, "giving up: the lease could not be claimed in time".into());
                self.begin_finish(now, code::HELD, "the lease could not be claimed in time");
            }
            // Nobody holds it and it may soon be claimed: that is what was asked for.
            (None, None) => {}
        }
    }

    /// A call brought nothing. A swap may still take effect: nothing is gained by it,
    /// and what it would take away was taken when it was sent.
    pub(super) fn failed(&mut self, now: Boot, call: &Call, trouble: &Trouble) {
        self.in_trouble(now, trouble);
        self.write_at = now.plus(self.pause());
        self.next_look = now.plus(self.pause());
        self.wait_at = self.next_look;
        match call.kind {
            Kind::Claim => {
                if matches!(trouble, Trouble::Unknown(_)) {
                    self.claim_in_doubt = true;
                    self.tell(Level::Warn, format!("nobody knows whether the claim took effect: {trouble}"));
                }
            }
            Kind::Release if self.is_flawed(Flaw::UnresolvedIsFailed) => {
                // "It did not happen": so on with the lease, as it was.
                self.finish = None;
                self.asked_to_stop = false;
                self.command.life = Life::Idle;
                if let Some((epoch, limits)) = self.held.as_ref().map(|held| (held.epoch, held.limits())) {
                    self.order_lease(epoch, limits);
                }
            }
            _ => {}
        }
        self.consider_patience(now, None);
    }

    /// Short after a failure, so that an outage's end is found soon; the renewal cycle is the most.
    pub(super) fn pause(&self) -> Duration {
        self.setup.timing.map_or(Duration::ZERO, |timing| (timing.renew / 4).min(Duration::from_secs(1)))
    }

    pub(super) fn in_trouble(&mut self, now: Boot, trouble: &Trouble) {
        let text = trouble.to_string();
        let known = self.trouble.as_ref().is_some_and(|(_, old)| *old == text);
        if !known {
            let left = match &self.held {
                Some(held) if !self.command.is_gone() && !now.has_reached(held.limits().term_at) => {
                    format!("; the command is told to stop in {}", secs(now.until(held.limits().term_at)))
                }
                _ => String::new(),
            };
            self.tell(Level::Warn, format!("no answer from the store: {text}{left}"));
        }
        let since = self.trouble.as_ref().map_or(now, |(since, _)| *since);
        self.trouble = Some((since, text));
    }

    pub(super) fn out_of_trouble(&mut self, now: Boot) {
        self.wait_at = now;
        if let Some((since, _)) = self.trouble.take() {
            self.tell(Level::Info, format!("the store answers again, after {}", secs(now.fast_since(since))));
        }
    }

    /// Somebody else has it: kill now.
    pub(super) fn lost(&mut self, now: Boot, to: &str) {
        let Some(held) = self.held.take() else { return };
        self.given_up = self.given_up.max(held.epoch);
        self.unacked = None;
        if self.is_flawed(Flaw::AdoptUnderAnotherLease) && !self.command.is_gone() {
            // It goes on, and gets the limits of the next lease.
            return;
        }
        self.order(Order::Lease { epoch: held.epoch, limits: Limits::PAST });
        if self.command.is_gone() {
            self.tell(Level::Warn, format!("standby: lost the lease of epoch {}: {to}", held.epoch));
        } else {
            self.order(Order::Kill);
            self.forfeit = Some(held.limits());
            if !matches!(self.command.life, Life::Ending { why: Ending::Asked }) {
                self.command.ending(Ending::Lease);
            }
            self.tell(
                Level::Error,
                format!("standby: lost the lease of epoch {}, killing the command: {to}", held.epoch),
            );
        }
        self.next_look = now;
        self.write_at = now;
    }

    pub(super) fn drive_store(&mut self, now: Boot) {
        if let Some(finish) = self.finish.clone() {
            self.drive_finish(now, &finish);
            return;
        }
        if self.calling.is_some() {
            return;
        }
        match &self.held {
            Some(held) => {
                let known = held.record.is_some();
                // No acknowledgement of the last limits, no next renewal.
                if now.has_reached(self.write_at) && self.is_heard() {
                    if known { self.renew(now) } else { self.look(now) }
                }
            }
            None => self.drive_challenger(now),
        }
    }

    pub(super) fn drive_challenger(&mut self, now: Boot) {
        let Some(timing) = self.setup.timing else { return };
        if self.asked_to_stop {
            return;
        }
        let claim = self.claim_in(now, &timing);
        let may = self.command.is_gone() || self.is_flawed(Flaw::AdoptUnderAnotherLease);
        if let Some((Duration::ZERO, _)) = claim
            && may
            && !self.claim_in_doubt
            && now.has_reached(self.write_at)
        {
            self.claim(now);
            return;
        }
        if now.has_reached(self.next_look) {
            self.look(now);
            return;
        }
        let mut limit = now.until(self.next_look);
        if let Some((left, _)) = claim
            && left > Duration::ZERO
        {
            limit = limit.min(left);
        }
        let bound = limit + timing.store_timeout;
        if !now.has_reached(self.wait_at) {
            return;
        }
        let id = self.call(now, Kind::Wait, bound, None);
        self.out.push(Effect::Wait { id, limit });
    }

    pub(super) fn claim_in(&self, now: Boot, timing: &Timing) -> Option<(Duration, Ground)> {
        let claim = self.challenger.claim_in(now, &self.me.node, timing);
        if self.is_flawed(Flaw::BelieveNobody) && self.challenger.record().is_some_and(|r| r.holder.is_none()) {
            return Some((Duration::ZERO, Ground::Free));
        }
        claim
    }

    pub(super) fn drive_finish(&mut self, now: Boot, finish: &Finish) {
        if !self.command.is_gone() && !self.is_flawed(Flaw::ReleaseBeforeGone) {
            return;
        }
        let nothing_to_give_back = self.held.is_none() && !self.claim_in_doubt;
        let waiting = self.calling.as_ref().is_some_and(|call| call.kind != Kind::Wait && call.kind != Kind::Look);
        if nothing_to_give_back && !waiting {
            self.end();
            return;
        }
        if now.has_reached(finish.until) {
            if let Some(held) = &self.held {
                let ttl = held.record.as_ref().map(|(record, _)| secs(record.ttl)).unwrap_or_default();
                self.tell(
                    Level::Warn,
                    format!("cannot release the lease, the store does not answer: it runs out by itself within {ttl}"),
                );
            }
            self.end();
            return;
        }
        match (&self.held, finish.sealed) {
            (Some(held), Sealed::No) => {
                // The keeper has to know that this lease is over before the store does.
                let epoch = held.epoch;
                self.given_up = self.given_up.max(epoch);
                if !self.is_flawed(Flaw::ReleaseBeforeGone) {
                    self.order(Order::Lease { epoch, limits: Limits::PAST });
                }
                self.unacked = None;
                let sealed = if self.is_flawed(Flaw::ReleaseBeforeGone) { Sealed::Yes } else { Sealed::Asked };
                if let Some(finish) = &mut self.finish {
                    finish.sealed = sealed;
                }
            }
            (Some(_), Sealed::Asked) => {}
            (held, _) => {
                if self.calling.is_some() || !now.has_reached(self.write_at) {
                    return;
                }
                let write = held.as_ref().and_then(|held| held.release(&self.me, &finish.why));
                match write {
                    Some(write) => self.swap(now, Kind::Release, write),
                    None => self.look(now),
                }
            }
        }
    }

    /// Whether the keeper has acknowledged the last limits.
    fn is_heard(&self) -> bool {
        self.unacked.is_none() || self.is_flawed(Flaw::RenewUnheard)
    }

    pub(super) fn store_due_in(&self, now: Boot) -> Option<Duration> {
        self.setup.timing?;
        if self.finish.is_some() {
            return Some(now.until(self.write_at)).filter(|d| !d.is_zero());
        }
        match &self.held {
            Some(_) if !self.is_heard() => None,
            Some(_) => Some(now.until(self.write_at)),
            None if self.asked_to_stop => None,
            None => Some(now.until(self.next_look).min(self.claim_due_in(now))),
        }
    }

    /// How long until a claim may be sent, if nothing else happens.
    fn claim_due_in(&self, now: Boot) -> Duration {
        match self.setup.timing.and_then(|timing| self.claim_in(now, &timing)) {
            Some((left, _)) if self.command.is_gone() && !self.claim_in_doubt => left.max(now.until(self.write_at)),
            _ => Duration::MAX,
        }
    }

    pub(super) fn call(&mut self, now: Boot, kind: Kind, bound: Duration, next: Option<(Record, Generation)>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.calling = Some(Call { id, kind, asked: now, bound, next });
        id
    }

    pub(super) fn bound(&self) -> Duration {
        self.setup.timing.map_or(Duration::ZERO, |timing| timing.store_timeout)
    }

    pub(super) fn look(&mut self, now: Boot) {
        let id = self.call(now, Kind::Look, self.bound(), None);
        let me = self.member();
        self.out.push(Effect::Look { id, me });
    }

    pub(super) fn claim(&mut self, now: Boot) {
        let Some(timing) = self.setup.timing else { return };
        if let Some(write) = self.challenger.claim(&self.me, &timing) {
            self.swap(now, Kind::Claim, write);
        }
    }

    pub(super) fn renew(&mut self, now: Boot) {
        let Some(timing) = self.setup.timing else { return };
        if let Some(write) = self.held.as_ref().and_then(|held| held.renewal(&timing)) {
            self.swap(now, Kind::Renew, write);
        }
    }

    pub(super) fn swap(&mut self, now: Boot, kind: Kind, write: Write) {
        let unresolved_is_failed = self.is_flawed(Flaw::UnresolvedIsFailed);
        if let (Some(held), Some(timing)) = (&mut self.held, self.setup.timing) {
            // A release counts as zero from the moment it is sent.
            let limits = match kind {
                Kind::Release if unresolved_is_failed => held.limits(),
                Kind::Release => Limits::PAST,
                _ => timing.limits(now, write.next.ttl),
            };
            held.sent(limits);
        }
        let generation = write.next.generation.clone().unwrap_or_default();
        let id = self.call(now, kind, self.bound(), Some((write.next.clone(), generation)));
        let me = self.member();
        self.out.push(Effect::Swap { id, version: write.version, next: Box::new(write.next), entry: write.entry, me });
    }
}

/// Whether the record is the lease that we hold: instance *and* epoch.
fn is_ours(record: &Record, me: &Holder, epoch: u64, flaw: Option<Flaw>) -> bool {
    let Some(holder) = &record.holder else { return false };
    match flaw {
        Some(Flaw::RenewByName) => holder.node == me.node,
        Some(Flaw::AnyEpoch) => holder.instance == me.instance,
        _ => holder.instance == me.instance && record.epoch == epoch,
    }
}

/// Whether the holder has not renewed for longer than its ttl, by the store's own clock. A hint
/// that decides how long somebody waits, and nothing else: a claim needs its ground all the same.
fn is_overdue(sighting: &Sighting) -> bool {
    match (&sighting.record, sighting.age) {
        (Some(record), Some(age)) => record.holder.is_some() && age > record.ttl,
        _ => false,
    }
}

/// When a standby looks again: just after the next renewal is due, by the record's age
/// on the store's own clock. That is a hint only; a clock that is wrong costs time or
/// statements, within these bounds, and never safety.
fn next_look(sighting: &Sighting, timing: &Timing) -> Duration {
    let slack = timing.slack();
    let (Some(record), Some(age)) = (&sighting.record, sighting.age) else {
        return timing.renew;
    };
    if record.holder.is_none() {
        return timing.renew;
    }
    let next = match record.renew.checked_sub(age) {
        Some(left) => left + slack,
        // It is late: look a little more often until it is clear that it is gone.
        None if age < 2 * record.renew => (record.renew / 4).max(slack),
        None => timing.renew,
    };
    next.clamp(slack, timing.renew.max(record.renew) + slack)
}
