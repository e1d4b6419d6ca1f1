//! One host's whole state, and its one step: what happened in, what is to be done out.
//!
//! The node asks the store one thing at a time, and takes the time before the
//! question as the moment that a success counts from. It starts the command only
//! under a confirmed lease, and gives the lease back only when the keeper has said
//! that nothing of the command is left.

use super::lease::{Ground, Held, Watch as Challenger, Write};
use super::orders::{Exit, Level, MEMO_MAX, Order, Report, Snapshot, Stage, Start, Tree};
use super::record::{Entry, Generation, Holder, Look, Member, Record, Role, Sighting, Swap, Trouble, Version};
use super::timing::{Boot, Limits, Timing};
use super::watch::{Change, Due, Ending, Life, Supervision, Verdict, Watch};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Exit codes of `locum run` that are decided here.
pub mod code {
    /// An orderly stop.
    pub const OK: u8 = 0;
    /// The store cannot be reached (EX_UNAVAILABLE).
    pub const UNAVAILABLE: u8 = 69;
    /// Somebody else holds the lease (EX_TEMPFAIL).
    pub const HELD: u8 = 75;
    /// The program was found but cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The program was not found.
    pub const NOT_FOUND: u8 = 127;
}

/// What `run` does while somebody else holds the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Patience {
    /// Stand by for ever.
    Standby,
    /// End at once (`--try`).
    Try,
    /// End after this time (`--wait`).
    Wait(Duration),
}

/// What a node is told once.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// This node's name.
    pub node: String,
    /// The machine's name, for the others.
    pub host: String,
    /// The program's version, for the others.
    pub version: String,
    /// How the command is supervised.
    pub supervision: Supervision,
    /// The lease's durations; none: no store is used and the command always runs.
    pub timing: Option<Timing>,
    /// What to do while somebody else holds the lease.
    pub patience: Patience,
    /// A deliberate fault, for the simulation that has to catch it.
    #[cfg(test)]
    pub flaw: Option<Flaw>,
}

/// Faults that the simulation must catch; a build for users has none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The lease is counted from the store's reply.
    CountFromReply,
    /// A lease is taken when the store's clock says that it expired.
    TrustStoreClock,
    /// The lease is given back before the tree is gone.
    ReleaseBeforeGone,
    /// The lease is renewed whenever the record has our node's name.
    RenewByName,
    /// A release without an answer is taken for one that did not happen.
    UnresolvedIsFailed,
    /// "Nobody holds it" is believed under another generation of the store.
    BelieveNobody,
    /// A command that runs under one lease is kept under the next one.
    AdoptUnderAnotherLease,
}

/// What happens to a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The store answered the call with this number.
    Answer {
        /// As in the effect that made the call.
        id: u64,
        /// What it said.
        answer: Answer,
    },
    /// A health check ended.
    Judged(Verdict),
    /// The keeper said something.
    Keeper(Report),
}

/// An answer of the store.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To a look.
    Look(Result<Look, Trouble>),
    /// To a swap.
    Swap(Result<Swap, Trouble>),
    /// To a wait: whether the record may have changed.
    Wait(Result<bool, Trouble>),
}

/// What a node wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Call [`Answer::Look`].
    Look {
        /// Comes back with the answer.
        id: u64,
        /// What the others are told of us.
        me: Member,
    },
    /// Call [`Answer::Swap`].
    Swap {
        /// Comes back with the answer.
        id: u64,
        /// What must still stand.
        version: Version,
        /// What shall stand.
        next: Box<Record>,
        /// For the history.
        entry: Option<Entry>,
        /// What the others are told of us.
        me: Member,
    },
    /// Call [`Answer::Wait`].
    Wait {
        /// Comes back with the answer.
        id: u64,
        /// For at most this long.
        limit: Duration,
    },
    /// No answer within the bound: the call under way is written off.
    GiveUp,
    /// Tell the keeper.
    Order(Order),
    /// Make a health check.
    Probe,
    /// Write a line into the log.
    Tell(Level, String),
    /// The keeper does not do its work: kill the tree, then the keeper.
    KillAll,
}

/// What a node shows of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Active or standby; none without a store.
    pub role: Option<Role>,
    /// The epoch held, 0 if none.
    pub epoch: u64,
    /// The token held, 0 if none.
    pub token: u64,
    /// Until the command is told to stop, if a lease is held.
    pub deadline_left: Option<Duration>,
    /// How the command is.
    pub health: super::record::Health,
    /// What the last check said.
    pub detail: String,
    /// The leader and when it was started.
    pub running: Option<(i32, Boot)>,
    /// Starts after the first.
    pub restarts: u64,
    /// Failed tries in a row.
    pub tries: u32,
    /// How the command ended last.
    pub last_exit: Option<Exit>,
    /// The last trouble with the store.
    pub trouble: Option<String>,
    /// What comes next, in words.
    pub next: String,
}

/// What a fresh agent must not forget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Memo {
    tries: u32,
    restarts: u64,
    started_once: bool,
    ready: bool,
    failing: Option<Boot>,
    waiting: Option<Boot>,
    ending: Option<Ending>,
    over: Option<u8>,
    /// It was started, and its end was not yet seen.
    live: bool,
    exit: Option<(bool, i32)>,
    given_up: u64,
    highest_token: u64,
    generation: Option<Generation>,
    claimed_once: bool,
    patient_until: Option<Boot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Look,
    Wait,
    Claim(Ground),
    Renew,
    Release,
}

#[derive(Clone, Debug)]
struct Call {
    id: u64,
    kind: Kind,
    /// Read before the first byte: what a success counts from.
    asked: Boot,
    /// No answer within this: written off.
    bound: Duration,
    /// What a swap would write.
    next: Option<(Record, Generation)>,
}

/// The way out: the tree is gone, and the lease is given back before the keeper ends.
#[derive(Clone, Debug)]
struct Finish {
    code: u8,
    why: String,
    /// When to stop waiting for the store.
    until: Boot,
    /// The keeper has acknowledged that the lease is over.
    sealed: Sealed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sealed {
    No,
    Asked,
    Yes,
}

/// Without a store there are no renewals to be heard: the agent says that it lives this often.
pub(super) const IDLE_ALIVE: Duration = Duration::from_secs(30);

/// One host: its lease and its command.
#[derive(Clone, Debug)]
pub struct Node {
    setup: Setup,
    me: Holder,
    command: Watch,
    challenger: Challenger,
    held: Option<Held>,
    /// The highest epoch that we gave back or lost: a record of ours up to it is nobody's.
    given_up: u64,
    /// A claim was sent and never answered: it may still take effect.
    claim_in_doubt: bool,
    claimed_once: bool,
    patient_until: Option<Boot>,
    generation: Option<Generation>,
    calling: Option<Call>,
    next_id: u64,
    /// The next look of a standby.
    next_look: Boot,
    /// The next write: a renewal, a release, or another try at a claim.
    write_at: Boot,
    /// `kill_at` of the last lease told to the keeper and not yet acknowledged.
    unacked: Option<Boot>,
    /// When the keeper last said something.
    keeper_heard: Boot,
    killed_all: bool,
    asked_to_stop: bool,
    finish: Option<Finish>,
    done: bool,
    trouble: Option<(Boot, String)>,
    told_missing: bool,
    last_said: Boot,
    memo: Memo,
    out: Vec<Effect>,
}

fn secs(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

impl Node {
    /// A node for an agent that has just been told how things stand.
    pub fn new(setup: Setup, now: Boot, hello: &Snapshot) -> Node {
        let memo: Memo = serde_json::from_slice(&hello.memo).unwrap_or_default();
        let mut command = Watch::new(setup.supervision.clone());
        command.tries = memo.tries;
        command.restarts = memo.restarts;
        command.started_once = memo.started_once;
        command.last_exit = hello.exit.or(memo.exit.map(|(signal, n)| match signal {
            true => Exit::Signal(n),
            false => Exit::Code(u8::try_from(n).unwrap_or(u8::MAX)),
        }));
        let ended = hello.limits == Limits::PAST;
        let mut node = Node {
            me: Holder { node: setup.node.clone(), instance: hello.instance.clone() },
            patient_until: memo.patient_until.or(match setup.patience {
                Patience::Standby => None,
                Patience::Try => Some(now),
                Patience::Wait(limit) => Some(now.plus(limit)),
            }),
            setup,
            command,
            challenger: Challenger::new(memo.highest_token),
            held: None,
            given_up: memo.given_up.max(if ended { hello.epoch } else { 0 }),
            claim_in_doubt: false,
            claimed_once: memo.claimed_once || hello.epoch > 0,
            generation: memo.generation.clone(),
            calling: None,
            next_id: 1,
            next_look: now,
            write_at: now,
            unacked: None,
            keeper_heard: now,
            killed_all: false,
            asked_to_stop: hello.stopping,
            finish: None,
            done: false,
            trouble: None,
            told_missing: false,
            last_said: now,
            memo: memo.clone(),
            out: Vec::new(),
        };
        if node.setup.timing.is_some() && hello.epoch > 0 && !ended {
            node.held = Some(Held::new(hello.epoch, hello.token, hello.limits));
        }
        match hello.tree {
            Tree::Running { pid, since } => {
                node.command.found(now, pid, since, memo.ready, memo.failing);
                if let Some(why) = memo.ending {
                    // It was being stopped for a reason that still holds: say it again.
                    node.stop_command(now, why);
                }
            }
            Tree::Ending { .. } => {
                node.command.ending(memo.ending.unwrap_or(Ending::Own));
            }
            Tree::Gone => {
                if let Some(code) = memo.over {
                    node.command.life = Life::Over { code };
                } else if let Some(until) = memo.waiting {
                    node.command.life = Life::Waiting { until };
                } else if memo.ending.is_some() || (memo.live && hello.exit.is_some()) {
                    // It ended while there was no agent to see it.
                    node.command.ending(memo.ending.unwrap_or(Ending::Own));
                    node.tree_is_gone(now);
                }
            }
        }
        // The agent before us may have died on the way out, its release sent or not.
        node.claim_in_doubt = ended && hello.epoch > 0 && (hello.stopping || memo.over.is_some());
        if hello.agents > 0 {
            let tree = match hello.tree {
                Tree::Gone => "nothing of the command runs".to_string(),
                Tree::Running { pid, .. } => format!("the command goes on as pid {pid}"),
                Tree::Ending { pid } => format!("the command (pid {pid}) is being stopped"),
            };
            node.tell(
                Level::Warn,
                format!("took over from an agent that died or hung ({} so far); {tree}", hello.agents),
            );
        }
        if node.asked_to_stop {
            node.stop(now, "asked to stop");
        }
        node
    }

    /// The node's one step. `now` is read by the caller, just before.
    pub fn step(&mut self, now: Boot, event: Event) -> Vec<Effect> {
        match event {
            Event::Tick => {}
            Event::Answer { id, answer } => self.answered(now, id, answer),
            Event::Judged(verdict) => self.judged(now, verdict),
            Event::Keeper(report) => self.keeper_said(now, report),
        }
        self.drive(now);
        self.remember(now);
        std::mem::take(&mut self.out)
    }

    /// How long until the node has something to do by itself.
    pub fn wake_in(&self, now: Boot) -> Duration {
        let mut wake = now.until(self.last_said.plus(self.alive_after()));
        let mut at_most = |d: Duration| wake = wake.min(d);
        if let Some(d) = self.command.due_in(now) {
            at_most(d);
        }
        if let Some(call) = &self.calling {
            at_most(now.until(call.asked.plus(call.bound)));
        } else if let Some(d) = self.store_due_in(now) {
            at_most(d);
        }
        if let Some(held) = &self.held
            && !self.command.is_gone()
        {
            let limits = held.limits();
            for limit in [limits.term_at, self.last_resort(limits)] {
                if !now.has_reached(limit) {
                    at_most(now.until(limit));
                }
            }
        }
        if let Some(finish) = &self.finish {
            at_most(now.until(finish.until));
        }
        if let (Some(until), false) = (self.patient_until, self.claimed_once)
            && !now.has_reached(until)
        {
            at_most(now.until(until));
        }
        wake
    }

    /// What this node shows of itself.
    pub fn view(&self, now: Boot) -> View {
        let held = self.held.as_ref().filter(|held| held.limits() != Limits::PAST);
        View {
            role: self.setup.timing.map(|_| self.role()),
            epoch: held.map_or(0, |held| held.epoch),
            token: held.map_or(0, |held| held.token),
            deadline_left: held.map(|held| now.until(held.limits().term_at)),
            health: self.command.health(),
            detail: self.command.detail.clone(),
            running: match self.command.life {
                Life::Running { pid, since, .. } => Some((pid, since)),
                _ => None,
            },
            restarts: self.command.restarts,
            tries: self.command.tries,
            last_exit: self.command.last_exit,
            trouble: self.trouble.as_ref().map(|(_, text)| text.clone()),
            next: self.next(now),
        }
    }

    /// The highest generation of the store that was seen, for a store that has to know.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    fn role(&self) -> Role {
        if self.held.is_some() { Role::Active } else { Role::Standby }
    }

    fn next(&self, now: Boot) -> String {
        if self.finish.is_some() || self.asked_to_stop {
            return "ends".into();
        }
        match &self.command.life {
            Life::Waiting { until } => format!("starts the command again in {}", secs(now.until(*until))),
            Life::Ending { .. } => "waits until nothing of the command is left".into(),
            Life::Running { failing: Some(first), .. } => {
                let left = self.setup.supervision.timeout.saturating_sub(now.fast_since(*first));
                format!("restarts the command in {} unless a check passes", secs(left))
            }
            Life::Idle if self.held.is_none() => match &self.setup.timing {
                Some(timing) => match self.challenger.claim_in(now, &self.me.node, timing) {
                    Some((left, Ground::Silence)) => match self.challenger.record().and_then(|r| r.holder.as_ref()) {
                        Some(holder) => {
                            format!("takes over if {} is silent for {} more", holder.node, secs(left))
                        }
                        None => format!("claims the lease in {}", secs(left)),
                    },
                    Some((left, Ground::Free)) => format!("claims the lease in {}", secs(left)),
                    None => "waits for the store".into(),
                },
                None => String::new(),
            },
            _ => String::new(),
        }
    }

    fn flaw(&self) -> Option<Flaw> {
        #[cfg(test)]
        return self.setup.flaw;
        #[cfg(not(test))]
        None
    }

    fn is_flawed(&self, flaw: Flaw) -> bool {
        self.flaw() == Some(flaw)
    }

    // ---- what happened ----

    fn keeper_said(&mut self, now: Boot, report: Report) {
        self.keeper_heard = now;
        match report {
            Report::Hello(_) => {}
            Report::Started { pid } => {
                if let Life::Starting { .. } = self.command.life {
                    self.command.started(now, pid);
                    self.tell(Level::Info, format!("started the command as pid {pid}"));
                }
            }
            Report::StartFailed { stage, errno } => self.start_failed(now, stage, errno),
            Report::Exited(exit) => {
                // The keeper acts on a limit by itself: an end after it is not the command's doing.
                self.notice_doubt(now);
                let by_itself = !matches!(self.command.life, Life::Ending { .. });
                self.command.exited(exit);
                let level = if by_itself { Level::Warn } else { Level::Info };
                self.tell(level, format!("the command {exit}"));
            }
            Report::Gone => self.tree_is_gone(now),
            Report::LeaseAck { kill_at, .. } => {
                if self.unacked == Some(kill_at) {
                    self.unacked = None;
                }
                if let Some(finish) = &mut self.finish
                    && kill_at == Boot::ZERO
                {
                    finish.sealed = Sealed::Yes;
                }
            }
            Report::Asked { signal } => {
                if !self.asked_to_stop {
                    self.asked_to_stop = true;
                    self.stop(now, &format!("asked to stop by signal {signal}"));
                }
            }
            Report::Told { level, text } => self.tell(level, text),
        }
    }

    fn start_failed(&mut self, now: Boot, stage: Stage, errno: i32) {
        let error = std::io::Error::from_raw_os_error(errno);
        if let Life::Ending { .. } = self.command.life {
            self.tree_is_gone(now);
            return;
        }
        let code = match (stage, errno) {
            // ENOENT is 2 on every Unix.
            (Stage::Exec, 2) => code::NOT_FOUND,
            _ => code::NOT_EXECUTABLE,
        };
        let what = format!("cannot start the command: {stage}: {error}");
        match self.command.start_failed(now, code) {
            Some(pause) => {
                let tries = self.command.tries;
                self.tell(Level::Error, format!("{what}; try {tries} failed, next one in {}", secs(pause)));
            }
            None => self.tell(Level::Error, what),
        }
    }

    fn tree_is_gone(&mut self, now: Boot) {
        if self.command.is_gone() {
            return;
        }
        match self.command.gone(now) {
            Some(pause) => {
                let tries = self.command.tries;
                self.tell(
                    Level::Info,
                    format!(
                        "nothing of the command is left; starting it again in {} (failed tries: {tries})",
                        secs(pause)
                    ),
                );
            }
            None => self.tell(Level::Info, "nothing of the command is left".into()),
        }
    }

    fn judged(&mut self, now: Boot, verdict: Verdict) {
        let change = self.command.judged(now, verdict);
        let detail = self.command.detail.clone();
        match change {
            Change::None => {}
            Change::Ready { after } => {
                self.tell(Level::Info, format!("the command is healthy after {} ({detail})", secs(after)));
            }
            Change::Failing => {
                let timeout = secs(self.setup.supervision.timeout);
                self.tell(Level::Warn, format!("health check fails: {detail}; restart after {timeout} of this"));
            }
            Change::Recovered { after } => {
                self.tell(Level::Info, format!("healthy again after {} ({detail})", secs(after)));
            }
        }
    }

    fn answered(&mut self, now: Boot, id: u64, answer: Answer) {
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
    fn swapped(&mut self, now: Boot, call: Call) {
        let (Some((record, generation)), Some(timing)) = (call.next, self.setup.timing) else {
            return;
        };
        self.generation = Some(generation.clone());
        let s = if self.is_flawed(Flaw::CountFromReply) { now } else { call.asked };
        let limits = timing.limits(s, record.ttl);
        self.write_at = call.asked.plus(timing.renew);
        match call.kind {
            Kind::Claim(ground) => {
                let mut held = Held::new(record.epoch, record.token, limits);
                let (epoch, token, why) = (record.epoch, record.token, record.why.clone());
                held.confirm(limits, record, generation);
                self.held = Some(held);
                self.claim_in_doubt = false;
                self.claimed_once = true;
                self.challenger.forget();
                let verb = if ground == Ground::Free { "claimed the lease" } else { "took over the lease" };
                self.tell(Level::Info, format!("active: {verb} as epoch {epoch}, token {token}: {why}"));
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
    fn sighted(&mut self, now: Boot, sighting: &Sighting) {
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
        if let Some(held) = &mut self.held {
            if let Some(record) = &sighting.record
                && is_ours(record, &self.me, held.epoch, flaw)
            {
                held.token = record.token;
                held.record = Some((record.clone(), sighting.generation.clone()));
                self.write_at = now;
                return;
            }
            let to = match &sighting.record {
                Some(Record { holder: Some(holder), epoch, .. }) => {
                    format!("{} holds it under epoch {epoch}", holder.node)
                }
                Some(Record { epoch, .. }) => format!("the record says nobody, epoch {epoch}"),
                None => "the record is gone".into(),
            };
            self.lost(now, &to);
        } else if let Some(record) = &sighting.record
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
            self.consider_patience(now, sighting.record.as_ref());
            if self.is_flawed(Flaw::TrustStoreClock)
                && let (Some(record), Some(age)) = (&sighting.record, sighting.age)
                && age >= record.ttl
                && self.command.is_gone()
            {
                self.claim(now, Ground::Silence);
            }
        }
    }

    /// Whoever asked for `--try` or `--wait` is told when the time is over.
    fn consider_patience(&mut self, now: Boot, record: Option<&Record>) {
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
    fn failed(&mut self, now: Boot, call: &Call, trouble: &Trouble) {
        self.in_trouble(now, trouble);
        self.write_at = now.plus(self.pause());
        self.next_look = now.plus(self.pause());
        match call.kind {
            Kind::Claim(_) => {
                if matches!(trouble, Trouble::Unknown(_)) {
                    self.claim_in_doubt = true;
                    self.tell(Level::Warn, format!("nobody knows whether the claim took effect: {trouble}"));
                }
            }
            Kind::Release if self.is_flawed(Flaw::UnresolvedIsFailed) => {
                self.finish = None;
                self.asked_to_stop = false;
                self.command.life = Life::Idle;
                if let Some(limits) = self.held.as_ref().map(Held::limits) {
                    let epoch = self.held.as_ref().map_or(0, |held| held.epoch);
                    self.order_lease(epoch, limits);
                }
            }
            _ => {}
        }
        self.consider_patience(now, None);
    }

    /// Short after a failure, so that an outage's end is found soon; the renewal cycle is the most.
    fn pause(&self) -> Duration {
        self.setup.timing.map_or(Duration::ZERO, |timing| (timing.renew / 4).min(Duration::from_secs(1)))
    }

    fn in_trouble(&mut self, now: Boot, trouble: &Trouble) {
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

    fn out_of_trouble(&mut self, now: Boot) {
        if let Some((since, _)) = self.trouble.take() {
            self.tell(Level::Info, format!("the store answers again, after {}", secs(now.fast_since(since))));
        }
    }

    /// Somebody else has it: kill now.
    fn lost(&mut self, now: Boot, to: &str) {
        let Some(held) = self.held.take() else { return };
        self.given_up = self.given_up.max(held.epoch);
        self.unacked = None;
        self.order(Order::Lease { epoch: held.epoch, limits: Limits::PAST });
        if self.command.is_gone() {
            self.tell(Level::Warn, format!("standby: lost the lease of epoch {}: {to}", held.epoch));
        } else {
            self.order(Order::Kill);
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

    // ---- what is due ----

    fn drive(&mut self, now: Boot) {
        if self.done {
            return;
        }
        if let Some(call) = self.calling.take_if(|call| now.fast_since(call.asked) >= call.bound) {
            self.out.push(Effect::GiveUp);
            if call.kind == Kind::Wait {
                self.next_look = now;
            } else {
                let text = format!("no answer within {}", secs(call.bound));
                self.failed(now, &call, &Trouble::Unknown(text));
                // The call itself has taken the pause.
                self.write_at = now;
                self.next_look = now;
            }
        }
        self.notice_doubt(now);
        self.watch_keeper(now);
        self.watch_command(now);
        if let Life::Over { code } = self.command.life
            && self.finish.is_none()
        {
            self.begin_finish(now, code, "the command ended");
        }
        if let (Patience::Wait(_), Some(_)) = (self.setup.patience, self.patient_until) {
            let record = self.challenger.record().cloned();
            self.consider_patience(now, record.as_ref());
        }
        if self.setup.timing.is_some() {
            self.drive_store(now);
        } else if self.finish.is_some() {
            self.end();
        }
        self.start_if_due(now);
        let quiet = now.fast_since(self.last_said);
        if quiet >= self.alive_after() {
            self.order(Order::Alive);
        }
    }

    /// How long after the last order the keeper is told that we live. A holder's
    /// renewals say so; this only fills in when they fail.
    fn alive_after(&self) -> Duration {
        match self.setup.timing {
            None => IDLE_ALIVE,
            Some(timing) if self.held.is_some() => timing.renew.mul_f64(1.15),
            Some(timing) => timing.renew.mul_f64(0.9),
        }
    }

    /// The stop signal was due: the keeper has sent it, with or without us.
    fn notice_doubt(&mut self, now: Boot) {
        let Some(held) = &self.held else { return };
        let in_doubt = held.limits() != Limits::PAST && now.has_reached(held.limits().term_at);
        if in_doubt && matches!(self.command.life, Life::Running { .. } | Life::Starting { .. }) {
            self.command.ending(Ending::Lease);
            self.tell(
                Level::Error,
                "the lease could not be renewed in time: the command is told to stop, and killed before the lease ends"
                    .into(),
            );
        }
    }

    /// When the agent acts in place of a keeper that has let `kill_at` pass.
    fn last_resort(&self, limits: Limits) -> Boot {
        limits.kill_at.plus(self.setup.timing.map_or(Duration::ZERO, |timing| timing.kill_margin / 2))
    }

    fn watch_keeper(&mut self, now: Boot) {
        let Some(held) = &self.held else { return };
        let limits = held.limits();
        let silent = !self.keeper_heard.has_reached(limits.kill_at);
        let due = limits != Limits::PAST && now.has_reached(self.last_resort(limits));
        if due && silent && !self.command.is_gone() && !self.killed_all {
            self.killed_all = true;
            self.tell(Level::Error, "the keeper let the deadline pass: killing the command and the keeper".into());
            self.out.push(Effect::KillAll);
        }
    }

    fn watch_command(&mut self, now: Boot) {
        match self.command.due(now) {
            Due::Nothing => {}
            Due::Probe => self.out.push(Effect::Probe),
            Due::Alive => self.judged(now, Verdict::Healthy("alive".into())),
            Due::TooSlow { after } => {
                let detail = self.command.detail.clone();
                self.tell(Level::Error, format!("not ready {} after its start, killing it ({detail})", secs(after)));
                self.command.ending(Ending::Sick);
                self.order(Order::Kill);
            }
            Due::TooSick { after } => {
                let detail = self.command.detail.clone();
                self.tell(Level::Error, format!("health check fails since {}, stopping it ({detail})", secs(after)));
                self.stop_command(now, Ending::Sick);
            }
        }
    }

    fn start_if_due(&mut self, now: Boot) {
        if self.finish.is_some() || self.asked_to_stop || !self.command.wants_start(now) {
            return;
        }
        let start = match (&self.setup.timing, &self.held) {
            (None, _) => Start { epoch: 0, token: 0, previous: String::new() },
            (Some(_), Some(held)) if !now.has_reached(held.limits().term_at) => Start {
                epoch: held.epoch,
                token: held.token,
                previous: held.record.as_ref().map_or(String::new(), |(record, _)| record.previous.clone()),
            },
            _ => return,
        };
        self.command.starting(now);
        if self.setup.timing.is_none() {
            self.order(Order::Lease { epoch: 0, limits: Limits::FOREVER });
        }
        self.order(Order::Start(start));
    }

    fn stop_command(&mut self, _now: Boot, why: Ending) {
        self.command.ending(why);
        self.order(Order::Stop { grace: self.setup.supervision.stop_timeout });
    }

    /// An orderly stop: first the command, then the lease, then the keeper.
    fn stop(&mut self, now: Boot, why: &str) {
        if self.command.is_gone() {
            self.tell(Level::Info, format!("{why}: ending"));
            self.begin_finish(now, code::OK, why);
            return;
        }
        let limit = secs(self.setup.supervision.stop_timeout);
        self.tell(Level::Info, format!("{why}: stopping the command, which has {limit}"));
        match self.command.life {
            Life::Ending { .. } => self.command.ending(Ending::Asked),
            _ => self.stop_command(now, Ending::Asked),
        }
        if self.is_flawed(Flaw::ReleaseBeforeGone) {
            self.begin_finish(now, code::OK, why);
        }
    }

    fn begin_finish(&mut self, now: Boot, code: u8, why: &str) {
        if self.finish.is_some() {
            return;
        }
        let patience = self.setup.timing.map_or(Duration::ZERO, |timing| 2 * timing.store_timeout);
        self.finish = Some(Finish { code, why: why.to_string(), until: now.plus(patience), sealed: Sealed::No });
    }

    /// Nothing is left to do but to end the keeper.
    fn end(&mut self) {
        if let Some(finish) = &self.finish {
            let code = finish.code;
            self.order(Order::Shutdown { code });
            self.done = true;
        }
    }

    fn drive_store(&mut self, now: Boot) {
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
                if now.has_reached(self.write_at) && self.unacked.is_none() {
                    if known { self.renew(now) } else { self.look(now) }
                }
            }
            None => self.drive_challenger(now),
        }
    }

    fn drive_challenger(&mut self, now: Boot) {
        let Some(timing) = self.setup.timing else { return };
        if self.asked_to_stop {
            return;
        }
        let claim = self.claim_in(now, &timing);
        let may = self.command.is_gone() || self.is_flawed(Flaw::AdoptUnderAnotherLease);
        if let Some((Duration::ZERO, ground)) = claim
            && may
            && !self.claim_in_doubt
            && now.has_reached(self.write_at)
        {
            self.claim(now, ground);
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
        let id = self.call(now, Kind::Wait, bound, None);
        self.out.push(Effect::Wait { id, limit });
    }

    fn claim_in(&self, now: Boot, timing: &Timing) -> Option<(Duration, Ground)> {
        let claim = self.challenger.claim_in(now, &self.me.node, timing);
        if self.is_flawed(Flaw::BelieveNobody) && self.challenger.record().is_some_and(|r| r.holder.is_none()) {
            return Some((Duration::ZERO, Ground::Free));
        }
        claim
    }

    fn drive_finish(&mut self, now: Boot, finish: &Finish) {
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

    fn store_due_in(&self, now: Boot) -> Option<Duration> {
        self.setup.timing?;
        if self.finish.is_some() {
            return Some(now.until(self.write_at)).filter(|d| !d.is_zero());
        }
        match &self.held {
            Some(_) if self.unacked.is_some() => None,
            Some(_) => Some(now.until(self.write_at)),
            None if self.asked_to_stop => None,
            None => Some(now.until(self.next_look)),
        }
    }

    // ---- calls ----

    fn call(&mut self, now: Boot, kind: Kind, bound: Duration, next: Option<(Record, Generation)>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.calling = Some(Call { id, kind, asked: now, bound, next });
        id
    }

    fn bound(&self) -> Duration {
        self.setup.timing.map_or(Duration::ZERO, |timing| timing.store_timeout)
    }

    fn look(&mut self, now: Boot) {
        let id = self.call(now, Kind::Look, self.bound(), None);
        let me = self.member();
        self.out.push(Effect::Look { id, me });
    }

    fn claim(&mut self, now: Boot, ground: Ground) {
        let Some(timing) = self.setup.timing else { return };
        if let Some(write) = self.challenger.claim(&self.me, &timing) {
            self.swap(now, Kind::Claim(ground), write);
        }
    }

    fn renew(&mut self, now: Boot) {
        let Some(timing) = self.setup.timing else { return };
        if let Some(write) = self.held.as_ref().and_then(|held| held.renewal(&timing)) {
            self.swap(now, Kind::Renew, write);
        }
    }

    fn swap(&mut self, now: Boot, kind: Kind, write: Write) {
        if let (Some(held), Some(timing)) = (&mut self.held, self.setup.timing) {
            // A release counts as zero from the moment it is sent.
            let limits = match kind {
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

    fn member(&self) -> Member {
        Member {
            node: self.me.node.clone(),
            instance: self.me.instance.clone(),
            host: self.setup.host.clone(),
            version: self.setup.version.clone(),
            role: self.role(),
            health: self.command.health(),
        }
    }

    // ---- what leaves ----

    fn order_lease(&mut self, epoch: u64, limits: Limits) {
        self.unacked = Some(limits.kill_at);
        self.order(Order::Lease { epoch, limits });
    }

    fn order(&mut self, order: Order) {
        self.out.push(Effect::Order(order));
    }

    fn tell(&mut self, level: Level, text: String) {
        self.out.push(Effect::Tell(level, text));
    }

    fn tell_limits(&mut self, epoch: u64, limits: Limits) {
        self.tell(Level::Debug, format!("lease limits: epoch {epoch} end {}", limits.end.boot));
    }

    /// Sends the keeper what a fresh agent must not forget, when it changed.
    fn remember(&mut self, now: Boot) {
        let (ready, failing) = match self.command.life {
            Life::Running { ready, failing, .. } => (ready, failing),
            _ => (false, None),
        };
        let memo = Memo {
            tries: self.command.tries,
            restarts: self.command.restarts,
            started_once: self.command.started_once,
            ready,
            failing,
            waiting: match self.command.life {
                Life::Waiting { until } => Some(until),
                _ => None,
            },
            ending: match self.command.life {
                Life::Ending { why } => Some(why),
                _ => None,
            },
            over: match self.command.life {
                Life::Over { code } => Some(code),
                _ => None,
            },
            live: !self.command.is_gone(),
            exit: self.command.last_exit.map(|exit| match exit {
                Exit::Code(code) => (false, i32::from(code)),
                Exit::Signal(n) => (true, n),
            }),
            given_up: self.given_up,
            highest_token: self.challenger.highest_token,
            generation: self.generation.clone(),
            claimed_once: self.claimed_once,
            patient_until: self.patient_until,
        };
        if memo != self.memo
            && let Ok(bytes) = serde_json::to_vec(&memo)
            && bytes.len() <= MEMO_MAX
        {
            self.memo = memo;
            // Before anything else that this step wants: it must not be lost with us.
            self.out.insert(0, Effect::Order(Order::Memo(bytes)));
        }
        if self.out.iter().any(|effect| matches!(effect, Effect::Order(_))) {
            self.last_said = now;
        }
    }
}

/// Whether the record is the lease that we hold: instance *and* epoch.
fn is_ours(record: &Record, me: &Holder, epoch: u64, flaw: Option<Flaw>) -> bool {
    let Some(holder) = &record.holder else { return false };
    match flaw {
        Some(Flaw::RenewByName) => holder.node == me.node,
        _ => holder.instance == me.instance && record.epoch == epoch,
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
