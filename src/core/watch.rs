//! The life of the command: waiting, starting, ready, failing, stopping.
//!
//! Pure: the node asks what is due, and tells what happened. The rules are those of
//! the IOM watchdog: a pause before a restart grows with the failed tries, and the
//! tries are forgotten when the command is healthy.

use super::orders::Exit;
use super::record::Health;
use super::timing::Boot;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// After which ends of the command it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// After every one.
    Always,
    /// After a signal or an exit code other than 0.
    OnFailure,
    /// After none: `locum run` ends with the command's code.
    Never,
}

/// How the command is supervised.
#[derive(Clone, Debug, PartialEq)]
pub struct Supervision {
    /// Between two health checks.
    pub cycle: Duration,
    /// Whether there is a health URL; without one, alive for a cycle means healthy.
    pub probed: bool,
    /// Never ready for this long after a start: kill and restart.
    pub start_timeout: Duration,
    /// Failing for this long: stop and restart.
    pub timeout: Duration,
    /// How long the command may take to stop.
    pub stop_timeout: Duration,
    /// After which ends it is started again.
    pub when: When,
    /// The unit of the pause before a start.
    pub delay: Duration,
    /// The pause is at most this many units.
    pub max_factor: u32,
}

/// What one health check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 2xx.
    Healthy(String),
    /// 503: before the command was ever ready this is no failure.
    NotReady(String),
    /// Anything else, no answer included.
    Failing(String),
}

/// Why the command was stopped, or why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    /// By itself.
    Own,
    /// It was not healthy for too long, or never became ready.
    Sick,
    /// The lease was lost or in doubt: no fault of the command.
    Lease,
    /// Somebody asked for it.
    Asked,
}

/// Where the command is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Nothing runs, and nothing keeps it from starting.
    Idle,
    /// Nothing runs; the next start is not before this.
    Waiting { until: Boot },
    /// The keeper was told to start it.
    Starting { since: Boot },
    /// It runs.
    Running { pid: i32, since: Boot, ready: bool, failing: Option<Boot> },
    /// Something of it may still live; what was the reason?
    Ending { why: Ending },
    /// It ended and is not to be started again.
    Over { code: u8 },
}

/// What the command's state asks for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// A health check.
    Probe,
    /// It is alive, and that is all that was asked: it is healthy.
    Alive,
    /// Stop it: never ready in time.
    TooSlow { after: Duration },
    /// Stop it: failing for too long.
    TooSick { after: Duration },
}

/// The command, as the agent knows it.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    rules: Supervision,
    pub(super) life: Life,
    /// Failed tries in a row.
    pub(super) tries: u32,
    /// Starts after the first.
    pub(super) restarts: u64,
    pub(super) started_once: bool,
    pub(super) last_exit: Option<Exit>,
    /// The last thing that a check said.
    pub(super) detail: String,
    /// When the next check is due; none while one is under way.
    probe_at: Option<Boot>,
    /// The pause before the check after next, while not ready.
    pace: Duration,
}

/// The first check comes this long after a start; until ready, the pauses double.
const FIRST_PROBE: Duration = Duration::from_millis(100);

impl Watch {
    pub(super) fn new(rules: Supervision) -> Watch {
        Watch {
            rules,
            life: Life::Idle,
            tries: 0,
            restarts: 0,
            started_once: false,
            last_exit: None,
            detail: String::new(),
            probe_at: None,
            pace: FIRST_PROBE,
        }
    }

    /// Whether the tree is gone for certain.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.life, Life::Idle | Life::Waiting { .. } | Life::Over { .. })
    }

    /// Whether a start is due.
    pub(super) fn wants_start(&self, now: Boot) -> bool {
        match self.life {
            Life::Idle => true,
            Life::Waiting { until } => now.has_reached(until),
            _ => false,
        }
    }

    /// The start was ordered.
    pub(super) fn starting(&mut self, now: Boot) {
        if self.started_once {
            self.restarts += 1;
        }
        self.started_once = true;
        self.life = Life::Starting { since: now };
        self.detail.clear();
    }

    /// The leader runs.
    pub(super) fn started(&mut self, now: Boot, pid: i32) {
        self.life = Life::Running { pid, since: now, ready: false, failing: None };
        self.pace = FIRST_PROBE.min(self.rules.cycle);
        let first = if self.rules.probed { self.pace } else { self.rules.cycle };
        self.probe_at = Some(now.plus(first));
    }

    /// A fresh agent found it running.
    pub(super) fn found(&mut self, now: Boot, pid: i32, since: Boot, ready: bool, failing: Option<Boot>) {
        self.life = Life::Running { pid, since, ready, failing };
        self.pace = FIRST_PROBE.min(self.rules.cycle);
        self.probe_at = Some(now.plus(self.pace));
    }

    /// The start failed: nothing runs. Returns the pause before the next try, if there is one.
    pub(super) fn start_failed(&mut self, now: Boot, code: u8) -> Option<Duration> {
        if self.rules.when == When::Never {
            self.life = Life::Over { code };
            return None;
        }
        Some(self.back_off(now))
    }

    /// The leader ended; the rest of the tree is being cleared away.
    pub(super) fn exited(&mut self, exit: Exit) {
        self.last_exit = Some(exit);
        if !matches!(self.life, Life::Ending { .. }) {
            self.ending(Ending::Own);
        }
    }

    /// It is to end, for this reason.
    pub(super) fn ending(&mut self, why: Ending) {
        self.life = Life::Ending { why };
        self.probe_at = None;
    }

    /// The whole tree is gone. Returns the pause before the next start; none if it is
    /// not to be started again, or may be started at once.
    pub(super) fn gone(&mut self, now: Boot) -> Option<Duration> {
        let why = match self.life {
            Life::Ending { why } => why,
            _ => Ending::Own,
        };
        let again = match (why, self.rules.when, self.last_exit) {
            (Ending::Lease, ..) => {
                self.life = Life::Idle;
                return None;
            }
            (Ending::Asked, ..) => false,
            (Ending::Own | Ending::Sick, When::Never, _) => false,
            (Ending::Own, When::OnFailure, Some(Exit::Code(0))) => false,
            (Ending::Own | Ending::Sick, ..) => true,
        };
        if again {
            return Some(self.back_off(now));
        }
        // Only a command that is never restarted lends its exit code to `locum run`.
        let code = match (self.rules.when, self.last_exit) {
            (When::Never, Some(exit)) => exit.code(),
            _ => 0,
        };
        self.life = Life::Over { code };
        None
    }

    fn back_off(&mut self, now: Boot) -> Duration {
        self.tries = self.tries.saturating_add(1);
        let pause = self.rules.delay.saturating_mul(self.tries.min(self.rules.max_factor));
        self.life = Life::Waiting { until: now.plus(pause) };
        self.probe_at = None;
        pause
    }

    /// What is due now. A probe that is handed out is under way until [`Watch::judged`].
    pub(super) fn due(&mut self, now: Boot) -> Due {
        let Life::Running { since, ready, failing, .. } = self.life else {
            return Due::Nothing;
        };
        let alive = now.fast_since(since);
        if !ready && self.rules.probed && alive >= self.rules.start_timeout {
            return Due::TooSlow { after: alive };
        }
        if let Some(first) = failing {
            let after = now.fast_since(first);
            if after >= self.rules.timeout {
                return Due::TooSick { after };
            }
        }
        match self.probe_at {
            Some(at) if now.has_reached(at) => {
                if self.rules.probed {
                    self.probe_at = None;
                    Due::Probe
                } else if ready {
                    self.probe_at = Some(now.plus(Duration::from_secs(86_400)));
                    Due::Nothing
                } else {
                    Due::Alive
                }
            }
            _ => Due::Nothing,
        }
    }

    /// The node is awake anyway: a check that is due within an eighth of the cycle is
    /// due now, so that it and the renewal wake the processor once and not twice.
    pub(super) fn hurry(&mut self, now: Boot) {
        let soon = now.plus(self.rules.cycle / 8);
        if let (Life::Running { ready: true, .. }, Some(at)) = (&self.life, self.probe_at)
            && soon.has_reached(at)
            && self.rules.probed
        {
            self.probe_at = Some(now);
        }
    }

    /// How long until something is due.
    pub(super) fn due_in(&self, now: Boot) -> Option<Duration> {
        let Life::Running { since, ready, failing, .. } = self.life else {
            return match self.life {
                // A pause that is over waits for a lease, which comes as an event.
                Life::Waiting { until } if !now.has_reached(until) => Some(now.until(until)),
                _ => None,
            };
        };
        let probe = if ready && !self.rules.probed { None } else { self.probe_at.map(|at| now.until(at)) };
        let slow = (!ready && self.rules.probed).then(|| now.until(since.plus(self.rules.start_timeout)));
        let sick = failing.map(|first| now.until(first.plus(self.rules.timeout)));
        [probe, slow, sick].into_iter().flatten().min()
    }

    /// A check's verdict. Returns what changed, for the log.
    pub(super) fn judged(&mut self, now: Boot, verdict: Verdict) -> Change {
        let Life::Running { since, ready, failing, .. } = &mut self.life else {
            return Change::None;
        };
        // A check that was made of the command before this one says nothing of it.
        if self.rules.probed && self.probe_at.is_some() {
            return Change::None;
        }
        let change = match verdict {
            Verdict::Healthy(detail) => {
                self.detail = detail;
                self.tries = 0;
                let was_failing = failing.take();
                if !*ready {
                    *ready = true;
                    Change::Ready { after: now.fast_since(*since) }
                } else if let Some(first) = was_failing {
                    Change::Recovered { after: now.fast_since(first) }
                } else {
                    Change::None
                }
            }
            Verdict::NotReady(detail) | Verdict::Failing(detail) => {
                self.detail = detail;
                // Failures before the first success count against start_timeout only.
                if *ready && failing.is_none() {
                    *failing = Some(now);
                    Change::Failing
                } else {
                    Change::None
                }
            }
        };
        let next = if *ready {
            self.rules.cycle
        } else {
            self.pace = (self.pace * 2).min(self.rules.cycle);
            self.pace
        };
        self.probe_at = Some(now.plus(next));
        change
    }

    /// The health as the other nodes are told.
    pub(super) fn health(&self) -> Health {
        match self.life {
            Life::Idle | Life::Over { .. } => Health::Idle,
            Life::Waiting { .. } => Health::Waiting,
            Life::Starting { .. } => Health::Starting,
            Life::Running { failing: Some(_), .. } => Health::Failing,
            Life::Running { ready: true, .. } => Health::Healthy,
            Life::Running { .. } => Health::Starting,
            Life::Ending { .. } => Health::Stopping,
        }
    }
}

/// What a verdict changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Ready { after: Duration },
    Failing,
    Recovered { after: Duration },
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn rules(when: When) -> Supervision {
        Supervision {
            cycle: S(5),
            probed: true,
            start_timeout: S(60),
            timeout: S(30),
            stop_timeout: S(20),
            when,
            delay: S(3),
            max_factor: 4,
        }
    }

    fn at(s: u64) -> Boot {
        Boot::ZERO.plus(S(s))
    }

    /// The verdict of a check that was asked for.
    fn judge(watch: &mut Watch, now: Boot, verdict: Verdict) -> Change {
        watch.probe_at = None;
        watch.judged(now, verdict)
    }

    fn run_and_die(watch: &mut Watch, now: Boot) -> Option<Duration> {
        watch.starting(now);
        watch.started(now, 7);
        watch.exited(Exit::Code(1));
        watch.gone(now)
    }

    #[test]
    fn the_pause_grows_with_each_failed_try_up_to_the_factor_and_health_forgets_them() {
        let mut watch = Watch::new(rules(When::Always));
        let pauses: Vec<_> = (0..6).filter_map(|_| run_and_die(&mut watch, at(10))).collect();
        assert_eq!(pauses, [S(3), S(6), S(9), S(12), S(12), S(12)]);
        watch.starting(at(20));
        watch.started(at(20), 7);
        assert_eq!(judge(&mut watch, at(21), Verdict::Healthy("200".into())), Change::Ready { after: S(1) });
        watch.exited(Exit::Code(1));
        assert_eq!(watch.gone(at(22)), Some(S(3)));
    }

    #[test]
    fn which_ends_are_final() {
        for (when, exit, over) in [
            (When::Always, Exit::Code(0), None),
            (When::Always, Exit::Signal(9), None),
            (When::OnFailure, Exit::Code(0), Some(0)),
            (When::OnFailure, Exit::Code(3), None),
            (When::Never, Exit::Code(3), Some(3)),
            (When::Never, Exit::Signal(9), Some(137)),
        ] {
            let mut watch = Watch::new(rules(when));
            watch.starting(at(1));
            watch.started(at(1), 7);
            watch.exited(exit);
            watch.gone(at(2));
            let code = if let Life::Over { code } = watch.life { Some(code) } else { None };
            assert_eq!(code, over, "{when:?} {exit:?}");
        }
    }

    #[test]
    fn a_verdict_on_the_command_before_this_one_says_nothing() {
        let mut watch = Watch::new(rules(When::Always));
        watch.starting(at(0));
        watch.started(at(0), 7);
        assert_eq!(watch.judged(at(0), Verdict::Healthy("200".into())), Change::None);
        assert_eq!(watch.due(at(1)), Due::Probe);
        assert_eq!(watch.judged(at(1), Verdict::Healthy("200".into())), Change::Ready { after: S(1) });
    }

    #[test]
    fn failures_before_the_first_success_count_against_start_timeout_only() {
        let mut watch = Watch::new(rules(When::Always));
        watch.starting(at(0));
        watch.started(at(0), 7);
        for s in 1..60 {
            judge(&mut watch, at(s), Verdict::Failing("refused".into()));
            assert!(!matches!(watch.due(at(s)), Due::TooSick { .. } | Due::TooSlow { .. }));
        }
        assert_eq!(watch.due(at(60)), Due::TooSlow { after: S(60) });
    }

    #[test]
    fn failing_for_the_time_out_is_counted_from_the_first_failed_check() {
        let mut watch = Watch::new(rules(When::Always));
        watch.starting(at(0));
        watch.started(at(0), 7);
        judge(&mut watch, at(1), Verdict::Healthy("200".into()));
        assert_eq!(judge(&mut watch, at(10), Verdict::NotReady("503".into())), Change::Failing);
        judge(&mut watch, at(30), Verdict::Failing("500".into()));
        assert_ne!(watch.due(at(39)), Due::TooSick { after: S(29) });
        assert_eq!(watch.due(at(40)), Due::TooSick { after: S(30) });
        assert_eq!(judge(&mut watch, at(40), Verdict::Healthy("200".into())), Change::Recovered { after: S(30) });
    }

    #[test]
    fn a_lease_in_doubt_is_no_failed_try() {
        let mut watch = Watch::new(rules(When::Never));
        watch.starting(at(0));
        watch.started(at(0), 7);
        watch.ending(Ending::Lease);
        watch.exited(Exit::Signal(15));
        assert_eq!(watch.gone(at(1)), None);
        assert_eq!((watch.life.clone(), watch.tries), (Life::Idle, 0));
    }
}
