//! Several servers: a host list, a synchronous standby that is promoted, an old primary
//! that comes back.

use crate::bed::{Bed, Node, Postgres, Server, s, stays, wait_until};

/// A primary, its synchronous standby, and the store's address with both.
fn servers(bed: &Bed) -> (Postgres, Postgres, String) {
    let first = Postgres::start(bed);
    let second = first.standby(bed, "second", Server::default());
    let url = Postgres::url_of(&[&first, &second], "locum");
    (first, second, url)
}

/// An active node and a standby. After a promotion there is no synchronous standby until
/// somebody makes one: tests that go on then say `accept`.
fn pair(bed: &Bed, store: &str, async_store: &str) -> (Node, Node) {
    let start = |name: &str| {
        bed.node(name).store(store).ttl("3s").set("lease", &format!("async_store = \"{async_store}\"")).start()
    };
    let a = start("a");
    bed.wait_active(&a, s(15.0));
    let b = start("b");
    b.wait_agent();
    std::thread::sleep(s(1.0));
    (a, b)
}

fn end(bed: &Bed, mut a: Node, mut b: Node) {
    a.stop_if_running();
    b.stop_if_running();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_first_host_that_accepts_and_never_answers_is_no_hindrance() {
    let bed = Bed::new("fo-silent");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let pg = Postgres::start(&bed);
    let port = silent.local_addr().unwrap().port();
    let url =
        pg.url().replace(&format!("@127.0.0.1:{}", pg.port()), &format!("@127.0.0.1:{port},127.0.0.1:{}", pg.port()));
    let start = |name: &str| bed.node(name).store(&url).ttl("3s").set("lease", "async_store = \"accept\"").start();
    let a = start("a");
    bed.wait_active(&a, s(15.0));
    let b = start("b");
    let leader = a.leader();
    stays(s(5.0), "the same leader runs", || a.leader() == leader && b.leader().is_none());
    end(&bed, a, b);
}

#[test]
fn several_hosts_without_a_synchronous_standby_are_refused_with_the_reason() {
    let bed = Bed::new("fo-async");
    let (first, _second, url) = servers(&bed);
    first.sql("alter system set synchronous_standby_names = ''");
    first.sql("select pg_reload_conf()");
    let mut a = bed.node("a").store(&url).start();
    a.wait_log("synchronous_standby_names", s(10.0));
    std::thread::sleep(s(2.0));
    assert!(bed.beats().is_empty());
    a.stop_if_running();
}

#[test]
fn a_standby_promoted_under_load_makes_no_two_and_the_token_never_decreases() {
    let bed = Bed::new("fo-promote");
    let (mut first, second, url) = servers(&bed);
    let (a, b) = pair(&bed, &url, "accept");
    let token = bed.beats().lives()[0].token;
    first.crash();
    second.promote();
    wait_until(s(15.0), "somebody to run on the new primary", || {
        second.sql("select count(*) from locum.lease") == "1" && (bed.runs(&a) || bed.runs(&b))
    });
    stays(s(4.0), "one runs", || bed.runs(&a) != bed.runs(&b) || !bed.runs(&a));
    wait_until(s(10.0), "somebody to run", || bed.runs(&a) || bed.runs(&b));
    // A fresh claim on the new timeline: its token carries it.
    let (active, other) = if bed.runs(&a) { (a, b) } else { (b, a) };
    let mut active = active;
    active.crash();
    bed.wait_active(&other, s(10.0));
    let last = bed.beats().lives().last().unwrap().token;
    assert!(last > token && last >> 32 >= 2, "token {token} and then {last}");
    end(&bed, active, other);
}

#[test]
fn a_restarted_old_primary_first_in_the_list_is_not_believed() {
    let bed = Bed::new("fo-old-primary");
    let (mut first, second, url) = servers(&bed);
    let (a, b) = pair(&bed, &url, "accept");
    first.crash();
    second.promote();
    wait_until(s(20.0), "somebody to run on the new primary", || bed.runs(&a) || bed.runs(&b));
    std::thread::sleep(s(4.0));
    first.up();
    // Not only writable: its commits wait for nobody.
    first.sql("alter system set synchronous_standby_names = ''");
    first.sql("select pg_reload_conf()");
    assert_eq!(first.sql("select pg_is_in_recovery()"), "f");
    let seq = first.sql("select max(seq) from locum.lease");
    stays(s(6.0), "at most one runs", || !(bed.runs(&a) && bed.runs(&b)));
    // Also for one that starts now and has seen nothing yet.
    let mut c = bed.node("c").store(&url).ttl("3s").set("lease", "async_store = \"accept\"").start();
    std::thread::sleep(s(6.0));
    assert_eq!(first.sql("select max(seq) from locum.lease"), seq, "somebody wrote to the old primary");
    c.stop_if_running();
    let (mut a, mut b) = (a, b);
    a.stop_if_running();
    b.stop_if_running();
    bed.prove(&[&a, &b, &c]);
}

#[test]
fn another_cluster_at_the_same_address_is_refused() {
    let bed = Bed::new("fo-identity");
    let mut pg = Postgres::start(&bed);
    let a = bed.node("a").store(&pg.url()).start();
    bed.wait_active(&a, s(10.0));
    let b = bed.node("b").store(&pg.url()).start();
    b.wait_agent();
    std::thread::sleep(s(1.0));
    pg.stop();
    pg.change_identity();
    pg.up();
    wait_until(s(6.0), "nothing to run", || a.leader().is_none() && b.leader().is_none());
    a.wait_log("system identifier", s(8.0));
    stays(s(4.0), "nobody runs on another cluster", || a.leader().is_none() && b.leader().is_none());
    end(&bed, a, b);
}

#[test]
fn two_clusters_in_one_list_are_refused() {
    let bed = Bed::new("fo-two-clusters");
    let first = Postgres::start(&bed);
    let mut second = Postgres::start(&bed);
    second.stop();
    second.change_identity();
    second.up();
    let url = Postgres::url_of(&[&first, &second], "locum");
    let mut a = bed.node("a").store(&url).set("lease", "async_store = \"accept\"").start();
    a.wait_log("system identifier", s(8.0));
    std::thread::sleep(s(3.0));
    assert!(bed.beats().is_empty(), "{}", a.log());
    a.stop_if_running();
}

#[test]
fn a_lost_standby_makes_commits_hang_and_the_command_stop_in_time() {
    let bed = Bed::new("fo-no-standby");
    let (_first, mut second, url) = servers(&bed);
    let (a, b) = pair(&bed, &url, "refuse");
    second.stop();
    wait_until(s(6.0), "nothing to run: no write is safe", || a.leader().is_none() && b.leader().is_none());
    second.up();
    wait_until(s(15.0), "somebody to run again", || bed.runs(&a) || bed.runs(&b));
    end(&bed, a, b);
}

#[test]
fn a_cancelled_synchronous_commit_extends_nothing() {
    let bed = Bed::new("fo-cancel");
    let (first, mut second, url) = servers(&bed);
    let (a, b) = pair(&bed, &url, "refuse");
    let tree = a.tree();
    second.stop();
    // An impatient administrator lets every hanging commit go: each answers UPDATE 1 and a WARNING.
    let start = std::time::Instant::now();
    while start.elapsed() < s(5.0) {
        first.sql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
        std::thread::sleep(s(0.05));
    }
    assert!(tree.living().is_empty(), "a write that is on one server only has extended the lease");
    second.up();
    wait_until(s(15.0), "somebody to run again", || bed.runs(&a) || bed.runs(&b));
    end(&bed, a, b);
}
