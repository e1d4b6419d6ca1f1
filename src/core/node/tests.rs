//! One node, event by event: the rules that no bad day has to show.

use super::*;
use crate::core::{Look, Stage, When};

const S: fn(u64) -> Duration = Duration::from_secs;

fn at(s: u64) -> Boot {
    Boot::ZERO.plus(S(1_000 + s))
}

fn timing() -> Timing {
    Timing::for_ttl(S(20), S(5))
}

fn generation() -> Generation {
    Generation { system: "7".into(), timeline: 1 }
}

fn setup(patience: Patience) -> Setup {
    Setup {
        node: "a".into(),
        host: String::new(),
        version: String::new(),
        names: Names::default(),
        supervision: Supervision {
            cycle: S(5),
            probed: false,
            start_timeout: S(60),
            timeout: S(30),
            stop_timeout: S(20),
            when: When::Always,
            delay: S(3),
            max_factor: 10,
        },
        timing: Some(timing()),
        patience,
        flaw: None,
    }
}

fn hello() -> Snapshot {
    Snapshot {
        instance: "a-1".into(),
        agents: 0,
        epoch: 0,
        limits: Limits::PAST,
        tree: Tree::Gone,
        exit: None,
        token: 0,
        stopping: false,
        memo: Vec::new(),
    }
}

fn free() -> Record {
    Record { epoch: 4, token: 40, generation: Some(generation()), ..Record::fresh(S(20), S(5), 9) }
}

fn held_by(instance: &str, epoch: u64, seq: u64) -> Record {
    let node = instance.split('-').next().unwrap().to_string();
    Record { epoch, seq, holder: Some(Holder { node, instance: instance.into() }), ..free() }
}

/// A node, and what it wanted in its last step.
struct Bench {
    node: Node,
    now: Boot,
    wants: Vec<Effect>,
}

impl Bench {
    fn new(patience: Patience, hello: &Snapshot) -> Bench {
        let mut bench = Bench { node: Node::new(setup(patience), at(0), hello), now: at(0), wants: Vec::new() };
        bench.step(Event::Tick);
        bench
    }

    fn step(&mut self, event: Event) {
        self.wants = self.node.step(self.now, event);
    }

    fn at(&mut self, s: u64) -> &mut Bench {
        self.now = at(s);
        self
    }

    fn call(&self) -> u64 {
        self.node.calling.as_ref().expect("a call under way").id
    }

    fn look_shows(&mut self, record: &Record) {
        let sighting = Sighting { record: Some(record.clone()), generation: generation(), age: None };
        let answer = Answer::Look(Ok(Look { sighting, members: Vec::new() }));
        self.step(Event::Answer { id: self.call(), answer });
    }

    fn look_fails(&mut self) {
        let trouble = Trouble::Refused("connection refused".into());
        self.step(Event::Answer { id: self.call(), answer: Answer::Look(Err(trouble)) });
    }

    /// The record may have changed: a wait ends, and a look follows.
    fn hint(&mut self) {
        self.step(Event::Answer { id: self.call(), answer: Answer::Wait(Ok(true)) });
    }

    fn swap_ends(&mut self, answer: Result<Swap, Trouble>) {
        self.step(Event::Answer { id: self.call(), answer: Answer::Swap(answer) });
    }

    fn says(&mut self, report: Report) {
        self.step(Event::Keeper(report));
    }

    /// The keeper acknowledges the last limits.
    fn acknowledges(&mut self) {
        let kill_at = self.limits().expect("a lease was ordered").kill_at;
        self.says(Report::LeaseAck { epoch: self.node.held.as_ref().map_or(0, |held| held.epoch), kill_at });
    }

    fn swap(&self) -> Option<&Record> {
        self.wants.iter().find_map(|effect| match effect {
            Effect::Swap { next, .. } => Some(&**next),
            _ => None,
        })
    }

    fn orders(&self) -> impl Iterator<Item = &Order> {
        self.wants.iter().filter_map(|effect| match effect {
            Effect::Order(order) => Some(order),
            _ => None,
        })
    }

    fn limits(&self) -> Option<Limits> {
        self.orders().find_map(|order| match order {
            Order::Lease { limits, .. } => Some(*limits),
            _ => None,
        })
    }

    fn ends_with(&self) -> Option<u8> {
        self.orders().find_map(|order| match order {
            Order::Shutdown { code } => Some(*code),
            _ => None,
        })
    }

    fn kills(&self) -> bool {
        self.orders().any(|order| *order == Order::Kill)
    }

    fn memo(&self) -> Vec<u8> {
        serde_json::to_vec(&self.node.memo).unwrap()
    }

    /// Active under epoch 5, its command runs, and its lease is acknowledged.
    fn active() -> Bench {
        let mut bench = Bench::new(Patience::Standby, &hello());
        bench.look_shows(&free());
        bench.swap_ends(Ok(Swap::Done));
        assert!(bench.orders().any(|order| matches!(order, Order::Start(start) if start.epoch == 5)));
        bench.acknowledges();
        bench.says(Report::Started { pid: 7 });
        bench
    }
}

#[test]
fn the_command_is_started_under_a_confirmed_lease_only() {
    let mut bench = Bench::new(Patience::Standby, &hello());
    bench.look_shows(&free());
    assert_eq!(bench.swap().map(|next| next.epoch), Some(5));
    assert_eq!(bench.orders().filter(|order| matches!(order, Order::Start(_))).count(), 0);
    bench.swap_ends(Err(Trouble::Unknown("reset".into())));
    assert_eq!(bench.orders().filter(|order| matches!(order, Order::Start(_))).count(), 0);
}

#[test]
fn a_claim_whose_answer_was_lost_is_renewed_and_not_claimed_again() {
    let mut bench = Bench::new(Patience::Standby, &hello());
    bench.look_shows(&free());
    bench.swap_ends(Err(Trouble::Unknown("reset".into())));
    // The record that it may still change must be seen before another claim.
    bench.at(3).step(Event::Tick);
    assert_eq!(bench.swap(), None);
    bench.look_shows(&held_by("a-1", 5, 10));
    assert_eq!(bench.swap().map(|next| (next.epoch, next.seq)), Some((5, 11)));
    bench.swap_ends(Ok(Swap::Done));
    assert_eq!(bench.limits(), Some(timing().limits(at(3), S(20))));
}

#[test]
fn a_claim_in_doubt_is_given_back_before_the_end() {
    let mut bench = Bench::new(Patience::Standby, &hello());
    bench.look_shows(&free());
    bench.says(Report::Asked { signal: 15 });
    bench.swap_ends(Err(Trouble::Unknown("reset".into())));
    assert_eq!(bench.ends_with(), None);
    bench.at(2).step(Event::Tick);
    bench.look_shows(&held_by("a-1", 5, 10));
    bench.says(Report::LeaseAck { epoch: 5, kill_at: Boot::ZERO });
    assert_eq!(bench.swap().map(|next| next.holder.clone()), Some(None));
    bench.swap_ends(Ok(Swap::Done));
    assert_eq!(bench.ends_with(), Some(code::OK));
}

#[test]
fn no_acknowledgement_no_next_renewal() {
    for (acknowledged, renews) in [(true, true), (false, false)] {
        let mut bench = Bench::active();
        bench.at(5).step(Event::Tick);
        bench.swap_ends(Ok(Swap::Done));
        if acknowledged {
            bench.acknowledges();
        }
        bench.at(10).step(Event::Tick);
        assert_eq!(bench.swap().is_some(), renews);
    }
}

#[test]
fn lost_only_if_instance_and_epoch_are_not_ours() {
    for (name, record, ours) in [
        ("as we left it", held_by("a-1", 5, 10), true),
        ("a renewal of ours whose answer was lost", held_by("a-1", 5, 12), true),
        ("an older epoch of ours", held_by("a-1", 3, 10), false),
        ("a keeper of this node before us", held_by("a-0", 5, 10), false),
        ("another node", held_by("b-1", 6, 11), false),
        ("nobody", Record { seq: 11, epoch: 5, ..free() }, false),
    ] {
        let mut bench = Bench::active();
        bench.at(5).step(Event::Tick);
        let sighting = Sighting { record: Some(record.clone()), generation: generation(), age: None };
        bench.swap_ends(Ok(Swap::Changed(sighting)));
        assert_eq!(bench.kills(), !ours, "{name}");
        let again = bench.swap().map(|next| (next.epoch, next.seq));
        assert_eq!(again, ours.then_some((5, record.seq + 1)), "{name}");
    }
}

#[test]
fn nothing_is_claimed_while_something_of_the_command_lives() {
    let mut bench = Bench::active();
    bench.at(5).step(Event::Tick);
    let nobody = Record { seq: 30, epoch: 9, token: u64::MAX / 2, ..free() };
    let sighting = Sighting { record: Some(nobody.clone()), generation: generation(), age: None };
    bench.swap_ends(Ok(Swap::Changed(sighting)));
    assert!(bench.kills() && bench.swap().is_none());
    bench.look_shows(&nobody);
    assert_eq!(bench.swap(), None);
    bench.says(Report::Exited(Exit::Signal(9)));
    bench.says(Report::Gone);
    bench.hint();
    bench.look_shows(&nobody);
    assert_eq!(bench.swap().map(|next| next.epoch), Some(10));
}

#[test]
fn a_release_waits_for_the_tree_and_for_the_keeper() {
    let mut bench = Bench::active();
    bench.at(1).says(Report::Asked { signal: 15 });
    bench.at(2).says(Report::Exited(Exit::Code(0)));
    assert_eq!((bench.swap(), bench.limits()), (None, None), "something may still live");
    bench.says(Report::Gone);
    assert_eq!((bench.swap(), bench.limits()), (None, Some(Limits::PAST)), "the keeper comes first");
    bench.says(Report::LeaseAck { epoch: 5, kill_at: at(0).minus(S(1)) });
    assert_eq!(bench.swap(), None, "an older acknowledgement");
    bench.says(Report::LeaseAck { epoch: 5, kill_at: Boot::ZERO });
    assert_eq!(bench.swap().map(|next| next.holder.clone()), Some(None));
}

#[test]
fn a_release_without_an_answer_leaves_no_lease_and_no_way_back() {
    let mut bench = Bench::active();
    bench.at(1).says(Report::Asked { signal: 15 });
    bench.says(Report::Gone);
    bench.says(Report::LeaseAck { epoch: 5, kill_at: Boot::ZERO });
    bench.swap_ends(Err(Trouble::Unknown("reset".into())));
    assert_eq!(bench.node.held.as_ref().map(Held::limits), Some(Limits::PAST));
    // The agent after this one finds the lease as it was, the release still under way.
    let after = Snapshot { agents: 1, epoch: 5, stopping: false, memo: bench.memo(), ..hello() };
    let mut fresh = Bench::new(Patience::Standby, &after);
    fresh.look_shows(&held_by("a-1", 5, 10));
    assert!(!fresh.orders().any(|order| matches!(order, Order::Start(_))));
    assert!(fresh.swap().is_none_or(|next| next.holder.is_none()));
}

#[test]
fn an_epoch_that_was_given_up_is_not_renewed_by_a_fresh_agent() {
    for (given_up, renews) in [(4, true), (5, false)] {
        let memo = serde_json::to_vec(&Memo { given_up, ..Memo::default() }).unwrap();
        let mut bench = Bench::new(Patience::Standby, &Snapshot { agents: 1, memo, ..hello() });
        bench.look_shows(&held_by("a-1", 5, 10));
        assert_eq!(bench.swap().is_some(), renews, "given up: {given_up}");
    }
}

#[test]
fn a_start_that_the_keeper_refused_for_the_lease_is_no_failed_try() {
    let mut bench = Bench::new(Patience::Standby, &hello());
    bench.look_shows(&free());
    bench.swap_ends(Ok(Swap::Done));
    bench.now = timing().limits(at(0), S(20)).term_at;
    bench.says(Report::StartFailed { stage: Stage::Fork, errno: 1 });
    assert_eq!((bench.node.command.tries, bench.node.command.life.clone()), (0, Life::Idle));
}

#[test]
fn an_orphaned_agent_gives_the_lease_back_and_ends() {
    let mut bench = Bench::active();
    bench.at(1).step(Event::Orphaned);
    assert_eq!(bench.limits(), Some(Limits::PAST));
    bench.says(Report::LeaseAck { epoch: 5, kill_at: Boot::ZERO });
    assert_eq!(bench.swap().map(|next| next.holder.clone()), Some(None));
    bench.swap_ends(Ok(Swap::Done));
    assert!(bench.ends_with().is_some());
}

#[test]
fn an_agent_orphaned_while_it_waits_for_the_seal_does_not_wait_on() {
    let mut bench = Bench::active();
    bench.at(1).says(Report::Asked { signal: 15 });
    bench.says(Report::Gone);
    bench.step(Event::Orphaned);
    assert_eq!(bench.swap().map(|next| next.holder.clone()), Some(None));
}

#[test]
fn try_ends_at_once_with_its_own_code_when_somebody_else_holds_it() {
    let mut bench = Bench::new(Patience::Try, &hello());
    bench.look_shows(&held_by("b-1", 5, 10));
    assert_eq!(bench.ends_with(), Some(code::HELD));
    let mut bench = Bench::new(Patience::Try, &hello());
    bench.look_fails();
    assert_eq!(bench.ends_with(), Some(code::UNAVAILABLE));
    let mut bench = Bench::new(Patience::Try, &hello());
    bench.look_shows(&free());
    assert_eq!((bench.ends_with(), bench.swap().map(|next| next.epoch)), (None, Some(5)));
}

#[test]
fn wait_ends_after_its_time_and_not_before() {
    let mut bench = Bench::new(Patience::Wait(S(30)), &hello());
    bench.look_shows(&held_by("b-1", 5, 10));
    for (n, s) in [10, 20, 29].into_iter().enumerate() {
        bench.at(s).hint();
        bench.look_shows(&held_by("b-1", 5, 11 + n as u64));
        assert_eq!(bench.ends_with(), None);
    }
    // An agent that takes over meanwhile goes on with the same count.
    let memo = bench.memo();
    bench.at(30).step(Event::Tick);
    assert_eq!(bench.ends_with(), Some(code::HELD));
    let mut fresh = Bench::new(Patience::Wait(S(30)), &Snapshot { agents: 1, memo, ..hello() });
    fresh.at(30).look_shows(&held_by("b-1", 5, 14));
    assert_eq!(fresh.ends_with(), Some(code::HELD));
}

#[test]
fn whoever_has_held_it_once_waits_for_ever() {
    let mut bench = Bench::new(Patience::Try, &hello());
    bench.look_shows(&free());
    bench.swap_ends(Ok(Swap::Done));
    bench.acknowledges();
    bench.says(Report::Started { pid: 7 });
    bench.at(5).step(Event::Tick);
    let sighting = Sighting { record: Some(held_by("b-1", 6, 11)), generation: generation(), age: None };
    bench.swap_ends(Ok(Swap::Changed(sighting)));
    bench.says(Report::Gone);
    assert!(bench.ends_with().is_none() && bench.node.finish.is_none());
}

#[test]
fn a_limit_is_looked_at_before_it_is_due_because_the_sleep_may_run_on_a_slow_clock() {
    let mut bench = Bench::active();
    let last_resort = bench.node.last_resort(timing().limits(at(0), S(20)));
    bench.now = last_resort.minus(S(1));
    bench.step(Event::Tick);
    assert!(!bench.wants.contains(&Effect::KillAll));
    assert!(bench.node.wake_in(bench.now) <= Duration::from_millis(875));
    // BOOTTIME ran 8 % less, RAW has reached the limit.
    bench.now = Boot { boot: last_resort.boot - 80_000_000, raw: last_resort.raw };
    bench.step(Event::Tick);
    assert!(bench.wants.contains(&Effect::KillAll));
}
