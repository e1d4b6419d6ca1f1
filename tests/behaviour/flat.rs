//! What runs for months may not grow: memory, descriptors and threads stay flat.

use crate::bed::{Bed, Endpoint, Manner, s, signal, wait_until};
use nix::sys::signal::Signal;
use std::fs;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Memory of its own, KiB.
    memory: u64,
    descriptors: usize,
    threads: usize,
}

fn held(pid: i32) -> Held {
    // (What is private of it changes while a child is being forked.)
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    Held { memory: of("RssAnon:"), descriptors: count("fd"), threads: count("task") }
}

#[track_caller]
fn is_flat(before: Held, after: Held, kib: u64) {
    assert!(after.memory <= before.memory + kib, "memory: {before:?} became {after:?}");
    assert!(after.descriptors <= before.descriptors, "descriptors: {before:?} became {after:?}");
    assert!(after.threads <= before.threads, "threads: {before:?} became {after:?}");
}

/// How many times: `BED_TIMES`, or what an ordinary run has the time for.
fn times(ordinary: usize) -> usize {
    std::env::var("BED_TIMES").map_or(ordinary, |n| n.parse().expect("BED_TIMES is a number"))
}

#[test]
fn the_keeper_holds_no_more_after_many_agents() {
    let bed = Bed::new("flat-agents");
    let mut node = bed.node("a").store(&bed.file_store()).ttl("1s").set("log", "level = \"warn\"").start();
    bed.wait_active(&node, s(15.0));
    let replace = |times: usize| {
        for _ in 0..times {
            let agent = node.wait_agent();
            signal(agent, Signal::SIGKILL);
            wait_until(s(5.0), "a fresh agent", || node.agent().is_some_and(|a| a != agent));
            std::thread::sleep(s(0.03)); // it renews, more often than not
        }
    };
    replace(10);
    let before = held(node.keeper());
    replace(times(60));
    is_flat(before, held(node.keeper()), 16);
    assert_eq!(node.stop(), 0);
    bed.prove_no_overlap();
}

#[test]
fn neither_keeper_nor_agent_hold_more_after_many_restarts() {
    let bed = Bed::new("flat-restarts");
    let count = bed.dir().join("count");
    let line = format!("echo x >> {}; exit 1", count.display());
    let mut node = bed.node("a").shell(&line).set("restart", "delay = \"0s\"").set("log", "level = \"warn\"").start();
    let starts = || fs::read(&count).unwrap_or_default().len() / 2;
    wait_until(s(20.0), "30 starts", || starts() >= 30);
    let (keeper, agent) = (node.keeper(), node.wait_agent());
    let before = [held(keeper), held(agent)];
    let first = starts();
    let more = times(300);
    wait_until(s(10.0 + more as f64 / 5.0), "many more", || starts() >= first + more);
    // A start that is under way holds a pipe.
    let settled = |pid: i32, before: Held| {
        let mut after = held(pid);
        for _ in 0..50 {
            if after.descriptors <= before.descriptors {
                break;
            }
            std::thread::sleep(s(0.01));
            after = held(pid);
        }
        after
    };
    is_flat(before[0], settled(keeper, before[0]), 16);
    is_flat(before[1], settled(agent, before[1]), 256);
    assert_eq!(node.wait_agent(), agent);
    assert_eq!(node.stop(), 0);
}

#[test]
fn the_agent_holds_no_more_after_many_bad_answers() {
    for manner in [Manner::EndlessHeaders, Manner::EndlessBody, Manner::Garbage, Manner::Silent] {
        let bed = Bed::new("flat-answers");
        let endpoint = Endpoint::start(manner);
        let mut node = bed
            .node("a")
            .set("", "cycle = \"50ms\"")
            .set("health", &format!("url = \"{}\"", endpoint.url()))
            .set("health", "start_timeout = \"60s\"")
            .set("health", "timeout = \"60s\"")
            .set("health", "request_timeout = \"40ms\"")
            .set("log", "level = \"warn\"")
            .start();
        bed.wait_active(&node, s(5.0));
        wait_until(s(10.0), "20 probes", || endpoint.asked() >= 20);
        let agent = node.wait_agent();
        let before = held(agent);
        let first = endpoint.asked();
        wait_until(s(20.0), "80 more", || endpoint.asked() >= first + 80);
        let mut after = held(agent);
        for _ in 0..100 {
            if after.descriptors <= before.descriptors && after.threads <= before.threads {
                break;
            }
            std::thread::sleep(s(0.01));
            after = held(agent);
        }
        is_flat(before, after, 512);
        node.stop();
    }
}
