//! The part of a configuration that makes a lease: store, node and times, and the check
//! that the times fit.

use super::duration::duration_text;
use super::keys::{self, LEAST};
use super::libpq::{self, Surroundings};
use super::mistake::{Mistake, Origin};
use super::read::{self, Environment};
use super::resolve::{Need, Shown, Table};
use super::url::{self, Address};
use super::value::Value;
use super::{Lease, Target};
use crate::core::Timing;
use std::path::PathBuf;
use std::time::Duration;

/// The keys that the budget of a lease is made of.
const TIMING: &[&str] = &[
    "cycle",
    "lease.ttl",
    "lease.renew",
    "lease.store_timeout",
    "lease.stop_timeout",
    "lease.kill_margin",
    "lease.clock_error",
];

impl Table<'_> {
    /// The lease; the outer option is none after a mistake.
    pub(super) fn lease(&mut self, cycle: Duration) -> Option<Option<Lease>> {
        if !self.is_given("lease.store") {
            if let Some((key, origin)) = self.lease_without_store() {
                let text = format!("{key} has no effect without lease.store: no lease, the command always runs here");
                self.warnings.push(Mistake::at(&origin, text));
            }
            self.shown.retain(|s| !s.key.starts_with("lease."));
            if self.sources.need == Need::Store {
                self.wrong(
                    "lease.store",
                    "missing; write lease.store = \"postgres://locum@db1,db2/ops\", or give --store",
                );
                return None;
            }
            if self.faulty.contains("lease.store") {
                return None;
            }
            let value = "none: no lease, the command always runs".into();
            self.shown.push(Shown { key: "lease.store".into(), value, origin: Origin::Default(String::new()) });
            return Some(None);
        }
        let node = self.node();
        let timing = self.timing(cycle);
        let store = self.store();
        Some(Some(Lease { store: store?, node: node?, timing, patience: self.sources.patience }))
    }

    fn lease_without_store(&self) -> Option<(&'static str, Origin)> {
        // SERVER_ID is other programs' as well.
        let ours = |o: &Origin| !matches!(o, Origin::Environment(name) if name == "SERVER_ID");
        let mut given = self.layers.iter().filter(|(k, g)| k.starts_with("lease.") && ours(&g.origin));
        given.next().map(|(k, g)| (*k, g.origin.clone()))
    }

    fn node(&mut self) -> Option<String> {
        if let Some(node) = self.text("lease.node") {
            return Some(node);
        }
        let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).filter(|h| !h.is_empty());
        match host {
            Some(host) => {
                self.derive("lease.node", Value::Text(host.clone()), "the host's name");
                Some(host)
            }
            None => {
                self.wrong("lease.node", "this host has no name; write lease.node = \"shop1\"");
                None
            }
        }
    }

    fn timing(&mut self, cycle: Duration) -> Timing {
        let base = Timing::for_ttl(self.duration("lease.ttl"), cycle);
        for (key, value) in [
            ("lease.renew", base.renew),
            ("lease.store_timeout", base.store_timeout),
            ("lease.stop_timeout", base.stop_timeout),
            ("lease.kill_margin", base.kill_margin),
        ] {
            let how = keys::find(key).map_or("", |k| k.default_text());
            self.derive(key, Value::Duration(value), how);
        }
        let timing = self.timing_for(base.ttl, cycle);
        if !self.any_faulty(TIMING) {
            self.check_budget(&timing, cycle);
        }
        timing
    }

    /// The timing with what was given, and another ttl.
    fn timing_for(&self, ttl: Duration, cycle: Duration) -> Timing {
        let mut timing = Timing::for_ttl(ttl, cycle);
        let given = |key: &str, field: &mut Duration| {
            if self.is_given(key) {
                *field = self.duration(key);
            }
        };
        given("lease.renew", &mut timing.renew);
        given("lease.store_timeout", &mut timing.store_timeout);
        given("lease.stop_timeout", &mut timing.stop_timeout);
        given("lease.kill_margin", &mut timing.kill_margin);
        if let Some(Value::Fraction(x)) = self.values.get("lease.clock_error") {
            timing.clock_error = *x;
        }
        timing
    }

    fn check_budget(&mut self, timing: &Timing, cycle: Duration) {
        let Err(short) = timing.check() else { return };
        let over = short.need.saturating_sub(short.have);
        let mut ways = Vec::new();
        let mut place = "lease.ttl";
        // A part that was given can give back what is missing, the largest first.
        let parts = [
            ("lease.renew", timing.renew, 1u32),
            ("lease.store_timeout", timing.store_timeout, 2),
            ("lease.stop_timeout", timing.stop_timeout, 1),
            ("lease.kill_margin", timing.kill_margin, 1),
        ];
        let mut given: Vec<_> = parts.iter().filter(|(k, _, _)| self.is_given(k)).collect();
        given.sort_by_key(|(_, d, times)| std::cmp::Reverse(*d * *times));
        for (key, value, times) in given {
            if place == "lease.ttl" {
                place = key;
            }
            let less = round_down(value.saturating_sub(over / *times));
            if less >= LEAST && *key != "lease.kill_margin" {
                ways.push(format!("{key} = \"{}\"", duration_text(less)));
            }
        }
        if let Some(ttl) = self.least_ttl(timing.ttl, cycle) {
            ways.push(format!("lease.ttl = \"{}\"", duration_text(ttl)));
        }
        let s = |d: Duration| format!("{}", (d.as_secs_f64() * 1000.0).round() / 1000.0);
        let text = format!(
            "the lease is too short for its parts: renew {} + 2 × store_timeout {} + stop_timeout {} + kill_margin {} + slack {} = {} s, \
             but a ttl of {} lasts {} s; write {}",
            s(timing.renew),
            s(timing.store_timeout),
            s(timing.stop_timeout),
            s(timing.kill_margin),
            s(timing.slack()),
            s(short.need),
            duration_text(timing.ttl),
            s(short.have),
            ways.join(" or "),
        );
        // Without any of them given, a clock_error or a ttl alone cannot miss by much.
        self.wrong(if self.is_given(place) { place } else { "lease.clock_error" }, &text);
    }

    /// The least ttl, rounded up, with which the given parts pass the check.
    fn least_ttl(&self, ttl: Duration, cycle: Duration) -> Option<Duration> {
        let passes = |ttl: Duration| self.timing_for(ttl, cycle).check().is_ok();
        let mut high = ttl;
        while !passes(high) {
            high *= 2;
            if high > Duration::from_secs(86_400) {
                return None;
            }
        }
        let mut low = ttl;
        while high.saturating_sub(low) > Duration::from_millis(1) {
            let middle = low + (high - low) / 2;
            if passes(middle) { high = middle } else { low = middle }
        }
        let step = if high >= Duration::from_secs(10) { 1000 } else { 100 };
        let steps = high.as_millis().div_ceil(step);
        let rounded = Duration::from_millis(u64::try_from(steps * step).ok()?);
        Some(rounded).filter(|ttl| passes(*ttl))
    }

    fn store(&mut self) -> Option<Target> {
        if self.faulty.contains("lease.store") {
            return None;
        }
        let text = self.text("lease.store")?;
        let origin = self.origin("lease.store");
        match url::parse(&text) {
            Err(right) => {
                self.wrong("lease.store", &right);
                None
            }
            Ok(Address::File(path)) => {
                let path = self.sources.directory.join(path);
                if let Some(shown) = self.shown.iter_mut().find(|s| s.key == "lease.store") {
                    shown.value = format!("file:{}", path.display());
                }
                self.shown.retain(|s| !["lease.schema", "lease.async_store"].contains(&s.key.as_str()));
                Some(Target::File(path))
            }
            Ok(Address::Postgres(parts)) => {
                let schema = self.text("lease.schema").unwrap_or_default();
                let accept = self.text("lease.async_store").as_deref() == Some("accept");
                let sources = self.sources;
                let around = Surroundings {
                    environment: &sources.environment,
                    home: home(&sources.environment),
                    login: login(&sources.environment),
                    directory: &sources.directory,
                };
                match libpq::complete(&parts, &origin, &schema, accept, &around) {
                    Ok(found) => {
                        self.shown.extend(found.shown);
                        self.warnings.extend(found.warnings);
                        Some(Target::Postgres(found.target))
                    }
                    Err(mistakes) => {
                        self.mistakes.extend(
                            mistakes.into_iter().map(|m| Mistake { text: format!("lease.store: {}", m.text), ..m }),
                        );
                        None
                    }
                }
            }
        }
    }
}

/// Down to a value that reads well, and is smaller by less than a tenth if it can be.
pub(super) fn round_down(d: Duration) -> Duration {
    let ms = u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let step = if ms >= 1_000 { 100 } else { 10 };
    Duration::from_millis(ms / step * step)
}

/// Our home directory, as libpq finds it.
fn home(environment: &Environment) -> Option<PathBuf> {
    read::variable(environment, "HOME").map(PathBuf::from).or_else(|| Some(me()?.dir))
}

/// The name of the user we run as.
fn login(environment: &Environment) -> String {
    me().map(|u| u.name)
        .or_else(|| read::variable(environment, "USER").map(String::from))
        .unwrap_or_else(|| "postgres".into())
}

fn me() -> Option<nix::unistd::User> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten()
}
