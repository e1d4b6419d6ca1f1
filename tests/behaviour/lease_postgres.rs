//! Real nodes on a real PostgreSQL, with TLS and scram: outages, hangs, rights, load.

use crate::bed::{
    Bed, Node, PASSWORD, Pooler, Postgres, Server, Tree, arguments, boot_now, environment, locum, s, signal, stays,
    wait_until,
};
use nix::sys::signal::Signal;
use std::io::Write;
use std::time::Instant;

/// One active node and one standby.
fn pair(bed: &Bed, store: &str, ttl: &str) -> (Node, Node) {
    let a = bed.node("a").store(store).ttl(ttl).start();
    bed.wait_active(&a, s(20.0));
    let b = bed.node("b").store(store).ttl(ttl).start();
    b.wait_log("lease", s(5.0));
    std::thread::sleep(s(0.8)); // it has looked
    (a, b)
}

#[test]
fn of_twenty_simultaneous_starts_on_an_empty_database_one_runs_the_command() {
    let bed = Bed::new("pg-twenty");
    let pg = Postgres::start(&bed);
    let mut nodes: Vec<Node> = (0..20).map(|i| bed.node(&format!("n{i}")).store(&pg.url()).ttl("5s").start()).collect();
    bed.wait_any_active(&nodes, s(30.0));
    stays(s(4.0), "only one runs", || nodes.iter().filter(|n| n.leader().is_some()).count() == 1);
    assert_eq!(bed.beats().lives().len(), 1, "started once");
    nodes.iter().for_each(|n| n.signal(Signal::SIGTERM));
    nodes.iter_mut().for_each(|n| assert_eq!(n.wait_end(s(30.0)), 0));
    bed.prove(&nodes.iter().collect::<Vec<_>>());
    assert_eq!(pg.sql("select count(*) from locum.lease"), "1");
}

#[test]
fn a_crashed_holder_is_replaced_within_the_promised_time() {
    let bed = Bed::new("pg-crash");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    let start = Instant::now();
    a.crash();
    bed.wait_active(&b, s(6.0));
    assert!(start.elapsed() < s(2.2 + 1.5), "the takeover took {:?}", start.elapsed());
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_hand_over_takes_less_than_a_second() {
    let bed = Bed::new("pg-hand-over");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "5s");
    assert_eq!(a.stop(), 0);
    bed.wait_active(&b, s(5.0));
    let mut a = bed.node("a").store(&pg.url()).ttl("5s").start();
    std::thread::sleep(s(1.5));
    assert_eq!(b.stop(), 0);
    bed.wait_active(&a, s(5.0));
    a.stop();
    bed.prove(&[&a, &b]);
    let gaps = bed.beats().gaps();
    assert!(gaps.len() == 2 && gaps.iter().all(|g| *g < s(1.0)), "{gaps:?}");
}

#[test]
fn a_database_stopped_for_less_than_the_budget_goes_unnoticed() {
    let bed = Bed::new("pg-short");
    let mut pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "6s");
    let leader = a.leader();
    pg.stop();
    std::thread::sleep(s(0.8)); // of about 2.6 s that the budget of 6 s has
    pg.up();
    stays(s(6.0), "the same leader runs", || a.leader() == leader && b.leader().is_none());
    a.stop();
    b.stop();
    assert_eq!(bed.beats().lives()[0].leader, leader.unwrap());
    bed.prove(&[&a, &b]);
}

#[test]
fn a_database_stopped_for_more_than_the_budget_stops_the_command_in_time() {
    for crash in [false, true] {
        let bed = Bed::new("pg-long");
        let mut pg = Postgres::start(&bed);
        let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
        let tree = a.tree();
        if crash {
            pg.crash();
        } else {
            pg.stop();
        }
        wait_until(s(4.0), "the command to be gone", || tree.living().is_empty());
        stays(s(1.0), "nothing runs without a store", || a.leader().is_none() && b.leader().is_none());
        pg.up();
        wait_until(s(10.0), "somebody to run again", || bed.runs(&a) || bed.runs(&b));
        a.stop();
        b.stop();
        bed.prove(&[&a, &b]);
    }
}

/// The server hangs for longer than the budget, in one of several ways.
fn frozen(name: &str, freeze: fn(&mut Postgres)) {
    let bed = Bed::new(name);
    let mut pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    freeze(&mut pg);
    std::thread::sleep(s(5.0));
    pg.thaw();
    wait_until(s(12.0), "somebody to run again", || bed.runs(&a) || bed.runs(&b));
    stays(s(2.0), "one runs", || a.leader().is_some() != b.leader().is_some());
    a.stop();
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_frozen_server_stops_the_command_in_time_and_no_late_write_makes_two() {
    frozen("pg-frozen", Postgres::freeze);
}

#[test]
fn frozen_backends_alone_make_no_two() {
    frozen("pg-frozen-backends", Postgres::freeze_sessions);
}

#[test]
fn a_frozen_postmaster_alone_makes_no_two() {
    frozen("pg-frozen-postmaster", Postgres::freeze_postmaster);
}

#[test]
fn a_server_frozen_for_less_than_the_budget_goes_unnoticed() {
    let bed = Bed::new("pg-frozen-short");
    let mut pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "6s");
    let leader = a.leader();
    pg.freeze();
    std::thread::sleep(s(1.0));
    pg.thaw();
    stays(s(6.0), "the same leader runs", || a.leader() == leader && b.leader().is_none());
    a.stop();
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn written_off_calls_are_bounded_and_end_when_the_server_thaws() {
    let bed = Bed::new("pg-written-off");
    let mut pg = Postgres::start(&bed);
    let mut a = bed.node("a").store(&pg.url()).ttl("2s").start();
    bed.wait_active(&a, s(10.0));
    let threads = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let before = threads(a.wait_agent());
    pg.freeze();
    std::thread::sleep(s(6.0));
    let agent = a.wait_agent();
    assert!(threads(agent) <= before + 8, "{} threads, {before} before", threads(agent));
    pg.thaw();
    a.wait_status("no call written off", s(15.0), |v| v["local"]["written_off"] == 0);
    bed.wait_active(&a, s(10.0));
    a.stop();
    bed.prove(&[&a]);
}

#[test]
fn a_backend_that_thaws_after_the_release_was_given_up_makes_no_two() {
    let bed = Bed::new("pg-late-release");
    let mut pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    // All of it, or the release would find its way over a fresh session.
    pg.freeze();
    a.signal(Signal::SIGTERM);
    a.wait_end(s(12.0));
    assert!(a.log().contains("cannot release"), "{}", a.log());
    // Another life of the same node comes meanwhile.
    let mut again = bed.node("a").store(&pg.url()).ttl("2s").start();
    again.wait_agent();
    pg.thaw();
    wait_until(s(15.0), "somebody to run", || bed.runs(&b) || bed.runs(&again));
    stays(s(4.0), "one runs", || again.leader().is_some() != b.leader().is_some());
    again.stop();
    b.stop();
    bed.prove(&[&again, &b]);
}

#[test]
fn an_open_transaction_on_the_row_makes_no_two_and_its_end_brings_the_command_back() {
    let bed = Bed::new("pg-locked");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    let mut session = pg.session();
    session.stdin.as_mut().unwrap().write_all(b"begin; select * from locum.lease for update;\n").unwrap();
    std::thread::sleep(s(5.0));
    assert!(a.leader().is_none() && b.leader().is_none(), "nobody can renew");
    session.kill().unwrap();
    session.wait().unwrap();
    wait_until(s(10.0), "somebody to run again", || bed.runs(&a) || bed.runs(&b));
    a.stop();
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_servers_clock_stepped_by_an_hour_changes_nothing() {
    let bed = Bed::new("pg-clock");
    let pg = Postgres::start_as(&bed, Server { false_clock: true, ..Server::default() });
    let (mut a, mut b) = pair(&bed, &pg.url(), "3s");
    let leader = a.leader();
    for seconds in [3600, -3600, 0] {
        pg.step_clock(seconds);
        stays(s(4.0), "the same leader runs", || a.leader() == leader && b.leader().is_none());
    }
    // And a takeover under a wrong clock is as slow as under a right one.
    pg.step_clock(3600);
    std::thread::sleep(s(1.0));
    a.crash();
    bed.wait_active(&b, s(8.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn two_users_with_different_search_paths_share_one_lease() {
    let bed = Bed::new("pg-paths");
    let pg = Postgres::start(&bed);
    let mut a = bed.node("a").store(&pg.url()).start();
    bed.wait_active(&a, s(10.0));
    let mut b = bed.node("b").store(&Postgres::url_of(&[&pg], "locum2")).start();
    b.wait_agent();
    stays(s(4.0), "only a runs", || bed.runs(&a) && b.leader().is_none());
    a.stop();
    bed.wait_active(&b, s(5.0));
    b.stop();
    bed.prove(&[&a, &b]);
    assert_eq!(pg.sql("select count(*) from pg_class where relname = 'lease' and relkind = 'r'"), "1");
}

#[test]
fn a_pooler_in_transaction_mode_is_no_hindrance() {
    let bed = Bed::new("pg-pooler");
    let pg = Postgres::start(&bed);
    let pooler = Pooler::start(&bed, &pg);
    let (mut a, mut b) = pair(&bed, &pooler.url(), "3s");
    stays(s(4.0), "a runs", || bed.runs(&a));
    a.stop();
    bed.wait_active(&b, s(6.0));
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_default_of_serializable_is_no_hindrance() {
    let bed = Bed::new("pg-serializable");
    let settings = "default_transaction_isolation = 'serializable'".into();
    let pg = Postgres::start_as(&bed, Server { settings, ..Server::default() });
    let mut nodes: Vec<Node> = (0..4).map(|i| bed.node(&format!("n{i}")).store(&pg.url()).ttl("2s").start()).collect();
    let active = bed.wait_any_active(&nodes, s(15.0));
    let leader = nodes[active].leader();
    stays(s(6.0), "the same leader runs", || nodes[active].leader() == leader);
    nodes.iter_mut().for_each(|n| assert_eq!(n.stop(), 0));
    bed.prove(&nodes.iter().collect::<Vec<_>>());
}

#[test]
fn there_is_at_most_one_statement_a_node_and_cycle() {
    let bed = Bed::new("pg-load");
    let pg = Postgres::start_as(&bed, Server { settings: "log_statement = 'all'".into(), ..Server::default() });
    let (mut a, mut b) = pair(&bed, &pg.url(), "4s"); // cycle 500 ms
    std::thread::sleep(s(1.0));
    let statements = || {
        let user = |l: &&str| l.contains("] locum ") && (l.contains("LOG:  statement") || l.contains("LOG:  execute"));
        pg.log().lines().filter(user).count()
    };
    let (before, start) = (statements(), Instant::now());
    std::thread::sleep(s(6.0));
    let (count, cycles) = (statements() - before, start.elapsed().as_secs_f64() / 0.5);
    assert!(count as f64 <= 2.0 * (cycles + 1.0), "{count} statements of two nodes in {cycles:.0} cycles");
    assert!(count > 4, "{count}: the counting is wrong");
    a.stop();
    b.stop();
}

#[test]
fn without_rights_it_is_told_what_to_grant() {
    let bed = Bed::new("pg-rights");
    let pg = Postgres::start(&bed);
    let mut guest = bed.node("a").store(&Postgres::url_of(&[&pg], "guest")).start();
    assert_eq!(guest.wait_end(s(10.0)), 77, "{}", guest.log());
    let log = guest.log().to_lowercase();
    assert!(log.contains("grant") || log.contains("locum schema"), "{log}");
    assert!(!log.contains(PASSWORD));
}

#[test]
fn the_schema_can_be_made_beforehand_and_then_needs_no_right_to_create() {
    let bed = Bed::new("pg-schema");
    let pg = Postgres::start(&bed);
    let admin = bed.node("admin").store(&pg.url()).write();
    let printed = locum(&["schema", "-c", admin.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&printed.stdout).to_lowercase().contains("create table"));
    for _ in 0..2 {
        let applied = locum(&["schema", "-c", admin.to_str().unwrap(), "--apply"]);
        assert_eq!(applied.status.code(), Some(0), "{}", String::from_utf8_lossy(&applied.stderr));
    }
    pg.sql("grant usage on schema locum to guest");
    pg.sql("grant select, insert, update, delete on all tables in schema locum to guest");
    pg.sql("grant usage on all sequences in schema locum to guest");
    let mut guest = bed.node("a").store(&Postgres::url_of(&[&pg], "guest")).start();
    bed.wait_active(&guest, s(10.0));
    guest.stop();
    bed.prove(&[&guest]);
}

#[test]
fn the_row_is_kept_and_the_history_tells_every_change() {
    let bed = Bed::new("pg-history");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    a.stop();
    bed.wait_active(&b, s(5.0));
    b.crash();
    let mut c = bed.node("c").store(&pg.url()).start();
    bed.wait_active(&c, s(10.0));
    c.stop();
    bed.prove(&[&a, &b, &c]);
    assert_eq!(pg.sql("select count(*) from locum.lease"), "1");
    let history = pg.sql("select string_agg(what || ' ' || node, ', ' order by id) from locum.history");
    assert_eq!(history, "claim a, release a, claim b, takeover c, release c");
}

#[test]
fn an_unavailable_store_at_the_start_is_told_and_waited_for() {
    let bed = Bed::new("pg-away");
    let mut pg = Postgres::start(&bed);
    pg.stop();
    let mut once = bed.node("once").store(&pg.url()).args(&["--try"]).start();
    assert_eq!(once.wait_end(s(15.0)), 69, "{}", once.log());
    let mut a = bed.node("a").store(&pg.url()).start();
    std::thread::sleep(s(2.0));
    assert!(!a.has_ended(), "a standby waits for its store: {}", a.log());
    pg.up();
    bed.wait_active(&a, s(15.0));
    a.stop();
    bed.prove(&[&a]);
}

#[test]
fn killing_every_process_of_the_holder_one_by_one_makes_no_two() {
    let bed = Bed::new("pg-any-process");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    for victim in 0..3 {
        let (active, other) = if bed.runs(&a) { (&a, &b) } else { (&b, &a) };
        let pid = match victim {
            0 => active.leader().unwrap(),
            1 => active.wait_agent(),
            _ => active.keeper(),
        };
        signal(pid, Signal::SIGKILL);
        std::thread::sleep(s(0.5));
        wait_until(s(8.0), "somebody to run again", || bed.runs(active) || bed.runs(other));
    }
    let everything = Tree::of([a.leader(), b.leader()].into_iter().flatten());
    assert_eq!(everything.len(), 1);
    b.stop_if_running();
    a.stop_if_running();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_takeover_is_within_what_check_prints() {
    let bed = Bed::new("pg-crash-check");
    let pg = Postgres::start(&bed);
    let (mut a, mut b) = pair(&bed, &pg.url(), "2s");
    let printed = locum(&["check", "-c", b.config().to_str().unwrap(), "--json"]).stdout;
    let printed: serde_json::Value = serde_json::from_slice(&printed).unwrap();
    let to = printed["timing"]["takeover_to"].as_f64().unwrap();
    let crashed = boot_now();
    a.crash();
    bed.wait_active(&b, s(8.0));
    let took = (bed.beats().lives()[1].first - crashed) as f64 / 1e9;
    assert!(took <= to + 0.5, "{took:.2} s, and check says at most {to} s"); // this machine is busy
    b.stop();
    bed.prove(&[&a, &b]);
}

#[test]
fn a_record_that_was_made_now_is_waited_for_and_that_is_told() {
    let bed = Bed::new("pg-first-wait");
    let pg = Postgres::start(&bed);
    let start = Instant::now();
    let mut a = bed.node("a").store(&pg.url()).ttl("3s").start();
    bed.wait_active(&a, s(15.0));
    assert!(start.elapsed() > s(3.0), "it waited only {:?}", start.elapsed());
    assert!(a.log().contains("waiting one ttl"), "{}", a.log());
    a.stop();
    bed.prove(&[&a]);
}

/// Holds that a secret is nowhere it must not be: the log, `ps`, the command's environment.
fn is_kept(bed: &Bed, node: &Node, secret: &str) {
    assert!(!node.log().contains(secret), "the log shows {secret}");
    for pid in node.everything().living() {
        assert!(arguments(pid).iter().all(|word| !word.contains(secret)), "ps shows {secret}");
    }
    for pid in node.leader().map(|l| bed.beats().pids_of(l)).unwrap_or_default() {
        assert!(environment(pid).iter().all(|v| !v.contains(secret)), "the command was told {secret}");
    }
}

#[test]
fn secrets_reach_no_log_no_status_no_ps_and_not_the_command() {
    let bed = Bed::new("pg-secrets");
    let pg = Postgres::start(&bed);
    let bare = pg.url().replace(&format!(":{PASSWORD}"), "");
    // In the file, in libpq's variable, in our own variable.
    let in_file = |n: &str| bed.node(n).store(&pg.url());
    let in_libpq = |n: &str| bed.node(n).store(&bare).env("PGPASSWORD", PASSWORD);
    let in_ours = |n: &str| bed.node(n).store(&bare).env("LOCUM_LEASE_STORE", &pg.url());
    for (name, spec) in [("file", in_file("file")), ("libpq", in_libpq("libpq")), ("ours", in_ours("ours"))] {
        let mut a = spec.set("log", "level = \"trace\"").start();
        bed.wait_active(&a, s(12.0));
        let status = a.wait_status("its leader", s(5.0), |v| v["local"]["pid"].is_i64());
        assert!(!status.to_string().contains(PASSWORD), "{name}: status");
        is_kept(&bed, &a, PASSWORD);
        pg.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'locum'");
        std::thread::sleep(s(1.0));
        is_kept(&bed, &a, PASSWORD);
        a.stop();
        is_kept(&bed, &a, PASSWORD);
    }
}

#[test]
fn a_wrong_password_is_told_and_never_shown() {
    let bed = Bed::new("pg-wrong-password");
    let pg = Postgres::start(&bed);
    let wrong = "wr0ng-w0rd";
    let mut a = bed.node("a").store(&pg.url().replace(PASSWORD, wrong)).set("log", "level = \"trace\"").start();
    a.wait_log("password", s(10.0));
    is_kept(&bed, &a, wrong);
    if let Some(status) = a.status() {
        assert!(!status.to_string().contains(wrong), "{status}");
    }
    a.stop_if_running();
    is_kept(&bed, &a, wrong);
    assert!(bed.beats().is_empty());
}
