//! Below a service manager: keeper and agent may die or hang both at once, and nothing
//! of the command outlives them. The manager here is a stand-in that does what the
//! promise leans on; `tests/systemd` boots the real one.

use crate::bed::{Bed, Manager, Node, Postgres, s, signal, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

/// A node in a unit on this store; its tree is complete.
fn in_unit(bed: &Bed, store: &str, watchdog: Option<Duration>) -> (Node, Manager) {
    let mut manager = Manager::new(bed, watchdog);
    let node = bed.node("a").store(store).ttl("3s").beater(&["--member"]).under(&manager).start();
    wait_until(s(5.0), "the keeper to be itself", || node.agent().is_some());
    manager.watch(&node);
    bed.wait_active(&node, s(12.0));
    bed.wait_tree(&node, 3);
    (node, manager)
}

fn both(node: &Node, how: Signal) {
    let agent = node.wait_agent();
    node.signal(how);
    signal(agent, how);
}

fn ended_together(bed: &Bed, store: &str, how: Signal, watchdog: Option<Duration>, limit: Duration) {
    let (a, _manager) = in_unit(bed, store, watchdog);
    let mut b = bed.node("b").store(store).ttl("3s").start();
    b.wait_agent();
    let tree = a.tree();
    assert_eq!(tree.len(), 3);
    both(&a, how);
    wait_until(limit, "nothing to be left", || tree.living().is_empty());
    bed.wait_active(&b, s(8.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn keeper_and_agent_killed_at_once_leave_nothing_below_a_service_manager() {
    let bed = Bed::new("unit-killed");
    ended_together(&bed, &bed.file_store(), Signal::SIGKILL, None, s(1.0));
}

#[test]
fn keeper_and_agent_killed_at_once_make_no_two_on_postgres() {
    let bed = Bed::new("unit-killed-pg");
    let pg = Postgres::start(&bed);
    ended_together(&bed, &pg.url(), Signal::SIGKILL, None, s(1.0));
}

#[test]
fn keeper_and_agent_stopped_at_once_are_ended_by_the_watchdog_before_the_lease_is() {
    let bed = Bed::new("unit-stopped");
    // What `check` calls the longest watchdog for this lease, a little rounded down.
    let file = bed.node("a").store(&bed.file_store()).ttl("3s").write();
    let check = crate::bed::locum(&["check", "-c", file.to_str().unwrap(), "--json"]).stdout;
    let check: serde_json::Value = serde_json::from_slice(&check).unwrap();
    let longest = check["timing"]["longest_watchdog"].as_f64().unwrap();
    assert!(longest > 0.3, "longest watchdog {longest} s");
    ended_together(&bed, &bed.file_store(), Signal::SIGSTOP, Some(s(longest * 0.98)), s(3.0));
}

#[test]
fn a_service_manager_is_told_of_the_start_the_state_and_the_end_and_is_fed() {
    let bed = Bed::new("unit-told");
    let (mut a, manager) = in_unit(&bed, &bed.file_store(), Some(s(3.0)));
    let fed = || manager.said().iter().filter(|t| t.contains("WATCHDOG=1")).count();
    let before = fed();
    wait_until(s(5.0), "two feedings", || fed() >= before + 2);
    assert_eq!(a.stop(), 0);
    wait_until(s(1.0), "the last words", || manager.said().iter().any(|t| t.contains("STOPPING=1")));
    let said = manager.said().join("\n");
    assert!(said.contains("READY=1") && said.contains("STATUS="), "{said}");
    bed.prove(&[&a]);
}
