//! Hosts whose network is cut, one way or both, silently.

use crate::bed::{Bed, Lab, MARK, Node, Postgres, Server, renewal_gaps, s, stays, wait_until};

/// Hosts 1 … n run nodes a, b, …; the last host is the database's.
struct Site {
    lab: Lab,
    nodes: Vec<Node>,
    store: usize,
    bed: Bed,
    // Last, so that everything above ends before it.
    _pg: Postgres,
}

fn site(name: &str, hosts: usize, ttl: &str) -> Site {
    let bed = Bed::new(name);
    let lab = Lab::new(hosts + 1);
    let store = hosts + 1;
    let server = Server { namespace: Some(lab.host(store)), address: Some(lab.address(store)), ..Server::default() };
    let pg = Postgres::start_as(&bed, server);
    let node = |i: usize| bed.node(["a", "b", "c"][i]).store(&pg.url()).ttl(ttl).on(&lab, i + 1).start();
    let mut nodes = vec![node(0)];
    bed.wait_active(&nodes[0], s(15.0));
    nodes.extend((1..hosts).map(node));
    nodes.iter().for_each(|n| {
        n.wait_agent();
    });
    std::thread::sleep(s(1.0));
    Site { lab, nodes, store, bed, _pg: pg }
}

impl Site {
    fn end(mut self) {
        self.nodes.iter_mut().for_each(Node::stop_if_running);
        self.bed.prove(&self.nodes.iter().collect::<Vec<_>>());
    }

    fn running(&self) -> Vec<&str> {
        self.nodes.iter().filter(|n| self.bed.runs(n)).map(Node::name).collect()
    }
}

#[test]
fn a_holder_that_is_cut_off_stops_and_another_takes_over() {
    let site = site("cut-off", 3, "2s");
    site.lab.isolate(1);
    wait_until(s(8.0), "another to take over", || site.bed.runs(&site.nodes[1]) || site.bed.runs(&site.nodes[2]));
    let second = site.running();
    assert_eq!(second.len(), 1);
    site.lab.heal();
    stays(s(4.0), "the healed host changes nothing", || site.running() == second);
    site.end();
}

#[test]
fn a_cut_shorter_than_the_budget_goes_unnoticed() {
    let site = site("short-cut", 2, "6s");
    let leader = site.nodes[0].leader();
    site.lab.isolate(1);
    std::thread::sleep(s(0.8));
    site.lab.heal();
    stays(s(7.0), "the same leader runs", || site.nodes[0].leader() == leader && site.nodes[1].leader().is_none());
    site.end();
}

#[test]
fn answers_that_are_lost_on_the_way_back_extend_nothing() {
    let site = site("one-way-back", 2, "2s");
    site.lab.cut_from(site.store, 1); // the holder's writes may arrive, their answers never do
    wait_until(s(10.0), "the other to take over", || site.bed.runs(&site.nodes[1]));
    site.lab.heal();
    stays(s(3.0), "one runs", || site.running().len() <= 1);
    site.end();
}

#[test]
fn requests_that_are_lost_on_the_way_there_end_the_lease() {
    let site = site("one-way-there", 2, "2s");
    site.lab.cut_from(1, site.store);
    wait_until(s(10.0), "the other to take over", || site.bed.runs(&site.nodes[1]));
    site.lab.heal();
    stays(s(3.0), "one runs", || site.running().len() <= 1);
    site.end();
}

#[test]
fn a_database_that_nobody_reaches_stops_everything_and_its_return_brings_one_back() {
    let site = site("black-hole", 3, "2s");
    site.lab.isolate(site.store);
    wait_until(s(5.0), "nothing to run", || site.nodes.iter().all(|n| n.leader().is_none()));
    std::thread::sleep(s(2.0));
    site.lab.heal();
    wait_until(s(12.0), "somebody to run again", || site.running().len() == 1);
    site.end();
}

#[test]
fn hosts_cut_from_each_other_but_not_from_the_database_notice_nothing() {
    let site = site("peers-cut", 2, "2s");
    let leader = site.nodes[0].leader();
    site.lab.cut(1, 2);
    stays(s(5.0), "the same leader runs", || site.nodes[0].leader() == leader && site.nodes[1].leader().is_none());
    site.end();
}

/// A name server on host `n` of a lab that hears everything and never answers, and a
/// resolv.conf that names it.
fn silent_resolver(bed: &Bed, lab: &Lab, n: usize) -> (std::process::Child, std::path::PathBuf) {
    let script = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))\n\
                  while True: s.recv(4096)";
    let mut python = Lab::command(&lab.host(n));
    let child = python.args(["python3", "-c", script]).env(MARK, bed.dir()).spawn().unwrap();
    let file = bed.dir().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {}\n", lab.address(n))).unwrap();
    (child, file)
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[test]
fn a_name_look_up_that_hangs_is_bounded_for_the_store() {
    let bed = Bed::new("dns-store");
    let lab = Lab::new(2);
    let server = Server { namespace: Some(lab.host(2)), address: Some(lab.address(2)), ..Server::default() };
    let pg = Postgres::start_as(&bed, server);
    let (mut dns, file) = silent_resolver(&bed, &lab, 2);
    // The first of the list cannot be looked up; the second is an address.
    let url = pg.url().replace('@', "@db.example.net,");
    let spec = bed.node("a").store(&url).ttl("3s").set("lease", "async_store = \"accept\"");
    let mut a = spec.on(&lab, 1).with_file_over(&file, "/etc/resolv.conf").start();
    bed.wait_active(&a, s(20.0));
    let leader = a.leader();
    stays(s(8.0), "the same leader runs", || a.leader() == leader);
    assert!(threads(a.wait_agent()) <= 20, "{} threads", threads(a.wait_agent()));
    assert_eq!(a.stop(), 0);
    bed.prove(&[&a]);
    dns.kill().unwrap();
    dns.wait().unwrap();
}

#[test]
fn a_name_look_up_that_hangs_is_bounded_for_the_health_check() {
    let bed = Bed::new("dns-health");
    let lab = Lab::new(2);
    let (mut dns, file) = silent_resolver(&bed, &lab, 2);
    let spec = bed.node("a").store(&bed.file_store()).ttl("4s").set("", "cycle = \"200ms\"");
    let spec = spec.set("health", "url = \"http://app.example.net/\"").set("health", "start_timeout = \"60s\"");
    let spec = spec.set("health", "request_timeout = \"500ms\"");
    let mut a = spec.on(&lab, 1).with_file_over(&file, "/etc/resolv.conf").start();
    bed.wait_active(&a, s(10.0));
    let (leader, start) = (a.leader(), std::time::Instant::now());
    a.wait_status("a verdict", s(5.0), |v| v["local"]["health_detail"].as_str().is_some_and(|d| !d.is_empty()));
    assert!(start.elapsed() < s(4.0), "the verdict took {:?}", start.elapsed());
    stays(s(8.0), "the same leader runs", || a.leader() == leader);
    assert!(threads(a.wait_agent()) <= 16, "{} threads", threads(a.wait_agent()));
    let longest = renewal_gaps(&a.log()).into_iter().max().unwrap();
    assert!(longest < s(0.6), "{longest:?} between two renewals");
    assert_eq!(a.stop(), 0);
    bed.prove(&[&a]);
    dns.kill().unwrap();
    dns.wait().unwrap();
}

#[test]
fn a_flapping_network_never_makes_two() {
    let site = site("flapping", 3, "2s");
    for round in 0..6 {
        site.lab.isolate(1 + round % 3);
        std::thread::sleep(s(1.3));
        site.lab.heal();
        std::thread::sleep(s(0.5));
    }
    wait_until(s(12.0), "somebody to run", || site.running().len() == 1);
    site.end();
}
