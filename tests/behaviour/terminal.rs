//! In a real terminal, as a developer tries it.

use crate::bed::{Bed, MARK, alive, binary, children_of, free_port, s, wait_until};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// `locum run …` on a pseudo-terminal of its own; what is written to it is typed.
struct Terminal {
    child: Child,
}

impl Terminal {
    fn run(bed: &Bed, line: &str) -> Terminal {
        let line = format!("exec {} {line}", binary().display());
        let screen = std::fs::File::create(screen(bed)).unwrap();
        let child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &line, "/dev/null"])
            .current_dir(bed.dir())
            .env("RUNTIME_DIRECTORY", bed.dir().join("locum"))
            .env("SHELL", "/bin/sh")
            .env(MARK, bed.dir())
            .stdin(Stdio::piped())
            .stdout(screen)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run script: {e}"));
        Terminal { child }
    }

    fn ctrl_c(&mut self) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(b"\x03").unwrap();
        stdin.flush().unwrap();
    }

    fn wait_end(&mut self, bed: &Bed) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < s(10.0), "it does not end: {}", seen(bed));
            std::thread::sleep(s(0.01));
        }
    }

    /// The keeper: script's child.
    fn keeper(&self) -> i32 {
        let mut found = 0;
        wait_until(s(5.0), "a keeper", || {
            found = children_of(self.child.id() as i32).first().copied().unwrap_or(0);
            found != 0 && children_of(found).len() >= 2
        });
        found
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn screen(bed: &Bed) -> std::path::PathBuf {
    bed.dir().join("screen")
}

fn seen(bed: &Bed) -> String {
    std::fs::read_to_string(screen(bed)).unwrap_or_default()
}

fn configured(bed: &Bed, more: &[&str]) -> String {
    let file = bed.node("a").beater(more).set("process", "stop_timeout = \"20s\"").write();
    format!("run -c {}", file.display())
}

fn beats(bed: &Bed) -> Vec<i32> {
    let mut pids = Vec::new();
    wait_until(s(5.0), "a leader and a grandchild to beat", || {
        pids = bed.beats().0.iter().map(|b| b.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids.len() == 2
    });
    pids
}

#[test]
fn ctrl_c_in_a_terminal_is_one_orderly_stop() {
    let bed = Bed::new("tty");
    let mut terminal = Terminal::run(&bed, &configured(&bed, &["--last-word"]));
    let pids = beats(&bed);
    terminal.keeper();
    terminal.ctrl_c();
    assert_eq!(terminal.wait_end(&bed), 0, "{}", seen(&bed));
    assert!(pids.iter().all(|p| !alive(*p)));
    // TERM reached it once, from its keeper, and never the terminal's INT.
    assert_eq!(bed.beats().0.iter().filter(|b| b.role == "last").count(), 1);
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    let bed = Bed::new("tty-twice");
    let mut terminal = Terminal::run(&bed, &configured(&bed, &["--ignore-term"]));
    let pids = beats(&bed);
    terminal.keeper();
    let start = Instant::now();
    terminal.ctrl_c();
    std::thread::sleep(s(0.4));
    assert!(alive(pids[0]), "one Ctrl-C gives it its stop timeout");
    terminal.ctrl_c();
    terminal.wait_end(&bed);
    assert!(start.elapsed() < s(4.0), "it took {:?}", start.elapsed());
    assert!(pids.iter().all(|p| !alive(*p)));
}

#[test]
fn one_line_without_a_file_runs_a_web_server_watched_until_ctrl_c() {
    let bed = Bed::new("tty-web");
    let port = free_port();
    let line = format!("run --health http://127.0.0.1:{port}/ --cycle 200ms -- python3 -m http.server {port}");
    let mut terminal = Terminal::run(&bed, &line);
    wait_until(s(10.0), "the log to say healthy", || seen(&bed).contains("healthy"));
    terminal.ctrl_c();
    assert_eq!(terminal.wait_end(&bed), 0, "{}", seen(&bed));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
