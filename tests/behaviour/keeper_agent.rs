//! Two processes: what each survives, and what neither may leave behind.

use crate::bed::{Bed, Node, Postgres, Tree, s, signal, stays, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn without_a_store_the_command_goes_on_while_agents_come_and_go() {
    let bed = Bed::new("agents-go");
    let mut node = bed.node("a").start();
    bed.wait_active(&node, s(5.0));
    let leader = node.leader();
    for how in [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGKILL, Signal::SIGSTOP] {
        let agent = node.wait_agent();
        signal(agent, how);
        // Without a renewal to be missed, an agent that hangs is noticed within 45 s.
        wait_until(s(60.0), &format!("a fresh agent after {how}"), || node.agent().is_some_and(|a| a != agent));
        assert_eq!(node.leader(), leader);
    }
    assert_eq!(node.stop(), 0);
    assert_eq!(bed.beats().lives().len(), 1);
}

/// One agent dies or hangs: neither the command nor its epoch notices.
fn one_agent_ends(bed: &Bed, node: &mut Node, how: Signal) {
    bed.wait_active(node, s(20.0));
    let (leader, agent) = (node.leader(), node.wait_agent());
    signal(agent, how);
    wait_until(s(5.0), "a fresh agent", || node.agent().is_some_and(|a| a != agent));
    stays(s(5.0), "the same leader runs", || node.leader() == leader);
    assert_eq!(node.stop(), 0);
    assert_eq!(bed.beats().lives().len(), 1);
    bed.prove(&[node]);
}

#[test]
fn an_agent_that_dies_once_is_replaced_in_time_to_renew() {
    let bed = Bed::new("agent-dies");
    let mut node = bed.node("a").store(&bed.file_store()).start();
    one_agent_ends(&bed, &mut node, Signal::SIGKILL);
}

#[test]
fn an_agent_that_hangs_once_is_replaced_in_time_to_renew() {
    let bed = Bed::new("agent-hangs");
    let mut node = bed.node("a").store(&bed.file_store()).start();
    one_agent_ends(&bed, &mut node, Signal::SIGSTOP);
}

#[test]
fn an_agent_that_dies_once_on_postgres_is_replaced_in_time_to_renew() {
    let bed = Bed::new("agent-dies-pg");
    let pg = Postgres::start(&bed);
    let mut node = bed.node("a").store(&pg.url()).ttl("6s").start(); // a fresh agent makes a fresh connection within a tenth of it
    one_agent_ends(&bed, &mut node, Signal::SIGKILL);
}

#[test]
fn an_agent_that_hangs_once_on_postgres_is_replaced_in_time_to_renew() {
    let bed = Bed::new("agent-hangs-pg");
    let pg = Postgres::start(&bed);
    let mut node = bed.node("a").store(&pg.url()).ttl("6s").start(); // a fresh agent makes a fresh connection within a tenth of it
    one_agent_ends(&bed, &mut node, Signal::SIGSTOP);
}

/// Agents end faster than they can renew: the tree is gone by its limit.
fn agents_keep_ending(how: Signal) {
    let bed = Bed::new("agents-keep-ending");
    let store = bed.file_store();
    let a = bed.node("a").store(&store).beater(&["--ignore-term", "--member"]).start();
    bed.wait_active(&a, s(8.0));
    bed.wait_tree(&a, 3);
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    let tree = a.tree();
    let start = Instant::now();
    while start.elapsed() < s(5.0) {
        if let Some(agent) = a.agent() {
            signal(agent, how);
        }
        std::thread::sleep(Duration::from_millis(1));
        if tree.living().is_empty() && bed.runs(&b) {
            break;
        }
    }
    assert!(tree.living().is_empty());
    bed.wait_active(&b, s(6.0));
    assert_eq!(b.stop(), 0);
    bed.prove(&[&a, &b]);
}

#[test]
fn with_agents_killed_faster_than_they_can_renew_the_tree_is_gone_by_its_limit() {
    agents_keep_ending(Signal::SIGKILL);
}

#[test]
fn with_agents_stopped_faster_than_they_can_renew_the_tree_is_gone_by_its_limit() {
    agents_keep_ending(Signal::SIGSTOP);
}

#[test]
fn within_a_second_of_a_killed_keeper_nothing_is_left() {
    for kind in ["with-cgroup", "without-cgroup", "unprivileged"] {
        for leased in [false, true] {
            let bed = Bed::new(kind);
            let spec = bed.node("a").beater(&["--ignore-term", "--member"]);
            let mut spec = match kind {
                "without-cgroup" => spec.without_cgroup(),
                "unprivileged" => spec.unprivileged(),
                _ => spec,
            };
            if leased {
                spec = spec.store(&bed.file_store());
            }
            let mut node = spec.start();
            bed.wait_tree(&node, 3);
            let everything = node.everything();
            assert_eq!(everything.len(), 5);
            node.signal(Signal::SIGKILL);
            wait_until(s(1.0), &format!("nothing to be left ({kind}, leased: {leased})"), || {
                everything.living().is_empty()
            });
            assert_ne!(node.wait_end(s(1.0)), 0);
        }
    }
}

#[test]
fn after_a_killed_keeper_another_host_takes_over_without_overlap() {
    let bed = Bed::new("keeper-killed");
    let store = bed.file_store();
    let a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    a.signal(Signal::SIGKILL);
    bed.wait_active(&b, s(6.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

/// How long after a killed keeper another host runs the command; the lease lasts 8 s.
fn takeover_after_a_killed_keeper(without_cgroup: bool) -> Duration {
    let bed = Bed::new("proof");
    let store = bed.file_store();
    let spec = bed.node("a").store(&store).ttl("8s");
    let a = if without_cgroup { spec.without_cgroup() } else { spec }.start();
    bed.wait_active(&a, s(15.0));
    let mut b = bed.node("b").store(&store).ttl("8s").start();
    b.wait_agent();
    std::thread::sleep(s(1.0));
    let start = Instant::now();
    a.signal(Signal::SIGKILL);
    bed.wait_active(&b, s(15.0));
    let took = start.elapsed();
    b.stop();
    bed.prove(&[&a, &b]);
    took
}

#[test]
fn a_killed_keepers_agent_releases_the_lease_with_proof_and_else_lets_it_run_out() {
    let (with, without) = (takeover_after_a_killed_keeper(false), takeover_after_a_killed_keeper(true));
    assert!(with < s(4.0), "with a cgroup the agent knows that all is gone: {with:?}");
    assert!(without > s(6.0), "without one it cannot know: {without:?}");
}

#[test]
fn a_first_agent_that_dies_before_it_has_made_the_record_is_no_lasting_harm() {
    let bed = Bed::new("first-agent");
    for round in 0..5 {
        let dir = bed.dir().join(format!("store{round}"));
        fs::create_dir(&dir).unwrap();
        let mut node =
            bed.node(&format!("n{round}")).store(&format!("file:{}/record", dir.display())).ttl("1s").start();
        // Sooner or later after its birth, at best before its first deed.
        let start = Instant::now();
        while start.elapsed() < s(2.0) {
            if let Some(agent) = node.agent() {
                std::thread::sleep(Duration::from_millis(round * 2));
                signal(agent, Signal::SIGKILL);
                break;
            }
        }
        bed.wait_active(&node, s(8.0));
        assert_eq!(node.stop(), 0);
    }
}

#[test]
fn a_short_cycle_on_a_busy_machine_does_not_replace_agents_that_only_wait_for_a_processor() {
    let bed = Bed::new("short-cycle");
    let mut node = bed.node("a").set("", "cycle = \"20ms\"").store(&bed.file_store()).start();
    bed.wait_active(&node, s(8.0));
    let agent = node.wait_agent();
    for _ in 0..5 {
        signal(agent, Signal::SIGSTOP);
        std::thread::sleep(s(0.1));
        signal(agent, Signal::SIGCONT);
        std::thread::sleep(s(0.3));
    }
    assert_eq!(node.agent(), Some(agent), "{}", node.log());
    assert_eq!(node.stop(), 0);
    bed.prove(&[&node]);
}

#[test]
fn a_keeper_that_is_stopped_is_outlived_by_the_deadline() {
    for kind in ["with-cgroup", "without-cgroup"] {
        let bed = Bed::new(kind);
        let store = bed.file_store();
        let spec = bed.node("a").store(&store).beater(&["--member"]);
        let a = if kind == "without-cgroup" { spec.without_cgroup() } else { spec }.start();
        bed.wait_active(&a, s(8.0));
        bed.wait_tree(&a, 3);
        let mut b = bed.node("b").store(&store).start();
        b.wait_agent();
        let tree = a.tree();
        a.signal(Signal::SIGSTOP);
        wait_until(s(4.0), &format!("the tree to be gone ({kind})"), || tree.living().is_empty());
        bed.wait_active(&b, s(6.0));
        b.stop();
        bed.prove(&[&a, &b]);
    }
}

#[test]
fn keeper_and_agent_killed_at_once_leave_nothing_in_a_pid_namespace() {
    let bed = Bed::new("both-killed");
    let store = bed.file_store();
    let a = bed.node("a").store(&store).in_pid_namespace().beater(&["--member"]).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    let tree = a.tree();
    if let Some(agent) = a.agent() {
        signal(agent, Signal::SIGKILL);
    }
    a.signal(Signal::SIGKILL);
    wait_until(s(1.0), "nothing to be left", || tree.living().is_empty());
    bed.wait_active(&b, s(6.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

/// Whatever stands in the file now, a fresh agent gets what was checked at the start.
fn edited(name: &str, edit: impl Fn(&str, &Bed) -> String) {
    let bed = Bed::new(name);
    let mut node = bed.node("a").store(&bed.file_store()).start();
    bed.wait_active(&node, s(8.0));
    let leader = node.leader();
    let text = fs::read_to_string(node.config()).unwrap();
    let new = edit(&text, &bed);
    assert_ne!(new, text);
    fs::write(node.config(), new).unwrap();
    for _ in 0..2 {
        let agent = node.wait_agent();
        signal(agent, Signal::SIGKILL);
        wait_until(s(5.0), "a fresh agent", || node.agent().is_some_and(|a| a != agent));
        stays(s(2.5), "the same leader runs", || node.leader() == leader);
    }
    fs::write(node.config(), text).unwrap();
    assert_eq!(node.stop(), 0);
    assert_eq!(bed.beats().lives().len(), 1);
    bed.prove(&[&node]);
}

#[test]
fn a_file_edited_to_another_service_is_not_adopted_by_a_fresh_agent() {
    edited("other-service", |text, _| text.replace("service = \"shop\"", "service = \"cellar\""));
}

#[test]
fn a_file_edited_to_another_store_is_not_adopted_by_a_fresh_agent() {
    edited("other-store", |text, bed| {
        let other = bed.dir().join("other");
        fs::create_dir_all(&other).unwrap();
        text.replace("/store/record", "/other/record")
    });
}

#[test]
fn a_half_edited_file_and_a_dead_agent_are_no_outage() {
    edited("half-edited", |text, _| text[..text.len() / 2].to_owned() + "\n]] nonsense");
}

#[test]
fn a_command_held_by_a_dead_keeper_is_never_adopted_by_the_next_one() {
    let bed = Bed::new("next-keeper");
    let store = bed.file_store();
    let a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let tree = Tree::of(bed.beats().pids_of(a.leader().unwrap()));
    a.signal(Signal::SIGKILL);
    let log = a.log();
    let mut again = bed.node("a").store(&store).start();
    wait_until(s(2.0), "the old tree to be gone", || tree.living().is_empty());
    bed.wait_active(&again, s(8.0));
    again.stop();
    assert!(log.len() < again.log().len());
    bed.prove(&[&again]);
}
