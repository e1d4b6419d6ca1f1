//! Several instances on one machine share a file.

use crate::bed::{Bed, Node, boot_now, locum, s, stays, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Instant;

#[test]
fn one_of_two_runs_the_command_and_the_other_waits() {
    let bed = Bed::new("one-of-two");
    let store = bed.file_store();
    let mut nodes = [bed.node("a").store(&store).start(), bed.node("b").store(&store).start()];
    let active = bed.wait_any_active(&nodes, s(8.0));
    let other = 1 - active;
    stays(s(3.0), "only one runs", || bed.runs(&nodes[active]) && nodes[other].leader().is_none());
    nodes.iter_mut().for_each(|n| assert_eq!(n.stop(), 0));
    bed.prove(&[&nodes[0], &nodes[1]]);
}

#[test]
fn of_twenty_simultaneous_starts_one_runs_the_command() {
    let bed = Bed::new("twenty");
    let store = bed.file_store();
    let mut nodes: Vec<Node> = (0..20).map(|i| bed.node(&format!("n{i}")).store(&store).ttl("4s").start()).collect();
    let active = bed.wait_any_active(&nodes, s(20.0));
    stays(s(4.0), "only one runs", || nodes.iter().filter(|n| n.leader().is_some()).count() == 1);
    assert_eq!(bed.beats().lives().len(), 1, "started once");
    assert!(bed.runs(&nodes[active]));
    nodes.iter().for_each(|n| n.signal(Signal::SIGTERM));
    nodes.iter_mut().for_each(|n| assert_eq!(n.wait_end(s(20.0)), 0));
    bed.prove(&nodes.iter().collect::<Vec<_>>());
}

#[test]
fn a_crashed_holder_is_replaced_within_the_promised_time() {
    let bed = Bed::new("crash");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    std::thread::sleep(s(1.0)); // the standby has looked
    let start = Instant::now();
    a.crash();
    bed.wait_active(&b, s(6.0));
    // ttl + 10 %, and what this machine needs for everything else that runs on it.
    assert!(start.elapsed() < s(2.2 + 1.5), "the takeover took {:?}", start.elapsed());
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn try_takes_the_place_of_a_holder_that_crashed_long_ago() {
    let bed = Bed::new("try-dead");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).ttl("1s").start();
    bed.wait_active(&a, s(8.0));
    a.crash();
    // Nobody stands by, as with a job of cron: each try sees the record of the dead one.
    std::thread::sleep(s(1.5));
    let mut b = bed.node("b").store(&store).ttl("1s").args(&["--try"]).start();
    bed.wait_active(&b, s(5.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn an_orderly_stop_hands_over_at_once() {
    let bed = Bed::new("hand-over");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).ttl("10s").start();
    bed.wait_active(&a, s(15.0));
    let mut b = bed.node("b").store(&store).ttl("10s").start();
    b.wait_agent();
    std::thread::sleep(s(1.0));
    assert_eq!(a.stop(), 0);
    bed.wait_active(&b, s(5.0));
    b.stop();
    bed.prove(&[&a, &b]);
    let gaps = bed.beats().gaps();
    assert!(gaps[0] < s(1.0), "the hand-over took {gaps:?}");
}

#[test]
fn a_standby_that_stops_disturbs_nobody() {
    let bed = Bed::new("standby-stops");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    std::thread::sleep(s(0.5));
    assert_eq!(b.stop(), 0);
    stays(s(2.5), "a runs", || bed.runs(&a));
    a.stop();
    assert_eq!(bed.beats().lives().len(), 1);
    bed.prove(&[&a, &b]);
}

#[test]
fn try_ends_with_its_own_code_when_somebody_else_holds_the_lease() {
    let bed = Bed::new("try");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let start = Instant::now();
    let mut b = bed.node("b").store(&store).args(&["--try"]).start();
    assert_eq!(b.wait_end(s(3.0)), 75);
    assert!(start.elapsed() < s(1.5), "--try took {:?}", start.elapsed());
    stays(s(0.5), "a runs", || bed.runs(&a));
    a.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn try_runs_the_command_when_nobody_holds_the_lease() {
    let bed = Bed::new("try-free");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    a.stop();
    let mut b = bed.node("b").store(&store).args(&["--try"]).start();
    bed.wait_active(&b, s(3.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn wait_ends_with_the_same_code_after_its_time() {
    let bed = Bed::new("wait");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let start = Instant::now();
    let mut b = bed.node("b").store(&store).args(&["--wait", "2s"]).start();
    assert_eq!(b.wait_end(s(5.0)), 75);
    assert!(start.elapsed() >= s(1.9) && start.elapsed() < s(3.5), "--wait 2s took {:?}", start.elapsed());
    a.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn wait_runs_the_command_when_the_lease_comes_free_in_time() {
    let bed = Bed::new("wait-free");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).args(&["--wait", "20s"]).start();
    b.wait_agent();
    std::thread::sleep(s(0.5));
    a.stop();
    bed.wait_active(&b, s(4.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn the_token_grows_with_every_claim_and_the_command_is_told() {
    let bed = Bed::new("token");
    let store = bed.file_store();
    let mut told = Vec::new();
    for round in 0..4 {
        let name = ["a", "b"][round % 2];
        let mut node = bed.node(name).store(&store).start();
        wait_until(s(8.0), "a new life", || bed.beats().lives().len() > round);
        let env = crate::bed::environment(node.leader().unwrap());
        let get = |key: &str| env.iter().find_map(|v| v.strip_prefix(&format!("{key}="))).unwrap_or("").to_owned();
        assert_eq!((get("LOCUM_NODE").as_str(), get("LOCUM_SERVICE").as_str()), (name, "shop"));
        if round > 0 {
            assert_eq!(get("LOCUM_PREVIOUS_NODE"), ["a", "b"][(round + 1) % 2]);
        }
        told.push(get("LOCUM_TOKEN").parse::<u64>().unwrap());
        assert_eq!(node.stop(), 0);
    }
    assert!(told.windows(2).all(|w| w[0] < w[1]), "{told:?}");
}

#[test]
fn the_smallest_lease_works() {
    let bed = Bed::new("smallest");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).ttl("1s").start();
    bed.wait_active(&a, s(5.0));
    let mut b = bed.node("b").store(&store).ttl("1s").start();
    b.wait_agent();
    std::thread::sleep(s(0.7));
    a.crash();
    bed.wait_active(&b, s(4.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_challenger_counts_with_the_ttl_in_the_record() {
    let bed = Bed::new("two-ttls");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).ttl("6s").start();
    bed.wait_active(&a, s(12.0));
    let mut b = bed.node("b").store(&store).ttl("1s").start();
    b.wait_agent();
    // The host dies: nobody releases, and b has to wait for what a promised.
    let crashed = Instant::now();
    a.crash();
    bed.wait_active(&b, s(12.0));
    assert!(crashed.elapsed() > s(4.0), "taken over after {:?}", crashed.elapsed());
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_file_that_cannot_be_read_as_a_record_starts_nothing() {
    let bed = Bed::new("torn");
    let store = bed.file_store();
    fs::write(store.trim_start_matches("file:"), "{ half a rec").unwrap();
    let a = bed.node("a").store(&store).start();
    std::thread::sleep(s(4.0));
    assert!(bed.beats().is_empty(), "a command was started on a record that cannot be read");
    assert!(a.log().contains("cannot"), "it must say why: {}", a.log());
}

#[test]
fn a_record_put_back_from_a_backup_overlaps_nothing() {
    let bed = Bed::new("put-back");
    let store = bed.file_store();
    let file = store.trim_start_matches("file:").to_owned();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    a.stop();
    let free = fs::read(&file).unwrap();
    let b = bed.node("b").store(&store).start();
    bed.wait_active(&b, s(8.0));
    let mut c = bed.node("c").store(&store).start();
    c.wait_agent();
    std::thread::sleep(s(0.7));
    fs::write(&file, free).unwrap(); // it says: nobody
    std::thread::sleep(s(6.0));
    c.stop();
    bed.prove(&[&a, &b, &c]);
}

#[test]
fn a_store_that_cannot_be_written_at_the_start_says_so() {
    let bed = Bed::new("no-store");
    let mut a = bed.node("a").store("file:/proc/no/such/record").start();
    let code = a.wait_end(s(10.0));
    assert!([69, 77, 78].contains(&code), "exit code {code}: {}", a.log());
    assert!(a.log().contains("/proc/no/such"), "{}", a.log());
}

#[test]
fn a_file_system_that_other_hosts_may_share_is_refused_with_the_reason() {
    let bed = Bed::new("shared-disk");
    // Whatever is behind it (sshfs, GlusterFS, a bucket): the kernel calls it FUSE.
    let mut a = bed
        .node("a")
        .on_fuse(&bed.dir().join("fuse"))
        .store(&format!("file:{}/fuse/record", bed.dir().display()))
        .start();
    assert_eq!(a.wait_end(s(10.0)), 78, "{}", a.log());
    assert!(a.log().contains("FUSE") && a.log().contains("local file system"), "{}", a.log());
    assert!(bed.beats().is_empty());
}

#[test]
fn a_crashed_holder_is_replaced_within_what_check_prints() {
    let bed = Bed::new("crash-check");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    let printed = locum(&["check", "-c", a.config().to_str().unwrap(), "--json"]).stdout;
    let printed: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    let (from, to) =
        (printed["timing"]["takeover_from"].as_f64().unwrap(), printed["timing"]["takeover_to"].as_f64().unwrap());
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    b.wait_agent();
    std::thread::sleep(s(1.0));
    let crashed = boot_now();
    a.crash();
    bed.wait_active(&b, s(8.0));
    let took = (bed.beats().lives()[1].first - crashed) as f64 / 1e9;
    // Half a second for what else this machine does.
    assert!(took >= from - 0.05 && took <= to + 0.5, "{took:.2} s, and check says {from} to {to} s");
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn restarts_under_one_epoch_follow_each_other() {
    let bed = Bed::new("restarts");
    let mut a = bed.node("a").store(&bed.file_store()).beater(&["--end-after", "400", "--code", "1"]).start();
    wait_until(s(15.0), "four lives", || bed.beats().lives().len() >= 4);
    a.stop();
    let lives = bed.beats().lives();
    assert!(lives.iter().all(|l| l.epoch == lives[0].epoch && l.token == lives[0].token));
    bed.prove(&[&a]);
}

#[test]
fn the_status_shows_the_cluster() {
    let bed = Bed::new("cluster-status");
    let store = bed.file_store();
    let mut a = bed.node("a").store(&store).start();
    bed.wait_active(&a, s(8.0));
    let mut b = bed.node("b").store(&store).start();
    let two = |v: &serde_json::Value| v["cluster"]["members"].as_array().is_some_and(|m| m.len() == 2);
    let status = b.wait_status("two members", s(5.0), two);
    assert_eq!(status["cluster"]["holder"], "a");
    assert!(status["cluster"]["epoch"].as_u64().unwrap() >= 1);
    assert_eq!(status["local"]["node"], "b");
    assert_eq!(status["local"]["role"], "standby");
    assert_eq!(a.status().unwrap()["local"]["role"], "active");
    b.stop();
    a.stop();
}
