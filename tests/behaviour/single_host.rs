//! One host, no store: the command is started, stopped, restarted and killed as a whole.

use crate::bed::{Bed, Tree, alive, locum, s, signal, stays, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Instant;

#[test]
fn an_orderly_stop_ends_the_command_and_exits_with_0() {
    let bed = Bed::new("stop");
    let mut node = bed.node("a").start();
    bed.wait_active(&node, s(5.0));
    assert_eq!(node.stop(), 0);
    assert!(node.everything().living().is_empty());
    bed.prove_no_overlap();
}

#[test]
fn ctrl_c_is_an_orderly_stop() {
    let bed = Bed::new("int");
    let mut node = bed.node("a").start();
    bed.wait_active(&node, s(5.0));
    node.signal(Signal::SIGINT);
    assert_eq!(node.wait_end(s(5.0)), 0);
}

#[test]
fn a_setsid_grandchild_is_gone_after_stop() {
    for kind in ["with-cgroup", "without-cgroup", "unprivileged"] {
        let bed = Bed::new(kind);
        let spec = bed.node("a").beater(&["--member"]);
        let mut node = match kind {
            "without-cgroup" => spec.without_cgroup(),
            "unprivileged" => spec.unprivileged(),
            _ => spec,
        }
        .start();
        bed.wait_tree(&node, 3);
        let tree = node.tree();
        assert_eq!(node.stop(), 0, "{kind}");
        assert!(tree.living().is_empty(), "{kind}");
    }
}

#[test]
fn a_command_that_ignores_term_is_killed_after_the_stop_timeout() {
    let bed = Bed::new("deaf");
    let mut node = bed.node("a").beater(&["--ignore-term"]).start();
    bed.wait_active(&node, s(5.0));
    let start = Instant::now();
    assert_eq!(node.stop(), 0);
    let took = start.elapsed();
    assert!(took >= s(0.9) && took < s(3.0), "the stop took {took:?}, and stop_timeout is 1 s");
    assert!(node.everything().living().is_empty());
}

#[test]
fn a_second_term_kills_at_once() {
    let bed = Bed::new("twice");
    let mut node = bed.node("a").beater(&["--ignore-term"]).set("process", "stop_timeout = \"20s\"").start();
    bed.wait_active(&node, s(5.0));
    let start = Instant::now();
    node.signal(Signal::SIGTERM);
    std::thread::sleep(s(0.3));
    node.signal(Signal::SIGTERM);
    node.wait_end(s(5.0));
    assert!(start.elapsed() < s(3.0));
    assert!(node.everything().living().is_empty());
}

#[test]
fn a_killed_command_is_started_again_when_nothing_of_it_is_left() {
    let bed = Bed::new("restart");
    let mut node = bed.node("a").beater(&["--member"]).start();
    for _ in 0..3 {
        bed.wait_tree(&node, 3);
        let (leader, tree) = (node.leader().unwrap(), node.tree());
        signal(leader, Signal::SIGKILL);
        wait_until(s(5.0), "a new leader", || node.leader().is_some_and(|p| p != leader));
        assert!(tree.living().is_empty());
    }
    bed.wait_tree(&node, 3);
    node.stop();
    assert_eq!(bed.beats().lives().len(), 4);
    bed.prove_no_overlap();
}

#[test]
fn a_leader_that_ends_takes_its_grandchildren_with_it() {
    let bed = Bed::new("leader-ends");
    let mut node =
        bed.node("a").beater(&["--end-after", "300", "--code", "3"]).set("restart", "when = \"never\"").start();
    assert_eq!(node.wait_end(s(5.0)), 3);
    assert!(node.everything().living().is_empty());
}

#[test]
fn without_restarts_the_commands_own_code_is_the_exit_code() {
    for (line, code) in [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let bed = Bed::new("code");
        let mut node = bed.node("a").shell(line).set("restart", "when = \"never\"").start();
        assert_eq!(node.wait_end(s(5.0)), code, "{line}");
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_run_is_126() {
    let bed = Bed::new("no-command");
    let mut node = bed.node("a").command(r#"["/no/such/program"]"#).set("restart", "when = \"never\"").start();
    assert_eq!(node.wait_end(s(5.0)), 127);
    let log = node.log();
    assert!(log.contains("/no/such/program") && log.contains("exec"), "stage and path: {log}");
    assert!(log.contains("No such file") || log.contains("ENOENT"), "the cause: {log}");

    let file = bed.dir().join("plain");
    fs::write(&file, "not a program").unwrap();
    let mut node = bed.node("b").command(&format!("[{file:?}]")).set("restart", "when = \"never\"").start();
    assert_eq!(node.wait_end(s(5.0)), 126);
    assert!(node.log().contains("ermission") || node.log().contains("EACCES"), "{}", node.log());
}

#[test]
fn a_directory_that_is_not_there_is_told_as_such() {
    let bed = Bed::new("no-directory");
    let mut node =
        bed.node("a").set("process", "directory = \"/no/such/folder\"").set("restart", "when = \"never\"").start();
    assert_ne!(node.wait_end(s(5.0)), 0);
    let log = node.log();
    assert!(log.contains("/no/such/folder"), "{log}");
}

#[test]
fn a_user_that_it_cannot_become_is_told_as_such() {
    let bed = Bed::new("no-user");
    let spec = bed.node("a").set("process", "user = \"root\"").set("restart", "when = \"never\"");
    let mut node = spec.unprivileged().start();
    assert_eq!(node.wait_end(s(5.0)), 78, "known before anything is started");
    assert!(node.log().contains("process.user") && node.log().contains("only root"), "{}", node.log());
    assert!(bed.beats().is_empty());
}

#[test]
fn a_success_is_not_restarted_on_failure_and_a_failure_is() {
    let bed = Bed::new("on-failure");
    let mut good = bed.node("a").shell("exit 0").set("restart", "when = \"on-failure\"").start();
    assert_eq!(good.wait_end(s(5.0)), 0);

    let count = bed.dir().join("count");
    let line = format!("echo x >> {}; [ $(wc -l < {}) -ge 3 ]", count.display(), count.display());
    let mut bad = bed.node("b").shell(&line).set("restart", "when = \"on-failure\"").start();
    bad.wait_end(s(10.0));
    assert_eq!(fs::read_to_string(&count).unwrap().lines().count(), 3);
}

#[test]
fn the_pause_before_a_start_grows_with_the_failed_tries_up_to_its_cap() {
    let bed = Bed::new("backoff");
    let times = bed.dir().join("times");
    let line = format!("date +%s%N >> {}; exit 1", times.display());
    let node = bed.node("a").shell(&line).set("restart", "delay = \"200ms\"").set("restart", "max_factor = 3").start();
    let read = || -> Vec<f64> {
        fs::read_to_string(&times).unwrap_or_default().lines().map(|l| l.parse::<f64>().unwrap() / 1e9).collect()
    };
    wait_until(s(40.0), "nine starts", || read().len() >= 9);
    drop(node);
    let pauses: Vec<f64> = read().windows(2).map(|w| w[1] - w[0]).take(8).collect();
    for (pause, want) in pauses.iter().zip([0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]) {
        assert!(*pause >= want - 0.02, "pauses {pauses:?}");
    }
    // Without the cap these were 1.0 s and more; a busy machine may delay some of them.
    assert!(pauses[4..].iter().any(|p| *p < 0.9), "pauses {pauses:?}");
}

#[test]
fn the_command_starts_with_clean_signals_descriptors_and_environment() {
    let bed = Bed::new("clean");
    let out = bed.dir().join("out");
    let line = format!(
        "{{ grep -E '^Sig(Blk|Ign)' /proc/self/status; ls -l /proc/self/fd; env; echo done; }} > {} 2>&1; exec sleep 100",
        out.display()
    );
    let mut node = bed.node("a").shell(&line).env("NOTIFY_SOCKET", "/nowhere").env("WATCHDOG_USEC", "1000").start();
    wait_until(s(5.0), "the command's view", || fs::read_to_string(&out).is_ok_and(|t| t.contains("\ndone")));
    let text = fs::read_to_string(&out).unwrap();
    for line in text.lines().filter(|l| l.starts_with("Sig")) {
        assert!(line.ends_with("0000000000000000"), "a signal is blocked or ignored: {line}");
    }
    for held in ["socket:", "memfd", "timerfd", "signalfd", "eventfd", "eventpoll"] {
        assert!(!text.contains(held), "a stray descriptor: {text}");
    }
    for key in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_"] {
        assert!(!text.contains(key), "{key} reached the command");
    }
    assert!(text.contains("LOCUM_INSTANCE=") && text.contains("LOCUM_SERVICE=shop"), "{text}");
    node.stop();
}

#[test]
fn none_of_a_thousand_descendants_survives_a_stop() {
    for kind in ["with-cgroup", "without-cgroup"] {
        let bed = Bed::new(kind);
        let spec = bed.node("a").beater(&["--idle", "1000"]).set("process", "stop_timeout = \"300ms\"");
        let mut node = if kind == "without-cgroup" { spec.without_cgroup() } else { spec }.start();
        wait_until(s(30.0), "a thousand descendants", || node.tree().len() >= 1000);
        let tree = node.tree();
        assert_eq!(node.stop(), 0);
        assert!(tree.living().is_empty(), "{kind}");
    }
}

#[test]
fn a_stuck_stderr_delays_nothing() {
    let bed = Bed::new("stuck");
    // The command has an own output: only the supervisor's is stuck.
    let mut node = bed.node("a").with_stuck_stderr().start();
    bed.wait_active(&node, s(5.0));
    for _ in 0..3 {
        let leader = node.leader().unwrap();
        signal(leader, Signal::SIGKILL);
        wait_until(s(3.0), "a restart", || node.leader().is_some_and(|p| p != leader));
    }
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_full_disk_under_the_log_delays_nothing() {
    let bed = Bed::new("full");
    let mut node = bed.node("a").set("log", "file = \"/dev/full\"").start();
    bed.wait_active(&node, s(5.0));
    let leader = node.leader().unwrap();
    signal(leader, Signal::SIGKILL);
    wait_until(s(3.0), "a restart", || node.leader().is_some_and(|p| p != leader));
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_disk_that_fills_up_under_the_log_delays_nothing_and_what_was_dropped_is_told() {
    let bed = Bed::new("filled");
    let disk = bed.dir().join("disk");
    fs::create_dir(&disk).unwrap();
    let file = disk.join("log");
    let spec = bed.node("a").with_small_disk(&disk, "64k").set("log", &format!("file = {file:?}"));
    let mut node = spec.set("log", "level = \"trace\"").set("", "cycle = \"20ms\"").store(&bed.file_store()).start();
    bed.wait_active(&node, s(8.0));
    // The mount is in the node's own namespace; its root leads there.
    let seen = std::path::PathBuf::from(format!("/proc/{}/root{}", node.keeper(), file.display()));
    let filler = || fs::OpenOptions::new().create(true).append(true).open(seen.with_file_name("filler"));
    wait_until(s(20.0), "a full disk", || {
        use std::io::Write;
        filler().and_then(|mut f| f.write_all(&[b'x'; 4096])).is_err()
    });
    std::thread::sleep(s(1.0));
    for _ in 0..2 {
        let leader = node.leader().unwrap();
        signal(leader, Signal::SIGKILL);
        wait_until(s(3.0), "a restart", || node.leader().is_some_and(|p| p != leader));
        bed.wait_active(&node, s(3.0));
    }
    fs::remove_file(seen.with_file_name("filler")).unwrap();
    fs::OpenOptions::new().write(true).open(&seen).unwrap().set_len(0).unwrap();
    wait_until(s(5.0), "the log to tell what was dropped", || {
        fs::read(&seen).is_ok_and(|t| String::from_utf8_lossy(&t).contains("dropped"))
    });
    assert_eq!(node.stop(), 0);
    bed.prove_no_overlap();
}

#[test]
fn hup_reopens_the_log_and_leaves_the_command_alone() {
    let bed = Bed::new("hup");
    let file = bed.dir().join("out.log");
    let mut node = bed.node("a").set("log", &format!("file = {file:?}")).start();
    bed.wait_active(&node, s(5.0));
    wait_until(s(5.0), "a log", || fs::read_to_string(&file).is_ok_and(|t| !t.is_empty()));
    let leader = node.leader();
    fs::rename(&file, bed.dir().join("out.log.1")).unwrap();
    node.signal(Signal::SIGHUP);
    wait_until(s(5.0), "a new log", || file.exists());
    assert_eq!(node.leader(), leader);
    node.stop();
    assert!(!fs::read_to_string(&file).unwrap().is_empty());
}

#[test]
fn nothing_is_logged_per_cycle_at_info() {
    let bed = Bed::new("quiet");
    let mut node = bed
        .node("a")
        .set("", "cycle = \"200ms\"")
        .set("log", "level = \"info\"")
        .store(&bed.file_store())
        .ttl("4s")
        .start();
    bed.wait_active(&node, s(15.0));
    std::thread::sleep(s(1.0));
    let before = node.log().lines().count();
    std::thread::sleep(s(2.0));
    assert_eq!(node.log().lines().count(), before, "{}", node.log());
    node.stop();
}

#[test]
fn without_a_file_the_arguments_are_enough() {
    let bed = Bed::new("no-file");
    let out = bed.dir().join("out");
    let line = format!("echo \"$LOCUM_SERVICE $0 $1\" > {}; exit 5", out.display());
    let ended = locum(&["run", "--restart", "never", "--", "/bin/sh", "-c", &line, "zero", "one"]);
    assert_eq!(ended.status.code(), Some(5), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(fs::read_to_string(&out).unwrap().trim(), "sh zero one");
}

#[test]
fn a_stopped_command_is_stopped_all_the_same() {
    let bed = Bed::new("sigstop");
    let mut node = bed.node("a").start();
    bed.wait_active(&node, s(5.0));
    let tree = Tree::of(bed.beats().pids_of(node.leader().unwrap()));
    tree.living().iter().for_each(|p| signal(*p, Signal::SIGSTOP));
    assert_eq!(node.stop(), 0);
    assert!(tree.living().is_empty());
}

#[test]
fn the_status_shows_this_host() {
    let bed = Bed::new("status");
    let mut node = bed.node("a").start();
    bed.wait_active(&node, s(5.0));
    let status = node.wait_status("its leader", s(5.0), |v| v["local"]["pid"].is_i64());
    let local = &status["local"];
    assert_eq!(local["pid"].as_i64(), node.leader().map(i64::from));
    assert_eq!(local["keeper_pid"].as_i64(), Some(node.keeper().into()));
    assert_eq!(local["agent_pid"].as_i64(), node.agent().map(i64::from));
    assert_eq!(local["restarts"], 0);
    signal(node.leader().unwrap(), Signal::SIGKILL);
    node.wait_status("a restart", s(5.0), |v| v["local"]["restarts"] == 1);
    node.stop();
    stays(s(0.2), "the command is gone", || !alive(local["pid"].as_i64().unwrap() as i32));
}
