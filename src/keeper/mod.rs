//! The process that holds the command: one thread, one poll loop, no network, no store.
//!
//! It starts the command when the agent says so and the lease allows it, forwards
//! signals, reaps, and kills the whole tree when a limit passes, whatever has become
//! of the agent. What it must never do: wait for anybody, allocate on the way to a
//! kill (a memo or a start order may), write to a log that can block, or say "gone"
//! while something is left.

mod agents;
mod life;
mod say;

use crate::config::{Config, When};
use crate::core::{Boot, Exit, Level, Limits, Order, Report, Snapshot, Stage, Start, Tree};
use crate::sys::{self, Outcome, Timer};
use crate::tree::{self, Cgroup, CommandTree, Left, Reaped};
use agents::Agents;
use life::{Deed, Event, Phase};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use say::{Line, Notify};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// What [`run`] is given besides the configuration.
#[derive(Default)]
pub struct Prepared {
    /// The agent's program and its first arguments; empty is this very program with
    /// the argument `agent`.
    pub agent: Vec<OsString>,
}

/// Exit code when something in the system is missing (EX_OSERR).
const OS_ERROR: u8 = 71;
/// Exit code when a process of the command survives SIGKILL (EX_SOFTWARE).
const SURVIVED: u8 = 70;
/// How long the agent may be silent after it was asked for an orderly stop.
const ANSWER: Duration = Duration::from_secs(2);
/// How much longer than the command's stop an orderly stop may take.
const ORDERLY: Duration = Duration::from_secs(30);
/// How long a sweep goes on at full pace.
const SWEEP: Duration = Duration::from_secs(10);
/// How long the agent may take to end after the keeper has closed the wire.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the left-overs of another keeper may take to die.
const LEFT_OVERS: Duration = Duration::from_secs(2);
/// Messages of the agent that are heard in one turn: a flood must not delay a limit.
const MESSAGES: usize = 64;

/// Holds the command until the end; returns the exit code of `locum run`.
pub fn run(config: &Config, prepared: Prepared) -> u8 {
    let mut keeper = match Keeper::prepare(config, prepared) {
        Ok(keeper) => keeper,
        Err((what, error)) => {
            say::to_stderr(format_args!("cannot {what}: {error}"));
            return OS_ERROR;
        }
    };
    loop {
        if let Some(code) = keeper.turn() {
            return keeper.finish(code);
        }
    }
}

/// On which way out the keeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Stay,
    /// The agent was asked for an orderly stop.
    Asked {
        since: Boot,
        answered: bool,
        /// How many agents there had been by then.
        agents: u32,
    },
    /// The keeper does it by itself.
    Alone,
    /// The agent said so.
    Told(u8),
}

struct Keeper {
    stop_signal: i32,
    stop_timeout: Duration,
    when: When,
    with_store: bool,
    timer: Timer,
    signals: SignalFd,
    notify: Notify,
    agents: Agents,
    tree: CommandTree,
    phase: Phase,
    state: Snapshot,
    /// Why the last start failed; told when its process is gone.
    failed: Option<(Stage, i32)>,
    killing_since: Boot,
    sweep_at: Boot,
    pace: Duration,
    told_stuck: bool,
    told_status: Option<(Phase, bool)>,
    ready: bool,
    leave: Leave,
}

type Failure = (&'static str, io::Error);

impl Keeper {
    fn prepare(config: &Config, prepared: Prepared) -> Result<Keeper, Failure> {
        let step = |what: &'static str| move |error| (what, error);
        // Before anything else is started: what our parent left to us stays ours.
        sys::close_on_exec();
        sys::expect_children();
        let mut blocked = SigSet::all();
        // Ctrl-Z keeps its meaning in a terminal.
        blocked.remove(Signal::SIGTSTP);
        blocked.thread_block().map_err(|e| ("block signals", e.into()))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&blocked, flags).map_err(|e| ("receive signals", e.into()))?;
        sys::become_subreaper().map_err(step("adopt orphans"))?;
        let notify = Notify::from_environment();
        let instance = sys::random_name().map_err(step("draw an instance"))?;

        for (path, outcome) in tree::sweep_left_overs(LEFT_OVERS) {
            let path = path.display();
            match outcome {
                Ok(()) => say::to_stderr(format_args!("killed what a dead keeper left, and removed {path}")),
                Err(e) => say::to_stderr(format_args!("cannot remove {path}, which a dead keeper left: {e}")),
            }
        }
        let nice = sys::take_precedence();
        let cgroup = Cgroup::make();
        let mut cause = cgroup.as_ref().err().map(|e| e.to_string());
        let original_oom_score = lower_oom_score();
        let tree = CommandTree::prepare(config, &instance, original_oom_score, nice, cgroup.ok());
        let tree = tree.map_err(step("prepare the command"))?;
        let silence = config.lease.as_ref().map_or(Duration::from_secs(45), |l| l.timing.silence());
        let agents = Agents::prepare(config, prepared.agent.clone(), tree.cgroup(), silence, nice);
        let agents = agents.map_err(step("prepare the agent"))?;

        let mut memo = Vec::new();
        memo.reserve_exact(crate::core::MEMO_MAX);
        let limits = Limits::PAST;
        let state = Snapshot {
            instance,
            agents: 0,
            epoch: 0,
            limits,
            tree: Tree::Gone,
            exit: None,
            token: 0,
            stopping: false,
            memo,
        };
        let mut keeper = Keeper {
            stop_signal: config.process.stop_signal,
            stop_timeout: config.process.stop_timeout,
            when: config.restart.when,
            with_store: config.lease.is_some(),
            timer: Timer::new().map_err(step("make a timer"))?,
            signals,
            notify,
            agents,
            tree,
            phase: Phase::Gone,
            state,
            failed: None,
            killing_since: Boot::ZERO,
            sweep_at: Boot::ZERO,
            pace: Duration::ZERO,
            told_stuck: false,
            told_status: None,
            ready: false,
            leave: Leave::Stay,
        };
        // The agent's own start takes the longest: what can be done meanwhile is done meanwhile.
        // It waits for our first word.
        let _ = keeper.agents.spawn(sys::now());
        if let Err(error) = keeper.tree.try_cgroup() {
            // It holds a cgroup that would stay empty: that must never be taken for a proof.
            keeper.agents.dismiss();
            let agents = Agents::prepare(config, prepared.agent, None, silence, nice);
            keeper.agents = agents.map_err(step("prepare the agent"))?;
            cause = Some(error.to_string());
        }
        sys::trim_heap();
        sys::lock_memory();
        keeper.start_agent(sys::now());
        match (keeper.tree.cgroup(), cause) {
            (Some(cgroup), _) => {
                keeper.tell(Level::Debug, format_args!("the command's cgroup is {}", cgroup.path().display()));
            }
            (None, cause) => {
                let cause = cause.unwrap_or_default();
                keeper.tell(
                    Level::Info,
                    format_args!(
                        "cannot make a cgroup for the command: {cause}; its tree is killed by group and sweep"
                    ),
                );
            }
        }
        Ok(keeper)
    }

    /// One turn of the loop; the exit code when it was the last.
    fn turn(&mut self) -> Option<u8> {
        self.wait();
        // Limits come before any message: nothing that is said now can move one that has passed.
        self.enforce(sys::now());
        self.settle_start();
        self.hear_signals();
        self.hear_agent();
        let now = sys::now();
        self.enforce(now);
        self.tend_tree(now);
        self.tend_agents(now);
        self.show(now);
        self.leaving(now)
    }

    fn wait(&mut self) {
        let now = sys::now();
        let due = self.due(now);
        self.timer.arm(due);
        let nothing = || PollFd::new(self.timer.as_fd(), PollFlags::empty());
        let ending = matches!(self.phase, Phase::Stopping { .. } | Phase::Killing);
        let mut ready = [
            PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            self.agents.end().map_or_else(nothing, |end| PollFd::new(end.as_fd(), PollFlags::POLLIN)),
            self.tree.pending().map_or_else(nothing, |pipe| PollFd::new(pipe, PollFlags::POLLIN)),
            match self.tree.cgroup() {
                Some(cgroup) if ending => PollFd::new(cgroup.events(), PollFlags::POLLPRI),
                _ => nothing(),
            },
        ];
        // The timer ends this; an error is looked at as a wake-up.
        let _ = poll(&mut ready, PollTimeout::NONE);
    }

    /// How long until something is due that no descriptor tells of.
    fn due(&self, now: Boot) -> Option<Duration> {
        let limit = match self.phase {
            Phase::Running => self.state.limits.term_at.earliest(self.state.limits.kill_at),
            Phase::Stopping { .. } => self.state.limits.kill_at,
            Phase::Gone | Phase::Killing => Boot::NEVER,
        };
        // The timer runs on one clock, the limit counts on two: look again before it.
        let left = now.until(limit);
        let left = if left > Duration::from_millis(8) { left / 8 * 7 } else { left };
        let phase = match self.phase {
            Phase::Stopping { until } => until,
            Phase::Killing => self.sweep_at,
            Phase::Gone | Phase::Running => Boot::NEVER,
        };
        let leave = match self.leave {
            Leave::Asked { since, answered: false, .. } => since.plus(ANSWER),
            Leave::Asked { since, .. } => since.plus(self.stop_timeout + ORDERLY),
            _ => Boot::NEVER,
        };
        let others = [phase, leave, self.agents.due(), self.notify.due()];
        let soonest = others.into_iter().map(|at| now.until(at)).fold(left, Duration::min);
        // Half of for ever and more is for ever.
        (soonest < Duration::from_nanos(u64::MAX / 2)).then_some(soonest)
    }

    /// Carries out what the limits and the grace demand.
    fn enforce(&mut self, now: Boot) {
        let limits = self.state.limits;
        match self.phase {
            Phase::Running | Phase::Stopping { .. } if now.has_reached(limits.kill_at) => {
                self.apply(Event::Kill, now);
                self.tell(Level::Error, format_args!("the lease has reached its limit: the command is killed"));
            }
            Phase::Running if now.has_reached(limits.term_at) => {
                // The moment of the kill is fixed with the stop: no later renewal moves it.
                self.apply(Event::Stop { until: limits.kill_at }, now);
                self.tell(Level::Info, format_args!("the stop signal was sent: the lease was not renewed in time"));
            }
            Phase::Stopping { until } if now.has_reached(until) => {
                self.apply(Event::Kill, now);
                self.tell(Level::Warn, format_args!("the command did not stop in time: it is killed"));
            }
            _ => {}
        }
    }

    fn apply(&mut self, event: Event, now: Boot) {
        let (next, deed) = self.phase.step(event);
        self.phase = next;
        if let (Phase::Stopping { .. } | Phase::Killing, Tree::Running { pid, .. }) = (next, self.state.tree) {
            self.state.tree = Tree::Ending { pid };
        }
        match deed {
            Deed::Ask => self.tree.ask_to_stop(self.stop_signal),
            Deed::Kill => {
                self.tree.kill();
                self.killing_since = now;
                self.sweep_at = now;
                self.pace = Duration::from_millis(1);
                self.told_stuck = false;
            }
            Deed::Conclude => self.conclude(),
            // A start is the order's business: see `start`.
            Deed::Nothing | Deed::Launch | Deed::Refuse => {}
        }
    }

    fn conclude(&mut self) {
        self.state.tree = Tree::Gone;
        match self.failed.take() {
            Some((stage, errno)) => {
                // Says enough: a "gone" behind it could be taken for the end of the next start.
                self.report(&Report::StartFailed { stage, errno });
            }
            None => self.report(&Report::Gone),
        }
    }

    fn settle_start(&mut self) {
        let (Tree::Running { pid, .. } | Tree::Ending { pid }) = self.state.tree else { return };
        match self.tree.outcome() {
            Some(Outcome::Running) => self.report(&Report::Started { pid }),
            Some(Outcome::Failed(stage, errno)) => {
                self.failed = Some((stage, errno));
                if let (Stage::Exec, Errno::ENOENT, Some(path)) =
                    (stage, Errno::from_raw(errno), self.tree.without_interpreter())
                {
                    let line = Line::of(format_args!("cannot run {path:?}: the interpreter it names is not there"));
                    self.tell(Level::Error, format_args!("{}", line.text()));
                }
            }
            Some(Outcome::Pending) | None => {}
        }
    }

    fn hear_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let Ok(number) = i32::try_from(info.ssi_signo) else { continue };
            match Signal::try_from(number) {
                Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) => self.asked_to_leave(number),
                Ok(Signal::SIGHUP) => self.report(&Report::Asked { signal: number }),
                Ok(Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGWINCH | Signal::SIGCONT) => self.tree.signal(number),
                // SIGCHLD: the tree is looked at in each turn.
                _ => {}
            }
        }
    }

    fn asked_to_leave(&mut self, signal: i32) {
        let now = sys::now();
        match self.leave {
            Leave::Stay => {
                self.leave = Leave::Asked { since: now, answered: false, agents: self.state.agents };
                self.state.stopping = true;
                self.notify.say(format_args!("STOPPING=1"));
                self.report(&Report::Asked { signal });
            }
            Leave::Asked { .. } | Leave::Alone => {
                self.leave = Leave::Alone;
                self.apply(Event::Kill, now);
                self.tell(Level::Warn, format_args!("asked to end a second time: the command is killed"));
            }
            Leave::Told(_) => {}
        }
    }

    fn hear_agent(&mut self) {
        for _ in 0..MESSAGES {
            let Some(end) = self.agents.end() else { return };
            match end.next_order() {
                Ok(None) => return,
                Ok(Some(order)) => {
                    self.agents.heard(sys::now());
                    if let Leave::Asked { answered, .. } = &mut self.leave {
                        *answered = true;
                    }
                    if !self.ready {
                        self.ready = true;
                        self.notify.say(format_args!("READY=1"));
                    }
                    self.obey(order);
                }
                Err(error) => return self.lose_agent(format_args!("{error}")),
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let now = sys::now();
        match order {
            Order::Lease { epoch, limits } => self.take_lease(epoch, limits),
            Order::Start(start) => self.start(&start, now),
            Order::Stop { grace } => {
                self.apply(Event::Stop { until: now.plus(grace) }, now);
            }
            Order::Kill => {
                self.apply(Event::Kill, now);
            }
            Order::Signal(number) => self.tree.signal(number),
            Order::Memo(memo) => {
                self.state.memo.clear();
                self.state.memo.extend_from_slice(&memo);
            }
            Order::Shutdown { code } if self.phase == Phase::Gone => self.leave = Leave::Told(code),
            Order::Shutdown { .. } => {
                self.tell(Level::Error, format_args!("the keeper does not end before the command is gone"));
            }
            Order::Alive => {}
        }
    }

    fn take_lease(&mut self, epoch: u64, limits: Limits) {
        if self.with_store && limits.kill_at == Boot::NEVER {
            return self.tell(Level::Error, format_args!("refused a lease for ever where a store is used"));
        }
        // What runs under one lease is never kept alive by another.
        if self.phase != Phase::Gone && epoch != self.state.epoch {
            let kept = self.state.epoch;
            self.state.limits = self.state.limits.tightest(limits);
            self.enforce(sys::now());
            return self.tell(
                Level::Error,
                format_args!("refused the lease of epoch {epoch} for the command of epoch {kept}"),
            );
        }
        self.state.epoch = epoch;
        self.state.limits = limits;
        self.enforce(sys::now());
        self.report(&Report::LeaseAck { epoch, kill_at: limits.kill_at });
    }

    fn start(&mut self, start: &Start, now: Boot) {
        let limits = self.state.limits;
        let refusal = if now.has_reached(limits.term_at) || now.has_reached(limits.kill_at) {
            Some((Errno::EPERM, "no lease runs"))
        } else if start.epoch != self.state.epoch {
            Some((Errno::ESTALE, "the lease has another epoch"))
        } else if matches!(self.leave, Leave::Alone | Leave::Told(_)) {
            Some((Errno::ESHUTDOWN, "the keeper is ending"))
        } else {
            None
        };
        let (next, deed) = self.phase.step(Event::Start);
        if deed != Deed::Launch {
            // No report: "failed" would say that nothing runs. The agent hears "gone" when that is true.
            return self.tell(Level::Error, format_args!("refused to start the command: it is not gone"));
        }
        if let Some((errno, why)) = refusal {
            self.report(&Report::StartFailed { stage: Stage::Fork, errno: errno as i32 });
            return self.tell(Level::Error, format_args!("refused to start the command: {why}"));
        }
        self.state.exit = None;
        self.failed = None;
        self.state.token = start.token;
        match self.tree.start(start) {
            Ok(pid) => {
                self.phase = next;
                self.state.tree = Tree::Running { pid, since: now };
            }
            Err((stage, errno)) => self.report(&Report::StartFailed { stage, errno }),
        }
    }

    fn tend_tree(&mut self, now: Boot) {
        while let Some(reaped) = self.tree.reap(&self.agents.pids()) {
            match reaped {
                Reaped::Leader(exit) => {
                    // The cause was written before it ended.
                    self.settle_start();
                    self.state.exit = Some(exit);
                    self.apply(Event::Ended, now);
                    if self.failed.is_none() {
                        self.report(&Report::Exited(exit));
                    }
                }
                Reaped::Other(pid, exit) => self.agent_ended(pid, exit),
            }
        }
        if let Phase::Stopping { .. } = self.phase
            && self.state.exit.is_some()
        {
            match self.tree.look(&self.agents.pids()) {
                Left::Nothing => self.apply(Event::Empty, now),
                Left::Strays => self.apply(Event::Strayed, now),
                Left::Group => {}
            }
        }
        if self.phase == Phase::Killing {
            self.sweep(now);
        }
    }

    fn sweep(&mut self, now: Boot) {
        // Each pass reads /proc: a tree that dies noisily must not make us do only that.
        if self.told_stuck && !now.has_reached(self.sweep_at) {
            return;
        }
        if self.tree.sweep(&self.agents.pids()) == Left::Nothing {
            return self.apply(Event::Empty, now);
        }
        self.sweep_at = now.plus(self.pace);
        self.pace = (self.pace * 2).min(Duration::from_millis(50));
        if now.has_reached(self.killing_since.plus(SWEEP)) {
            self.pace = Duration::from_secs(1);
            if !self.told_stuck {
                self.told_stuck = true;
                let seconds = SWEEP.as_secs();
                self.tell(
                    Level::Error,
                    format_args!("a process of the command has survived SIGKILL for {seconds} s: the lease is kept"),
                );
            }
        }
    }

    fn tend_agents(&mut self, now: Boot) {
        if self.agents.is_silent(now) {
            self.lose_agent(format_args!("it was silent for {:.1?}", self.agents.silence()));
        }
        if self.agents.wants_start(now) && !matches!(self.leave, Leave::Told(_)) {
            self.start_agent(now);
        }
    }

    fn start_agent(&mut self, now: Boot) {
        let state = &self.state;
        if let Err(error) = self.agents.start(state, now) {
            self.agents.lost(now, self.state.limits.term_at);
            return self.tell(Level::Error, format_args!("cannot start an agent: {error}"));
        }
        self.state.agents = self.state.agents.saturating_add(1);
    }

    fn agent_ended(&mut self, pid: i32, exit: Exit) {
        if self.agents.was_reaped(pid) {
            let outcome = self.agents.outcome();
            self.agents.lost(sys::now(), self.state.limits.term_at);
            if matches!(self.leave, Leave::Told(_)) {
                return;
            }
            match outcome {
                Outcome::Failed(stage, errno) => self.tell(
                    Level::Error,
                    format_args!("cannot start an agent: {stage}: {}", Errno::from_raw(errno).desc()),
                ),
                _ => self.tell(Level::Error, format_args!("the agent {exit}; a fresh one is started")),
            }
        }
    }

    fn lose_agent(&mut self, why: fmt::Arguments<'_>) {
        let now = sys::now();
        // An agent that has ended says more by its exit than by its silence.
        let ended = self.agents.pids().into_iter().filter(|pid| *pid > 0).find_map(sys::reap);
        if let Some(ended) = ended {
            return self.agent_ended(ended.pid, ended.exit);
        }
        let line = Line::of(format_args!("the agent is replaced: {why}"));
        self.agents.kill();
        self.agents.lost(now, self.state.limits.term_at);
        self.tell(Level::Error, format_args!("{}", line.text()));
    }

    /// Sends what must not be lost: an agent that does not take it is replaced, and the
    /// next one's Hello says it.
    fn report(&mut self, report: &Report) {
        if let Some(end) = self.agents.end()
            && let Err(error) = end.send_report(report)
        {
            self.lose_agent(format_args!("{error}"));
        }
    }

    /// A line for the log: by the agent if there is one, else to stderr.
    fn tell(&self, level: Level, text: fmt::Arguments<'_>) {
        match self.agents.end() {
            Some(end) => drop(end.tell(level, Line::of(text).text())),
            None if level <= Level::Warn => say::to_stderr(text),
            None => {}
        }
    }

    /// Shows the service manager how things stand.
    fn show(&mut self, now: Boot) {
        // What survives SIGKILL is for the watchdog to end.
        if !(self.told_stuck && self.phase == Phase::Killing) {
            self.notify.feed(now);
        }
        let phase = match self.phase {
            Phase::Stopping { .. } => Phase::Killing,
            phase => phase,
        };
        let status = Some((phase, self.ready));
        if self.told_status == status {
            return;
        }
        self.told_status = status;
        match self.state.tree {
            Tree::Gone => self.notify.say(format_args!("STATUS=standby: the command does not run")),
            Tree::Running { pid, .. } => {
                self.notify.say(format_args!("STATUS=running: pid {pid} under epoch {}", self.state.epoch));
            }
            Tree::Ending { pid } => self.notify.say(format_args!("STATUS=stopping: pid {pid}")),
        }
    }

    /// Sees to it that an asked-for end comes; the exit code when it has.
    fn leaving(&mut self, now: Boot) -> Option<u8> {
        match self.leave {
            Leave::Told(code) => return Some(code),
            Leave::Stay => {
                // Not one agent could say a word: there is nothing to hold on to.
                return (!self.ready && self.agents.deaths() >= 10 && self.phase == Phase::Gone).then_some(OS_ERROR);
            }
            Leave::Asked { since, answered, agents } => {
                let silent = !answered && now.has_reached(since.plus(ANSWER));
                let dying = self.state.agents.saturating_sub(agents) >= 3;
                if silent || dying || now.has_reached(since.plus(self.stop_timeout + ORDERLY)) {
                    self.leave = Leave::Alone;
                    let grace = self.stop_timeout.min(now.until(self.state.limits.term_at));
                    self.apply(Event::Stop { until: now.plus(grace) }, now);
                    self.tell(
                        Level::Warn,
                        format_args!("the agent does not answer: the keeper ends the command alone"),
                    );
                }
            }
            Leave::Alone => {}
        }
        match (self.leave, self.phase) {
            (Leave::Alone, Phase::Gone) => Some(match (self.when, self.state.exit) {
                (When::Never, Some(exit)) => exit.code(),
                _ => 0,
            }),
            (Leave::Alone | Leave::Asked { .. }, Phase::Killing) if self.told_stuck => Some(SURVIVED),
            _ => None,
        }
    }

    /// Lets the agent end, and removes the cgroup.
    fn finish(mut self, code: u8) -> u8 {
        // The agent sees the end of the wire, and that nothing is left of the tree: it can
        // release the lease.
        self.agents.close();
        let give_up = sys::now().plus(FAREWELL);
        for pid in self.agents.pids().into_iter().filter(|pid| *pid > 0) {
            while sys::reap(pid).is_none() {
                let left = sys::now().until(give_up);
                if left.is_zero() {
                    sys::kill(pid, nix::libc::SIGKILL);
                    break;
                }
                while let Ok(Some(_)) = self.signals.read_signal() {}
                if sys::reap(pid).is_some() {
                    break;
                }
                let mut ready = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
                let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
                let _ = poll(&mut ready, PollTimeout::from(millis));
            }
        }
        if code == SURVIVED {
            say::to_stderr(format_args!("a process of the command has survived SIGKILL"));
        }
        if code == OS_ERROR && !self.ready {
            say::to_stderr(format_args!("cannot start an agent: {} have ended without a word", self.agents.deaths()));
        }
        let _ = self.tree.dismantle();
        code
    }
}

/// Makes the keeper the last that the kernel kills for memory, where that is allowed.
/// Returns what it was before, which the command gets back.
fn lower_oom_score() -> Option<Vec<u8>> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let before = fs::read(PATH).ok()?;
    fs::write(PATH, "-900").ok()?;
    Some(before)
}
