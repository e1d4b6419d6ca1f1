//! The two clocks of a host, and what they have to do with true time.

use crate::core::Boot;
use std::time::Duration;

/// True time in nanoseconds: what no host can read.
pub type Ns = u64;

/// The most that a clock's rate is wrong, in parts per million: `clock_error`.
pub const RHO_PPM: i64 = 2000;
/// The most that BOOTTIME is slewed on top of that (chrony's `maxslewrate`): RAW is not.
pub const SLEW_PPM: i64 = 80_000;

/// BOOTTIME and RAW of one host: each with its own offset and its own wrong rate.
pub struct Clock {
    at: Ns,
    boot: u64,
    raw: u64,
    boot_ppm: i64,
    raw_ppm: i64,
    asleep: bool,
}

/// Whether a limit has passed by either clock; not the core's own answer, which is checked by it.
pub fn has_passed(now: Boot, limit: Boot) -> bool {
    now.boot >= limit.boot || now.raw >= limit.raw
}

fn ran(true_ns: u64, ppm: i64) -> u64 {
    let ns = i128::from(true_ns);
    (ns + ns * i128::from(ppm) / 1_000_000) as u64
}

impl Clock {
    pub fn new(at: Ns, boot: u64, raw: u64) -> Clock {
        Clock { at, boot, raw, boot_ppm: 0, raw_ppm: 0, asleep: false }
    }

    pub fn read(&self, t: Ns) -> Boot {
        let ns = t - self.at;
        let raw = if self.asleep { 0 } else { ran(ns, self.raw_ppm) };
        Boot { boot: self.boot + ran(ns, self.boot_ppm), raw: self.raw + raw }
    }

    fn rebase(&mut self, t: Ns) {
        let now = self.read(t);
        (self.at, self.boot, self.raw) = (t, now.boot, now.raw);
    }

    /// NTP or temperature: other rates from now on.
    pub fn drift(&mut self, t: Ns, boot_ppm: i64, raw_ppm: i64) {
        assert!(boot_ppm.abs() <= RHO_PPM + SLEW_PPM && raw_ppm.abs() <= RHO_PPM);
        self.rebase(t);
        (self.boot_ppm, self.raw_ppm) = (boot_ppm, raw_ppm);
    }

    /// In suspend BOOTTIME goes on and RAW stands still.
    pub fn sleep(&mut self, t: Ns, asleep: bool) {
        self.rebase(t);
        self.asleep = asleep;
        // Nobody slews the clock of a machine that sleeps.
        self.boot_ppm = self.boot_ppm.clamp(-RHO_PPM, RHO_PPM);
    }

    /// How much true time until either clock shows `limit`, if it goes on like this.
    pub fn until(&self, t: Ns, limit: Boot) -> u64 {
        let now = self.read(t);
        let wait = |limit: u64, now: u64, ppm: i64| {
            let left = u128::from(limit.saturating_sub(now)) * 1_000_000 / (1_000_000 + ppm) as u128;
            u64::try_from(left).unwrap_or(u64::MAX).saturating_add(u64::from(limit > now))
        };
        wait(limit.boot, now.boot, self.boot_ppm).min(wait(limit.raw, now.raw, self.raw_ppm))
    }

    /// A duration that a program on this host waits, in true time.
    pub fn waits(&self, d: Duration) -> u64 {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        (u128::from(ns) * 1_000_000 / (1_000_000 + self.boot_ppm) as u128) as u64
    }
}
