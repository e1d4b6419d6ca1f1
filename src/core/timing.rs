//! Deadlines: readings of the clock, the budget of a lease, and its check.
//!
//! No clock is ever compared with another host's clock. A host measures only
//! durations, on its own; what the bound `clock_error` (ρ) on the *rate* of the
//! clocks has to cover is worked in here and nowhere else.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// One moment on this host: CLOCK_BOOTTIME and CLOCK_MONOTONIC_RAW, read together.
///
/// BOOTTIME goes on while the machine sleeps but is slewed by NTP; RAW is not
/// slewed but stands still in suspend. Whoever must not be late believes the one
/// that ran further ([`Boot::fast_since`]); whoever must not be early, the one
/// that ran less ([`Boot::slow_since`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Boot {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub boot: u64,
    /// CLOCK_MONOTONIC_RAW in nanoseconds.
    pub raw: u64,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Boot {
    /// The moment before every other: a limit at it has always passed.
    pub const ZERO: Boot = Boot { boot: 0, raw: 0 };
    /// The moment after every other: a limit at it never passes.
    pub const NEVER: Boot = Boot { boot: u64::MAX, raw: u64::MAX };

    /// `d` later, on both clocks.
    pub fn plus(self, d: Duration) -> Boot {
        let d = nanos(d);
        Boot { boot: self.boot.saturating_add(d), raw: self.raw.saturating_add(d) }
    }

    /// `d` earlier, on both clocks.
    pub fn minus(self, d: Duration) -> Boot {
        let d = nanos(d);
        Boot { boot: self.boot.saturating_sub(d), raw: self.raw.saturating_sub(d) }
    }

    /// Time since `earlier` by the clock that ran further: for a holder's limits.
    pub fn fast_since(self, earlier: Boot) -> Duration {
        Duration::from_nanos(self.boot.saturating_sub(earlier.boot).max(self.raw.saturating_sub(earlier.raw)))
    }

    /// Time since `earlier` by the clock that ran less: for a challenger's patience.
    pub fn slow_since(self, earlier: Boot) -> Duration {
        Duration::from_nanos(self.boot.saturating_sub(earlier.boot).min(self.raw.saturating_sub(earlier.raw)))
    }

    /// Whether either clock has reached `limit`.
    pub fn has_reached(self, limit: Boot) -> bool {
        self.boot >= limit.boot || self.raw >= limit.raw
    }

    /// How long until the first of the two clocks reaches `limit`; zero if it has.
    pub fn until(self, limit: Boot) -> Duration {
        Duration::from_nanos(limit.boot.saturating_sub(self.boot).min(limit.raw.saturating_sub(self.raw)))
    }

    /// The earlier of two limits, clock by clock.
    pub fn earliest(self, other: Boot) -> Boot {
        Boot { boot: self.boot.min(other.boot), raw: self.raw.min(other.raw) }
    }
}

/// When the command is told to stop, when it is killed, and when the lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The stop signal is sent at this moment, whatever happens after.
    pub term_at: Boot,
    /// The whole tree is killed at this moment.
    pub kill_at: Boot,
    /// Everything is confirmed gone by this moment: `s + D`.
    pub end: Boot,
}

impl Limits {
    /// The limits of a lease that has ended: everything is due at once.
    pub const PAST: Limits = Limits { term_at: Boot::ZERO, kill_at: Boot::ZERO, end: Boot::ZERO };
    /// The limits of a lease that nothing ends: no store is used.
    pub const FOREVER: Limits = Limits { term_at: Boot::NEVER, kill_at: Boot::NEVER, end: Boot::NEVER };

    /// The tighter of two sets of limits, one by one.
    pub fn tightest(self, other: Limits) -> Limits {
        Limits {
            term_at: self.term_at.earliest(other.term_at),
            kill_at: self.kill_at.earliest(other.kill_at),
            end: self.end.earliest(other.end),
        }
    }
}

/// The durations that a lease is made of. See `docs/safety.md` for the letters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// *P*: between two renewals.
    pub renew: Duration,
    /// *L*: how long the lease lasts without a renewal, as written in the record.
    pub ttl: Duration,
    /// *Q*: the longest that one call to the store may take; enforced by us.
    pub store_timeout: Duration,
    /// *σ*: stop time granted to the command when the lease is in doubt.
    pub stop_timeout: Duration,
    /// *κ*: time to kill the tree and confirm that it is gone.
    pub kill_margin: Duration,
    /// *T*: time for the steps that run after the last process is gone.
    pub post_stop: Duration,
    /// *ρ*: bound on the error of a clock's rate, as a fraction (0.002 = 0.2 %).
    pub clock_error: f64,
}

impl Timing {
    /// The defaults that go with a ttl and a cycle: they pass [`Timing::check`] for
    /// every ttl from 500 ms up.
    pub fn for_ttl(ttl: Duration, cycle: Duration) -> Timing {
        Timing {
            renew: cycle.min(ttl / 4),
            ttl,
            store_timeout: Duration::from_secs(2).min(ttl / 10),
            stop_timeout: Duration::from_secs(5).min(ttl / 4),
            kill_margin: Duration::from_millis(500).min(ttl / 20),
            post_stop: Duration::ZERO,
            clock_error: 0.002,
        }
    }

    /// *j*: slack for scheduling, a fortieth of the ttl and at most 250 ms.
    pub fn slack(&self) -> Duration {
        (self.ttl / 40).min(Duration::from_millis(250))
    }

    /// `D(L) = L(1−ρ)/(1+ρ)`: how long after *s* a holder may count on a ttl it wrote.
    pub fn lifetime(&self, ttl: Duration) -> Duration {
        ttl.mul_f64((1.0 - self.clock_error) / (1.0 + self.clock_error))
    }

    /// `L(1+ρ)/(1−ρ)`: how long a challenger must have seen one version unchanged.
    pub fn patience(&self, ttl: Duration) -> Duration {
        ttl.mul_f64((1.0 + self.clock_error) / (1.0 - self.clock_error))
    }

    /// The limits that a swap confirmed with `ttl` gives, its clock read at `s`,
    /// before the first byte.
    pub fn limits(&self, s: Boot, ttl: Duration) -> Limits {
        let end = s.plus(self.lifetime(ttl));
        let kill_at = end.minus(self.kill_margin + self.slack() + self.post_stop);
        Limits { term_at: kill_at.minus(self.stop_timeout), kill_at, end }
    }

    /// Whether the holder can renew in time with one call lost: `P + 2Q + σ + κ + j + T ≤ D`.
    ///
    /// # Errors
    /// The [`Shortfall`] says by how much the parts exceed the lifetime.
    pub fn check(&self) -> Result<(), Shortfall> {
        let need = self.need();
        let have = self.lifetime(self.ttl);
        if need <= have { Ok(()) } else { Err(Shortfall { need, have }) }
    }

    fn need(&self) -> Duration {
        self.renew + 2 * self.store_timeout + self.stop_timeout + self.kill_margin + self.slack() + self.post_stop
    }

    /// How long an agent may say nothing before it is replaced: one and a half renewal
    /// cycles. Where the budget has room (a short cycle under a long lease) it is more: an
    /// agent that only waits for a processor must not be killed over and over.
    pub fn silence(&self) -> Duration {
        let room = self.lifetime(self.ttl).saturating_sub(self.need() - self.renew);
        (self.renew * 3 / 2).max((room / 2).min(Duration::from_millis(250)))
    }

    /// The longest WATCHDOG interval of a service manager that leaves the budget
    /// whole: `D − P − 2Q − κ − j`.
    pub fn longest_watchdog(&self) -> Duration {
        self.lifetime(self.ttl).saturating_sub(self.renew + 2 * self.store_timeout + self.kill_margin + self.slack())
    }

    /// The whole budget as moments, counted in seconds from the last good renewal
    /// or, for a takeover, from the crash.
    pub fn budget(&self) -> Budget {
        let limits = self.limits(Boot::ZERO.plus(Duration::from_secs(86_400)), self.ttl);
        let since = |b: Boot| b.fast_since(Boot::ZERO.plus(Duration::from_secs(86_400)));
        let patience = self.patience(self.ttl);
        Budget {
            unnoticed: since(limits.term_at).saturating_sub(self.renew + 2 * self.store_timeout),
            stop: since(limits.term_at),
            kill: since(limits.kill_at),
            gone: since(limits.end),
            takeover_from: patience.saturating_sub(self.renew),
            takeover_to: patience + self.slack() + 2 * self.store_timeout,
        }
    }
}

/// What `locum check` prints as a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// An outage of the store shorter than this is noticed by nobody but the log.
    pub unnoticed: Duration,
    /// After the last good renewal: the command is told to stop.
    pub stop: Duration,
    /// After the last good renewal: what is left is killed.
    pub kill: Duration,
    /// After the last good renewal: nothing of the command is left.
    pub gone: Duration,
    /// After a crash: the earliest that another host starts the command.
    pub takeover_from: Duration,
    /// After a crash: the latest that a standby which can reach the store starts it.
    pub takeover_to: Duration,
}

/// A budget that does not fit: the parts need more than the lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// `P + 2Q + σ + κ + j + T`.
    pub need: Duration,
    /// `D`, the lifetime of the lease for its holder.
    pub have: Duration,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "renew + 2 × store_timeout + stop_timeout + kill_margin + slack is {:.3} s, but the lease lives {:.3} s",
            self.need.as_secs_f64(),
            self.have.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn default_budgets_pass_from_half_a_second_up() {
        for ms in [500, 501, 700, 999, 1000, 2000, 5000, 19_999, 20_000, 60_000, 3_600_000] {
            for cycle in [MS(10), S(1), S(5), S(600)] {
                let t = Timing::for_ttl(MS(ms), cycle);
                assert_eq!(t.check(), Ok(()), "ttl {ms} ms, cycle {cycle:?}");
                assert!(t.limits(Boot::ZERO.plus(S(100)), t.ttl).term_at.boot > 100_000_000_000);
            }
        }
    }

    #[test]
    fn a_budget_that_does_not_fit_is_refused() {
        let t = Timing { stop_timeout: S(15), ..Timing::for_ttl(S(20), S(5)) };
        let short = t.check().unwrap_err();
        assert!(short.need > short.have);
    }

    #[test]
    fn a_holder_is_gone_before_a_challenger_may_claim() {
        // Whatever the rates within ρ: the holder's clock slowest, the challenger's fastest.
        let t = Timing::for_ttl(S(20), S(5));
        let holder_true = t.lifetime(t.ttl).as_secs_f64() / (1.0 - t.clock_error);
        let challenger_true = t.patience(t.ttl).as_secs_f64() / (1.0 + t.clock_error);
        assert!(holder_true < challenger_true);
    }

    #[test]
    fn limits_follow_whichever_clock_ran_further_and_patience_the_other() {
        let start = Boot { boot: 1_000, raw: 5_000 };
        let slept = Boot { boot: 9_000, raw: 6_000 };
        assert_eq!(slept.fast_since(start), Duration::from_nanos(8_000));
        assert_eq!(slept.slow_since(start), Duration::from_nanos(1_000));
        assert!(slept.has_reached(start.plus(Duration::from_nanos(8_000))));
        assert!(!slept.has_reached(start.plus(Duration::from_nanos(8_001))));
        assert_eq!(start.until(start.plus(MS(3))), MS(3));
        assert_eq!(slept.until(start), Duration::ZERO);
    }
}
