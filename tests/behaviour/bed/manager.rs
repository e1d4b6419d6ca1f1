//! A stand-in for a service manager, with what the promise leans on: a cgroup that is
//! emptied when the main process ends, and a watchdog that ends a main process which
//! has fallen silent.

use super::ground;
use super::{Bed, Node};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One unit. On drop it is emptied and removed.
pub struct Manager {
    cgroup: PathBuf,
    socket: PathBuf,
    inbox: UnixDatagram,
    watchdog: Option<Duration>,
    said: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    /// A unit whose main process has to speak within `watchdog`.
    pub fn new(bed: &Bed, watchdog: Option<Duration>) -> Manager {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = ground::unified().join(ground::cgroup_name(&format!("{n}")));
        fs::create_dir(&cgroup).unwrap_or_else(|e| panic!("cannot make {}: {e}", cgroup.display()));
        let socket = bed.dir().join(format!("notify{n}"));
        let inbox = UnixDatagram::bind(&socket).unwrap();
        inbox.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Manager { cgroup, socket, inbox, watchdog, said: Arc::default(), over: Arc::default(), thread: None }
    }

    /// Where its processes are.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where it listens (NOTIFY_SOCKET).
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How long the main process may be silent.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// What the main process has said so far, a packet each.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// From now on the unit lives and dies with this node's keeper.
    pub fn watch(&mut self, node: &Node) {
        let (main, watchdog, cgroup) = (node.keeper(), self.watchdog, self.cgroup.clone());
        let (said, over) = (self.said.clone(), self.over.clone());
        let inbox = self.inbox.try_clone().unwrap();
        self.thread = Some(std::thread::spawn(move || {
            let mut fed = Instant::now();
            while !over.load(Ordering::SeqCst) {
                let mut packet = [0; 4096];
                if let Ok(n) = inbox.recv(&mut packet) {
                    let text = String::from_utf8_lossy(&packet[..n]).into_owned();
                    if text.contains("WATCHDOG=1") {
                        fed = Instant::now();
                    }
                    said.lock().unwrap().push(text);
                }
                let hung = watchdog.is_some_and(|limit| fed.elapsed() > limit);
                if hung || !super::alive(main) {
                    let why = if hung { "its watchdog was not fed" } else { "its main process ended" };
                    eprintln!("the unit of {main} is ended: {why}");
                    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
                    return;
                }
            }
        }));
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        ground::remove_cgroup(&self.cgroup);
    }
}
