//! The test bed: everything that a test needs to put real processes, real databases
//! and real networks around the product's binary, and to look at what they did.
//!
//! Whatever it starts, it ends: on drop, also when a test fails. A run that was
//! killed is swept by the next one ([`ground`]).

// The benchmark uses some of this, the tests the rest.
#![allow(dead_code, unused_imports)]

mod beats;
mod endpoint;
mod ground;
mod lab;
mod manager;
mod node;
mod postgres;
mod process;

pub use beats::{Beats, Deadlines, boot_now, check, renewal_gaps};
pub use endpoint::{Endpoint, Manner};
pub use ground::{MARK, cgroup_mount, free_port};
pub use lab::Lab;
pub use manager::Manager;
pub use node::{Node, NodeSpec, beater, binary, locum, locum_in};
pub use postgres::{PASSWORD, Pooler, Postgres, Server};
pub use process::{Tree, alive, arguments, children as children_of, environment, marked, signal};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The name all nodes of a test share.
pub const SERVICE: &str = "shop";

/// Seconds as a duration.
pub fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// One test's place: a folder, a file of beats, and the nodes' files.
pub struct Bed {
    dir: PathBuf,
}

impl Bed {
    /// A fresh folder; `name` is for people.
    pub fn new(name: &str) -> Bed {
        let dir = ground::fresh_folder(name);
        let bed = Bed { dir };
        std::fs::write(bed.beats_file(), "").unwrap();
        ground::open_to_all(&bed.beats_file(), 0o666);
        bed
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the beaters beat.
    pub fn beats_file(&self) -> PathBuf {
        self.dir.join("beats")
    }

    /// All beats so far.
    pub fn beats(&self) -> Beats {
        Beats::read(&self.beats_file())
    }

    /// The address of a store in a file that all nodes of this test share.
    pub fn file_store(&self) -> String {
        let dir = self.dir.join("store");
        std::fs::create_dir_all(&dir).unwrap();
        ground::open_to_all(&dir, 0o777);
        format!("file:{}/record", dir.display())
    }

    /// A node to be.
    pub fn node(&self, name: &str) -> NodeSpec {
        NodeSpec::new(self, name)
    }

    /// Waits until `node`'s leader beats.
    pub fn wait_active(&self, node: &Node, limit: Duration) {
        wait_until(limit, &format!("{} to run the command", node.name()), || self.runs(node));
    }

    /// Waits until one of `nodes` runs the command, and says which.
    pub fn wait_any_active(&self, nodes: &[Node], limit: Duration) -> usize {
        let mut found = 0;
        wait_until(limit, "a node to run the command", || {
            nodes.iter().position(|n| self.runs(n)).map(|i| found = i).is_some()
        });
        found
    }

    /// Waits until the whole tree of `node` beats: leader, grandchild, and a member if asked for.
    /// (To count processes is not enough: on the way to the grandchild there is one more.)
    pub fn wait_tree(&self, node: &Node, processes: usize) -> Tree {
        let mut pids = Vec::new();
        wait_until(Duration::from_secs(8), &format!("{processes} processes of {} to beat", node.name()), || {
            pids = node.leader().map(|l| self.beats().pids_of(l)).unwrap_or_default();
            pids.len() == processes && node.tree().len() == processes
        });
        Tree::of(pids)
    }

    /// Whether `node`'s leader has beaten just now.
    pub fn runs(&self, node: &Node) -> bool {
        let beats = self.beats();
        beats.last_leader(node.name()).is_some_and(|b| b.age() < Duration::from_millis(300))
    }

    /// The proof at a test's end: no two trees overlapped, tokens never decreased, and
    /// every tree was gone by its own deadline, as the nodes' agents logged them.
    pub fn prove(&self, nodes: &[&Node]) {
        let deadlines = Deadlines::from_logs(nodes.iter().map(|n| (n.name().to_owned(), n.log())));
        let beats = self.beats();
        assert!(!beats.is_empty(), "nothing ever beat: this test has proved nothing");
        if let Err(why) = check(&beats, Some(&deadlines)) {
            panic!("{why}");
        }
    }

    /// The same without a lease: trees of one node must not overlap either.
    pub fn prove_no_overlap(&self) {
        let beats = self.beats();
        assert!(!beats.is_empty(), "nothing ever beat: this test has proved nothing");
        if let Err(why) = check(&beats, None) {
            panic!("{why}");
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        ground::remove_folder(&self.dir);
    }
}

/// Waits for a condition, with a limit.
pub fn wait_until(limit: Duration, what: &str, mut cond: impl FnMut() -> bool) {
    let start = Instant::now();
    while !cond() {
        assert!(start.elapsed() < limit, "waited {:.1} s in vain for {what}", limit.as_secs_f64());
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// Holds that a condition is true all through a time.
pub fn stays(time: Duration, what: &str, mut cond: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(cond(), "after {:.1} s it was no longer so: {what}", start.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(50));
    }
}
