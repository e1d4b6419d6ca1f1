//! `make bench`: how long things take and what they cost, ours beside the tools that
//! people use today, in the same run on the same machine. Prints one table.
//!
//! Times are taken by the beater's first instruction on CLOCK_BOOTTIME, and by what
//! /proc says; a figure is the median of several runs. A tool that is not installed is
//! left out. `target/release/examples/figures WORD…` measures only rows with such a word.

#[path = "../behaviour/bed/mod.rs"]
mod bed;

use bed::{Bed, Endpoint, Manner, Node, Postgres, boot_now, s, signal, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

/// A row's name, its title, and what measures it.
type Row = (&'static str, &'static str, fn() -> Vec<Cell>);

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let rows: [Row; 9] = [
        ("start", "exec → the command's first instruction", starts),
        ("restart", "command killed → next first instruction (delay 0)", restarts),
        ("descendants", "1,000 descendants, half setsid: alive 5 s after stop", descendants),
        ("supervisor-killed", "supervisor killed with -9: command gone after", supervisor_killed),
        ("hand-over", "orderly hand-over: old gone → new first instruction", hand_over),
        ("takeover", "holder killed with -9 → new first instruction", takeover),
        ("stopped", "lock keeper stopped for ttl + 5 s: two at once for", stopped),
        ("memory", "private dirty memory of all its processes", memory),
        ("idle", "idle: voluntary switches and CPU a minute", idle),
    ];
    println!("{:<55}  {:<28} figure: median (least–most, n)", "what", "who");
    for (word, title, measure) in rows {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == word) {
            continue;
        }
        for (i, cell) in measure().into_iter().enumerate() {
            println!("{:<55}  {:<28} {}", if i == 0 { title } else { "" }, cell.who, cell.figure);
        }
    }
    println!("\nbinary: {:.2} MiB", fs::metadata(bed::binary()).map_or(0.0, |m| m.len() as f64 / 1_048_576.0));
    if let Some(crates) = crates() {
        println!("crates in its tree, itself included: {crates}");
    }
}

/// How many crates the program is made of, by `cargo tree`.
fn crates() -> Option<usize> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--no-dedupe"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&tree.stdout).into_owned();
    let names: std::collections::BTreeSet<&str> =
        text.lines().map(|l| l.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    tree.status.success().then_some(names.len())
}

/// One figure of one tool.
struct Cell {
    who: String,
    figure: String,
}

fn cell(who: &str, figure: impl Into<String>) -> Cell {
    Cell { who: who.into(), figure: figure.into() }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of several runs, and how far they spread.
fn spread(values: Vec<f64>, unit: &str) -> String {
    let n = values.len();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    if n == 0 { "–".into() } else { format!("{:.1} {unit}  ({least:.1}–{most:.1}, n {n})", median(values)) }
}

fn milliseconds(who: &str, values: Vec<f64>) -> Cell {
    cell(who, spread(values, "ms"))
}

fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"]
        .iter()
        .any(|d| fs::exists(format!("{d}/{program}")).unwrap_or(false))
}

/// Supervisors of one command, as they are told to run the beater.
const TOOLS: [&str; 6] = ["locum", "tini", "runsv", "s6-supervise", "supervisord", "monit"];

fn tools(which: &[&'static str]) -> impl Iterator<Item = &'static str> {
    TOOLS.into_iter().filter(|t| which.contains(t) && (*t == "locum" || installed(t)))
}

/// A supervisor with its beater.
struct Supervised {
    bed: Bed,
    child: Child,
    began: u64,
}

impl Supervised {
    /// Starts `tool` with a beater that is given these arguments.
    fn start(tool: &str, arguments: &str) -> Supervised {
        let bed = Bed::new(tool);
        let beats = bed.beats_file().display().to_string();
        let beater = bed::beater().display().to_string();
        let dir = bed.dir().join("service");
        fs::create_dir(&dir).unwrap();
        let words: Vec<String> = match tool {
            "locum" => {
                let spec = bed.node("a").set("restart", "delay = \"0s\"").set("log", "level = \"warn\"");
                let config = spec.beater(&arguments.split_whitespace().collect::<Vec<_>>()).write();
                vec![bed::binary().display().to_string(), "run".into(), "-c".into(), config.display().to_string()]
            }
            "tini" => vec!["tini".into(), "-s".into(), "--".into(), beater.clone()],
            "runsv" | "s6-supervise" => {
                symlink(&beater, dir.join("run")).unwrap();
                vec![tool.into(), dir.display().to_string()]
            }
            "supervisord" => {
                let conf = dir.join("conf");
                let d = dir.display();
                let text = format!(
                    "[supervisord]\nnodaemon=true\nlogfile={d}/log\npidfile={d}/pid\n[program:beater]\ncommand={beater}\n\
                     autorestart=true\nstartsecs=0\n"
                );
                fs::write(&conf, text).unwrap();
                vec!["supervisord".into(), "-c".into(), conf.display().to_string()]
            }
            "monit" => {
                let conf = dir.join("conf");
                let d = dir.display();
                let text = format!(
                    "set daemon 1\nset log {d}/log\nset pidfile {d}/pid\nset idfile {d}/id\nset statefile {d}/state\n\
                     check process beater matching \"{beater} --beats {beats}\"\nstart program = \"{beater} --beats {beats}\"\n"
                );
                fs::write(&conf, text).unwrap();
                fs::set_permissions(&conf, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                vec!["monit".into(), "-I".into(), "-c".into(), conf.display().to_string()]
            }
            other => unreachable!("{other} is not in the list"),
        };
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env(bed::MARK, bed.dir()).current_dir(bed.dir());
        if tool != "locum" && tool != "monit" {
            command.env("BEATER_ARGS", format!("--beats {beats} {arguments}"));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let began = boot_now();
        let child = command.spawn().unwrap();
        Supervised { bed, child, began }
    }

    /// Waits for the nth life; its first instruction.
    fn wait_life(&self, n: usize) -> Option<u64> {
        let start = Instant::now();
        while start.elapsed() < s(15.0) {
            if let Some(life) = self.bed.beats().lives().get(n - 1) {
                return Some(life.first);
            }
            sleep(s(0.005));
        }
        None
    }

    fn leader(&self) -> Option<i32> {
        self.bed.beats().lives().last().map(|l| l.leader)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn starts() -> Vec<Cell> {
    let one = |tool: &str| {
        let run = Supervised::start(tool, "--alone");
        run.wait_life(1).map(|first| (first - run.began) as f64 / 1e6)
    };
    tools(&["locum", "tini", "runsv", "s6-supervise", "supervisord"])
        .map(|tool| {
            let n = if tool == "supervisord" { 3 } else { 25 };
            milliseconds(tool, (0..n).filter_map(|_| one(tool)).collect())
        })
        .collect()
}

fn restarts() -> Vec<Cell> {
    tools(&["locum", "runsv", "s6-supervise", "supervisord"])
        .map(|tool| {
            let run = Supervised::start(tool, "--alone");
            let n = if tool == "locum" { 15 } else { 5 };
            let mut values = Vec::new();
            for life in 1..=n {
                if run.wait_life(life).is_none() {
                    break;
                }
                sleep(s(1.3)); // runsv waits a second when the command lived for less than one
                let killed = boot_now();
                signal(run.leader().unwrap(), Signal::SIGKILL);
                values.extend(run.wait_life(life + 1).map(|first| (first - killed) as f64 / 1e6));
            }
            milliseconds(tool, values)
        })
        .collect()
}

/// Everything that was started for a supervisor but itself.
fn below(run: &Supervised) -> Vec<i32> {
    let own = run.child.id() as i32;
    let ours = |pid: &i32| *pid != own && bed::arguments(*pid).get(1).is_none_or(|a| a != "agent");
    bed::marked(run.bed.dir()).into_iter().filter(ours).collect()
}

fn descendants() -> Vec<Cell> {
    tools(&["locum", "tini", "runsv", "s6-supervise", "supervisord"])
        .map(|tool| {
            let mut run = Supervised::start(tool, "--idle 1000");
            let start = Instant::now();
            while below(&run).len() < 1000 && start.elapsed() < s(40.0) {
                sleep(s(0.1));
            }
            let tree = bed::Tree::of(below(&run));
            let stop = Instant::now();
            signal(run.child.id() as i32, Signal::SIGTERM);
            let mut gone = None;
            while stop.elapsed() < s(5.0) {
                if gone.is_none() && run.child.try_wait().is_ok_and(|e| e.is_some()) {
                    gone = Some(stop.elapsed());
                }
                sleep(s(0.001));
            }
            let left = tree.living().len();
            let ended =
                gone.map_or("it has not ended".into(), |t| format!("ended after {:.0} ms", t.as_secs_f64() * 1e3));
            cell(tool, format!("{left} of {}  ({ended})", tree.len()))
        })
        .collect()
}

fn supervisor_killed() -> Vec<Cell> {
    tools(&["locum", "tini", "runsv", "s6-supervise", "supervisord"])
        .map(|tool| {
            let mut values = Vec::new();
            for _ in 0..7 {
                let run = Supervised::start(tool, "");
                if run.wait_life(1).is_none() {
                    continue;
                }
                sleep(s(0.3));
                let tree = bed::Tree::of(below(&run));
                let start = Instant::now();
                signal(run.child.id() as i32, Signal::SIGKILL);
                while !tree.living().is_empty() {
                    if start.elapsed() > s(2.0) {
                        return cell(tool, format!("it goes on ({} processes after 2 s)", tree.living().len()));
                    }
                    sleep(s(0.0005));
                }
                values.push(start.elapsed().as_secs_f64() * 1e3);
            }
            milliseconds(tool, values)
        })
        .collect()
}

fn pair(bed: &Bed, store: &str, ttl: &str) -> (Node, Node) {
    let start = |name: &str| {
        bed.node(name)
            .store(store)
            .ttl(ttl)
            .beater(&["--alone", "--last-word"])
            .set("restart", "delay = \"0s\"")
            .start()
    };
    let a = start("a");
    bed.wait_active(&a, s(20.0));
    let b = start("b");
    b.wait_agent();
    sleep(s(1.5));
    (a, b)
}

/// From the last line of the first tree to the first of the next, in milliseconds.
fn gap(bed: &Bed) -> Option<f64> {
    wait_until(s(10.0), "a second life", || bed.beats().lives().len() >= 2);
    bed.beats().gaps().first().map(|g| g.as_secs_f64() * 1e3)
}

fn hand_over() -> Vec<Cell> {
    let ground = Bed::new("hand-over");
    let pg = Postgres::start(&ground);
    let mut cells = Vec::new();
    for (who, url) in [("locum, PostgreSQL", Some(pg.url())), ("locum, file", None)] {
        let mut values = Vec::new();
        for _ in 0..7 {
            pg.sql("drop schema if exists locum cascade");
            let bed = Bed::new("hand-over");
            let store = url.clone().unwrap_or_else(|| bed.file_store());
            let (mut a, mut b) = pair(&bed, &store, "3s");
            a.stop();
            values.extend(gap(&bed));
            b.stop();
        }
        cells.push(milliseconds(who, values));
    }
    // The peer: a session that holds an advisory lock and runs the command from within.
    let session = |bed: &Bed| {
        let beats = bed.beats_file();
        let line = format!("\\! {} --alone --last-word --beats {}", bed::beater().display(), beats.display());
        Command::new("psql")
            .args(["-X", "-q", "-At", &pg.url(), "-c", "select pg_advisory_lock(7)", "-c", &line])
            .env(bed::MARK, bed.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut values = Vec::new();
    for _ in 0..7 {
        let bed = Bed::new("advisory");
        let mut first = session(&bed);
        wait_until(s(5.0), "the first", || bed.beats().lives().len() == 1);
        let mut second = session(&bed);
        sleep(s(0.5));
        signal(bed.beats().lives()[0].leader, Signal::SIGTERM);
        values.extend(gap(&bed));
        signal(bed.beats().lives()[1].leader, Signal::SIGTERM);
        let _ = (first.wait(), second.wait());
    }
    cells.push(milliseconds("psql, advisory lock", values));
    if let Some(etcd) = Etcd::start() {
        let mut values = Vec::new();
        for _ in 0..7 {
            let bed = Bed::new("etcd-hand-over");
            let (mut a, mut b) = etcd.pair(&bed);
            signal(bed.beats().lives()[0].leader, Signal::SIGTERM);
            values.extend(gap(&bed));
            let _ = (b.kill(), b.wait(), a.wait());
        }
        cells.push(milliseconds("etcdctl lock", values));
    }
    cells
}

fn takeover() -> Vec<Cell> {
    let ground = Bed::new("takeover");
    let pg = Postgres::start(&ground);
    let mut cells = Vec::new();
    let ours = [
        ("locum, PostgreSQL, ttl 2 s", Some(pg.url()), "2s"),
        ("locum, PostgreSQL, ttl 500 ms", Some(pg.url()), "500ms"),
        ("locum, file, ttl 2 s", None, "2s"),
    ];
    for (who, url, ttl) in ours {
        let mut values = Vec::new();
        for _ in 0..7 {
            pg.sql("drop schema if exists locum cascade");
            let bed = Bed::new("takeover");
            let store = url.clone().unwrap_or_else(|| bed.file_store());
            let (mut a, mut b) = pair(&bed, &store, ttl);
            a.crash();
            values.extend(gap(&bed));
            b.stop();
        }
        cells.push(milliseconds(who, values));
    }
    if let Some(etcd) = Etcd::start() {
        let mut values = Vec::new();
        for _ in 0..5 {
            let bed = Bed::new("etcd-takeover");
            let (mut a, mut b) = etcd.pair(&bed);
            a.kill().unwrap();
            signal(bed.beats().lives()[0].leader, Signal::SIGKILL);
            values.extend(gap(&bed));
            let _ = (b.kill(), b.wait(), a.wait());
        }
        cells.push(milliseconds("etcdctl lock --ttl 2", values));
    }
    cells
}

/// How long two trees beat at once, in seconds.
fn overlap(bed: &Bed) -> f64 {
    let lives = bed.beats().lives();
    let ns: u64 = lives.windows(2).map(|w| w[0].last.min(w[1].last).saturating_sub(w[1].first)).sum();
    ns as f64 / 1e9
}

fn stopped() -> Vec<Cell> {
    let ground = Bed::new("stopped");
    let pg = Postgres::start(&ground);
    let mut cells = Vec::new();
    for half in ["agent", "keeper"] {
        pg.sql("drop schema if exists locum cascade");
        let bed = Bed::new("stopped");
        let (a, mut b) = pair(&bed, &pg.url(), "2s");
        signal(if half == "agent" { a.wait_agent() } else { a.keeper() }, Signal::SIGSTOP);
        sleep(s(7.0));
        cells.push(cell(&format!("locum, {half} stopped"), format!("{:.1} s", overlap(&bed))));
        b.stop();
    }
    if let Some(etcd) = Etcd::start() {
        let bed = Bed::new("etcd-stopped");
        let (mut a, mut b) = etcd.pair(&bed);
        signal(a.id() as i32, Signal::SIGSTOP);
        sleep(s(7.0));
        cells.push(cell("etcdctl lock --ttl 2", format!("{:.1} s, and not ended", overlap(&bed))));
        let _ = (a.kill(), b.kill(), a.wait(), b.wait());
    }
    cells
}

/// One etcd on loopback.
struct Etcd {
    bed: Bed,
    child: Child,
    url: String,
}

impl Etcd {
    fn start() -> Option<Etcd> {
        if !installed("etcd") || !installed("etcdctl") {
            return None;
        }
        let bed = Bed::new("etcd");
        let url = format!("http://127.0.0.1:{}", bed::free_port());
        let peer = format!("http://127.0.0.1:{}", bed::free_port());
        let child = Command::new("etcd")
            .args(["--data-dir", &bed.dir().join("data").display().to_string(), "--name", "one"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .env(bed::MARK, bed.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let etcd = Etcd { bed, child, url };
        wait_until(s(15.0), "etcd to be healthy", || {
            etcd.ctl().args(["endpoint", "health"]).stderr(Stdio::null()).output().is_ok_and(|o| o.status.success())
        });
        Some(etcd)
    }

    fn ctl(&self) -> Command {
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).env(bed::MARK, self.bed.dir());
        ctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        ctl
    }

    /// Two that want one lock; the first has it.
    fn pair(&self, bed: &Bed) -> (Child, Child) {
        let name = bed.dir().file_name().unwrap().to_string_lossy().into_owned();
        let beats = bed.beats_file().display().to_string();
        let one = || {
            let beater: PathBuf = bed::beater().into();
            self.ctl()
                .args(["lock", "--ttl", "2", "--", &name])
                .arg(beater)
                .args(["--alone", "--last-word", "--beats", &beats])
                .env(bed::MARK, bed.dir())
                .spawn()
                .unwrap()
        };
        let a = one();
        wait_until(s(5.0), "the first lock", || bed.beats().lives().len() == 1);
        let b = one();
        sleep(s(1.0));
        (a, b)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ours in the set-ups that are compared: who, its keeper and agent; at the default cycle.
fn ours(bed: &Bed, pg: &Postgres, endpoint: &Endpoint) -> Vec<(&'static str, Node)> {
    let plain = |name: &str| {
        bed.node(name).set("", "cycle = \"5s\"").set("log", "level = \"info\"").command(r#"["sleep", "1000"]"#)
    };
    let health = format!("url = \"{}\"", endpoint.url());
    vec![
        ("locum, no store", plain("a").start()),
        ("locum, no store, health", plain("e").env("LOCUM_SERVICE", "healthy").set("health", &health).start()),
        ("locum, file store", plain("b").store(&bed.file_store()).ttl("20s").start()),
        ("locum, PostgreSQL + TLS", plain("c").store(&pg.url()).ttl("20s").start()),
        (
            "locum, PG + TLS + health",
            plain("d").store(&pg.url()).env("LOCUM_SERVICE", "other").ttl("20s").set("health", &health).start(),
        ),
    ]
}

/// A figure of each supervisor, taken over its own processes.
fn of_processes(settle: f64, take: impl Fn(&[(String, Vec<i32>)]) -> Vec<String>) -> Vec<Cell> {
    let bed = Bed::new("idle");
    let pg = Postgres::start(&bed);
    let endpoint = Endpoint::start(Manner::Status(200));
    let nodes = ours(&bed, &pg, &endpoint);
    let peers: Vec<(&str, Supervised)> = tools(&["runsv", "s6-supervise", "supervisord", "monit"])
        .map(|t| (t, Supervised::start(t, "--alone")))
        .collect();
    // A page of a file that was not written to disk yet counts as dirty, whoever maps it.
    nix::unistd::sync();
    sleep(s(settle));
    let mut all: Vec<(String, Vec<i32>)> =
        nodes.iter().map(|(who, n)| ((*who).to_owned(), vec![n.keeper(), n.wait_agent()])).collect();
    all.extend(peers.iter().map(|(who, p)| ((*who).to_owned(), vec![p.child.id() as i32])));
    take(&all).into_iter().zip(&all).map(|(figure, (who, _))| cell(who, figure)).collect()
}

fn memory() -> Vec<Cell> {
    let dirty = |pid: &i32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("Private_Dirty:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    of_processes(25.0, |all| {
        all.iter()
            .map(|(_, pids)| {
                let each: Vec<u64> = pids.iter().map(dirty).collect();
                format!("{} KiB  {each:?}", each.iter().sum::<u64>())
            })
            .collect()
    })
}

fn idle() -> Vec<Cell> {
    // Voluntary switches, and CPU time in nanoseconds, of all threads.
    let spent = |pids: &[i32]| -> (u64, u64) {
        let (mut switches, mut cpu) = (0, 0);
        for task in pids.iter().flat_map(|p| fs::read_dir(format!("/proc/{p}/task"))).flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches:")).unwrap_or_default();
            switches += line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            let sched = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            cpu += sched.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
        (switches, cpu)
    };
    of_processes(25.0, |all| {
        let before: Vec<_> = all.iter().map(|(_, pids)| spent(pids)).collect();
        sleep(s(60.0));
        all.iter()
            .zip(before)
            .map(|((_, pids), (switches, cpu))| {
                let now = spent(pids);
                let ms = now.1.saturating_sub(cpu) as f64 / 1e6;
                format!("{} switches, {ms:.1} ms CPU", now.0.saturating_sub(switches))
            })
            .collect()
    })
}
