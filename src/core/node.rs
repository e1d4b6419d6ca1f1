//! One host's whole state, and its one step: what happened in, what is to be done out.
//!
//! The node asks the store one thing at a time, and takes the time before the
//! question as the moment that a success counts from. It starts the command only
//! under a confirmed lease, and gives the lease back only when the keeper has said
//! that nothing of the command is left.

use super::lease::{Ground, Held, Watch as Challenger, Write};
use super::orders::{Exit, Level, MEMO_MAX, Order, Report, Snapshot, Stage, Start, Tree, signal_name};
use super::record::{Entry, Generation, Holder, Look, Member, Record, Role, Sighting, Swap, Trouble, Version};
use super::timing::{Boot, Limits, Timing};
use super::watch::{Change, Due, Ending, Life, Supervision, Verdict, Watch};
mod command;
mod store;
#[cfg(test)]
mod tests;
mod view;

pub use view::View;

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
    /// What a failed start is told with.
    pub names: Names,
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

/// What a start works with, by name: a failed one has to say at what it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The program that is executed.
    pub program: String,
    /// The directory it is started in, if not ours.
    pub directory: String,
    /// Who it runs as, if not us.
    pub user: String,
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
    /// The lease is renewed though the keeper has not acknowledged the last limits.
    RenewUnheard,
    /// The holder counts on the whole ttl, as if its clock were right.
    ForgetClockError,
    /// The challenger's count ends a little early.
    ImpatientChallenger,
    /// The challenger counts on whichever of its clocks ran further.
    FastChallenger,
    /// The challenger's count goes on when the store's generation changes.
    CountOverGenerations,
    /// The challenger counts with its own ttl instead of the one in the record.
    OwnTtl,
    /// The lease is ours when it names our instance, whatever its epoch.
    AnyEpoch,
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
    /// The store cannot be used as it is, and will not be before somebody does something:
    /// a node that never held the lease ends with this code.
    Unusable {
        /// The exit code.
        code: u8,
        /// What has to be done.
        why: String,
    },
    /// The keeper is dead, and for certain nothing of the command is left: what remains
    /// is to give the lease back.
    Orphaned,
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

/// What a fresh agent must not forget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    Claim,
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

/// Asks for a reopened log, and for nothing of ours; the same number on every Unix.
const HUP: i32 = 1;

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
    /// No wait for hints before this: the store has just failed one call.
    wait_at: Boot,
    /// The next write: a renewal, a release, or another try at a claim.
    write_at: Boot,
    /// `kill_at` of the last lease told to the keeper and not yet acknowledged.
    unacked: Option<Boot>,
    /// When the keeper last said something.
    keeper_heard: Boot,
    killed_all: bool,
    /// The limits of a lease that was lost while something of the command still lived:
    /// the kill was ordered, but a keeper that is stopped does not hear it.
    forfeit: Option<Limits>,
    /// An orderly stop was asked for.
    asked_to_stop: bool,
    /// Why the command is on its last way, for the release.
    farewell: String,
    finish: Option<Finish>,
    done: bool,
    trouble: Option<(Boot, String)>,
    told_missing: bool,
    /// The epoch of somebody else that was told of.
    told_standby: u64,
    last_said: Boot,
    memo: Memo,
    out: Vec<Effect>,
}

#[cfg(test)]
fn flaw_of(setup: &Setup) -> Option<Flaw> {
    setup.flaw
}

/// A build for users has none.
#[cfg(not(test))]
fn flaw_of(_: &Setup) -> Option<Flaw> {
    None
}

/// How long to sleep before a limit: the clock that ends the sleep may be slewed, and run
/// less than the one that the limit is reached by. So it is looked at again before.
fn before(left: Duration) -> Duration {
    if left > Duration::from_millis(8) { left / 8 * 7 } else { left }
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
            command,
            challenger: Challenger::new(memo.highest_token, flaw_of(&setup)),
            held: None,
            given_up: memo.given_up.max(if ended { hello.epoch } else { 0 }),
            claim_in_doubt: false,
            claimed_once: memo.claimed_once || hello.epoch > 0,
            generation: memo.generation.clone(),
            calling: None,
            next_id: 1,
            next_look: now,
            wait_at: now,
            write_at: now,
            unacked: None,
            keeper_heard: now,
            killed_all: false,
            forfeit: None,
            asked_to_stop: hello.stopping,
            farewell: "the command ended".into(),
            finish: None,
            done: false,
            trouble: None,
            told_missing: false,
            told_standby: 0,
            last_said: now,
            memo: memo.clone(),
            out: Vec::new(),
            setup,
        };
        if node.setup.timing.is_some() && hello.epoch > 0 && !ended {
            node.held = Some(Held::new(hello.epoch, hello.token, hello.limits));
        }
        // What the keeper ended for the lease, without an agent, was not the command's doing.
        let in_doubt = node.setup.timing.is_some() && now.has_reached(hello.limits.term_at);
        let by_itself = if in_doubt { Ending::Lease } else { Ending::Own };
        match hello.tree {
            Tree::Running { pid, since } => {
                node.command.found(now, pid, since, memo.ready, memo.failing);
                if let Some(why) = memo.ending {
                    // It was being stopped for a reason that still holds: say it again.
                    node.stop_command(now, why);
                }
            }
            Tree::Ending { .. } => {
                node.command.ending(memo.ending.unwrap_or(by_itself));
            }
            Tree::Gone => {
                if let Some(code) = memo.over {
                    node.command.life = Life::Over { code };
                } else if let Some(until) = memo.waiting {
                    node.command.life = Life::Waiting { until };
                } else if memo.ending.is_some() || (memo.live && hello.exit.is_some()) {
                    // It ended while there was no agent to see it.
                    node.command.ending(memo.ending.unwrap_or(by_itself));
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
            Event::Unusable { code, why } => {
                // One event is one line: a remedy of several statements takes one each.
                for line in why.lines() {
                    self.tell(Level::Error, line.trim().to_string());
                }
                if self.held.is_none() && !self.claimed_once && self.command.is_gone() {
                    self.begin_finish(now, code, &why);
                }
            }
            Event::Orphaned => {
                // No keeper is left that would have to hear that its lease is over.
                if let Some(finish) = &mut self.finish {
                    finish.sealed = Sealed::Yes;
                }
                self.asked_to_stop = true;
                self.command.ending(Ending::Asked);
                self.command.gone(now);
                self.begin_finish(now, code::OK, "its keeper was killed, and nothing of the command is left");
            }
        }
        self.drive(now);
        self.remember(now);
        std::mem::take(&mut self.out)
    }

    /// How long until the node has something to do by itself.
    pub fn wake_in(&self, now: Boot) -> Duration {
        if self.done {
            // Nothing is left to do but to be ended by the keeper.
            return IDLE_ALIVE;
        }
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
        if let Some(limits) = self.living_under() {
            for limit in [limits.term_at, self.last_resort(limits)] {
                if !now.has_reached(limit) {
                    at_most(before(now.until(limit)));
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

    /// The highest generation of the store that was seen, for a store that has to know.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    /// Whether the keeper was told to end: nothing is left to decide.
    pub fn has_ended(&self) -> bool {
        self.done
    }

    /// Whether nothing of the command is left, by the keeper's word.
    pub fn is_tree_gone(&self) -> bool {
        self.command.is_gone()
    }

    fn role(&self) -> Role {
        if self.held.is_some() { Role::Active } else { Role::Standby }
    }

    fn flaw(&self) -> Option<Flaw> {
        flaw_of(&self.setup)
    }

    fn is_flawed(&self, flaw: Flaw) -> bool {
        self.flaw() == Some(flaw)
    }

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
        if self.calling.is_none() && self.held.is_some() && now.has_reached(self.write_at) {
            self.command.hurry(now);
        }
        self.watch_command(now);
        if let Life::Over { code } = self.command.life
            && self.finish.is_none()
        {
            let why = self.farewell.clone();
            self.begin_finish(now, code, &why);
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
            // A standby that is replaced has to count from the start again: it speaks in good time.
            Some(timing) => timing.renew / 2,
        }
    }

    fn begin_finish(&mut self, now: Boot, code: u8, why: &str) {
        if self.finish.is_some() {
            return;
        }
        let patience = self.setup.timing.map_or(Duration::ZERO, |timing| 2 * timing.store_timeout);
        self.finish = Some(Finish { code, why: why.to_string(), until: now.plus(patience), sealed: Sealed::No });
        // The release is due now, not when the next renewal would have been.
        self.write_at = now;
    }

    /// Nothing is left to do but to end the keeper.
    fn end(&mut self) {
        if let Some(finish) = &self.finish {
            let code = finish.code;
            self.order(Order::Shutdown { code });
            self.done = true;
        }
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

    fn order_lease(&mut self, epoch: u64, limits: Limits) {
        let adopts = self.is_flawed(Flaw::AdoptUnderAnotherLease) && !self.command.is_gone();
        let epoch = if adopts { self.given_up.max(1) } else { epoch };
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
