//! Many bad days from seeds: the real core on several hosts, in a world where whatever
//! may go wrong does, and a checker that sees the truth.
//!
//! `SEED=n cargo test --test simulation` replays one seed and prints everything that
//! happened. `LOCUM_SIM_RUNS` sets how many seeds are run, `LOCUM_SIM_FIRST` the first
//! (`make soak`); what they show goes to stdout and nowhere else.
//! A checker that cannot fail proves nothing: for each deliberate fault of the core
//! there is a test that it is caught.

#[path = "../src/core/mod.rs"]
#[allow(dead_code, unused_imports, missing_docs)]
mod core;

#[path = "simulation/chance.rs"]
mod chance;
#[path = "simulation/clock.rs"]
mod clock;
#[path = "simulation/keeper.rs"]
mod keeper;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/world.rs"]
mod world;

use crate::core::Flaw;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use world::{Broken, Promise, Tally, Trace, World};

/// How many seeds an ordinary `cargo test` runs.
const RUNS: u64 = 20_000;
/// Within this many seeds each deliberate fault has to be caught.
const CAUGHT_WITHIN: u64 = 20_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// One seed; a panic of the core is a failure like any other.
fn run(seed: u64, flaw: Option<Flaw>, trace: Trace) -> Result<Tally, Broken> {
    std::panic::catch_unwind(|| World::new(seed, flaw, trace).run()).unwrap_or_else(|panic| {
        let what = panic.downcast_ref::<String>().cloned();
        let what = what.or(panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(Broken {
            promise: Promise::Safety,
            what: format!("panic: {}", what.unwrap_or_default()),
            trace: Vec::new(),
        })
    })
}

/// Fails with what broke under this seed, and how it came to that.
fn fail(seed: u64) -> ! {
    let broken = run(seed, None, Trace::LastLines).expect_err("a seed replays exactly");
    for line in &broken.trace {
        println!("{line}");
    }
    panic!("{}\nreplay with: SEED={seed} cargo test --test simulation many_bad_days -- --nocapture", broken.what);
}

#[test]
fn many_bad_days() {
    if let Some(seed) = number("SEED") {
        let (lines, outcome) = match World::new(seed, None, Trace::Everything).run() {
            Ok(tally) => (Vec::new(), Ok(tally)),
            Err(broken) => (broken.trace, Err(broken.what)),
        };
        for line in lines {
            println!("{line}");
        }
        println!("seed {seed}: {outcome:?}");
        assert!(outcome.is_ok());
        return;
    }
    let first = number("LOCUM_SIM_FIRST").unwrap_or(0);
    let runs = number("LOCUM_SIM_RUNS").unwrap_or(RUNS);
    let next = AtomicU64::new(first);
    let broken: Mutex<Vec<(u64, String)>> = Mutex::new(Vec::new());
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + runs {
                        break;
                    }
                    match run(seed, None, Trace::Nothing) {
                        Ok(more) => tally += more,
                        Err(failure) => {
                            let mut broken = broken.lock().unwrap_or_else(PoisonError::into_inner);
                            broken.push((seed, failure.what));
                            if broken.len() > 20 {
                                break;
                            }
                        }
                    }
                }
                *total.lock().unwrap_or_else(PoisonError::into_inner) += tally;
            });
        }
    });
    let total = total.into_inner().unwrap();
    let Tally { events, seconds, mischief, starts, claims, takeovers, releases, gap } = total;
    println!("{runs} bad days, seeds {first} to {}: {events} events in {seconds} simulated s", first + runs - 1);
    println!("{mischief} faults; {claims} claims, {takeovers} of them takeovers, {releases} releases; {starts} starts");
    println!("longest gap with nobody active, faults going on: {:.2} ttl", gap as f64 / 100.0);
    let mut broken = broken.into_inner().unwrap();
    broken.sort();
    for (seed, what) in &broken {
        println!("seed {seed}: {what}");
    }
    if let Some((seed, _)) = broken.first() {
        fail(*seed);
    }
}

/// A seed under which the fault breaks the promise, and the core without it does not.
fn caught(flaw: Flaw) {
    for seed in 0..CAUGHT_WITHIN {
        let Err(broken) = run(seed, Some(flaw), Trace::Nothing) else { continue };
        if broken.promise != Promise::Safety {
            continue;
        }
        println!("{flaw:?} is caught with seed {seed}: {}", broken.what);
        if let Err(sound) = run(seed, None, Trace::Nothing) {
            panic!("seed {seed} breaks the core without any fault: {}", sound.what);
        }
        return;
    }
    panic!("{flaw:?} was not caught in {CAUGHT_WITHIN} runs: the world is too kind");
}

#[test]
fn the_checker_catches_a_lease_counted_from_the_reply() {
    caught(Flaw::CountFromReply);
}

#[test]
fn the_checker_catches_trust_in_the_clock_of_the_store() {
    caught(Flaw::TrustStoreClock);
}

#[test]
fn the_checker_catches_a_release_before_the_tree_is_gone() {
    caught(Flaw::ReleaseBeforeGone);
}

#[test]
fn the_checker_catches_a_renewal_by_name() {
    caught(Flaw::RenewByName);
}

#[test]
fn the_checker_catches_an_unresolved_write_taken_for_failed() {
    caught(Flaw::UnresolvedIsFailed);
}

#[test]
fn the_checker_catches_belief_in_nobody_under_another_generation() {
    caught(Flaw::BelieveNobody);
}

#[test]
fn the_checker_catches_a_command_adopted_under_another_lease() {
    caught(Flaw::AdoptUnderAnotherLease);
}

#[test]
fn the_checker_catches_a_renewal_that_the_keeper_has_not_heard_of() {
    caught(Flaw::RenewUnheard);
}

#[test]
fn the_checker_catches_a_holder_that_trusts_its_clock() {
    caught(Flaw::ForgetClockError);
}

#[test]
fn the_checker_catches_an_impatient_challenger() {
    caught(Flaw::ImpatientChallenger);
}

#[test]
fn the_checker_catches_a_challenger_on_its_fast_clock() {
    caught(Flaw::FastChallenger);
}

#[test]
fn the_checker_catches_a_count_over_generations_of_the_store() {
    caught(Flaw::CountOverGenerations);
}

#[test]
fn the_checker_catches_a_challenger_that_counts_its_own_ttl() {
    caught(Flaw::OwnTtl);
}

#[test]
fn the_checker_catches_a_lease_taken_for_ours_under_any_epoch() {
    caught(Flaw::AnyEpoch);
}
