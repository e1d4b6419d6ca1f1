//! Hosts as network namespaces on one bridge, whose cables can be cut.
//!
//! The bridge lives in a namespace of its own, so the machine's own network has no
//! route, bridge or address of the lab. Needs root.

use super::ground;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Some hosts and the switch between them. Hosts count from 1; host n is 10.77.0.n.
pub struct Lab {
    prefix: String,
    hosts: usize,
}

impl Lab {
    /// Makes the hosts.
    pub fn new(hosts: usize) -> Lab {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it makes network namespaces");
        ground::run_folder(); // sweeps the namespaces of dead runs
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{n}", ground::netns_prefix(&std::process::id().to_string()));
        let lab = Lab { prefix, hosts };
        let sw = lab.switch();
        ip(&format!("netns add {sw}"));
        ip(&format!("-n {sw} link add br0 type bridge mcast_snooping 0"));
        ip(&format!("-n {sw} link set br0 up"));
        for i in 1..=hosts {
            let ns = lab.host(i);
            ip(&format!("netns add {ns}"));
            ip(&format!("-n {ns} link add eth0 type veth peer name p{i} netns {sw}"));
            ip(&format!("-n {sw} link set p{i} master br0 up"));
            ip(&format!("-n {ns} addr add 10.77.0.{i}/24 dev eth0"));
            ip(&format!("-n {ns} link set lo up"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        lab.nft("table bridge lab { chain cuts { type filter hook forward priority 0; policy accept; }; }");
        lab
    }

    /// The namespace of a host.
    pub fn host(&self, i: usize) -> String {
        format!("{}-{i}", self.prefix)
    }

    /// The address of a host.
    pub fn address(&self, i: usize) -> String {
        format!("10.77.0.{i}")
    }

    /// Drops everything from one host to another, in this direction only.
    pub fn cut_from(&self, from: usize, to: usize) {
        self.nft(&format!("add rule bridge lab cuts iifname p{from} oifname p{to} counter drop"));
    }

    /// Drops everything between two hosts.
    pub fn cut(&self, a: usize, b: usize) {
        self.cut_from(a, b);
        self.cut_from(b, a);
    }

    /// Drops everything to and from a host: an unplugged cable that nobody is told of.
    pub fn isolate(&self, i: usize) {
        self.nft(&format!("add rule bridge lab cuts iifname p{i} counter drop"));
        self.nft(&format!("add rule bridge lab cuts oifname p{i} counter drop"));
    }

    /// Undoes every cut.
    pub fn heal(&self) {
        self.nft("flush chain bridge lab cuts");
    }

    /// A command that will run on a host. Only the network is another one: unlike
    /// `ip netns exec`, this leaves the mounts (and so the cgroups) as they are.
    pub fn command(ns: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{ns}")).arg("--");
        command
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.prefix)
    }

    fn nft(&self, rules: &str) {
        let mut nft = Lab::command(&self.switch())
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run nft: {e}"));
        nft.stdin.take().unwrap().write_all(format!("{rules}\n").as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft refused: {rules}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in (1..=self.hosts).map(|i| self.host(i)).chain([self.switch()]) {
            let _ = Command::new("ip").args(["netns", "del", &ns]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap_or_else(|e| panic!("cannot run ip: {e}"));
    assert!(status.success(), "this failed: ip {words}");
}
