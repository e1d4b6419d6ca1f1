//! The command that the tests supervise: a process tree that says, every 10 ms,
//! that it is alive.
//!
//! A leader, a double-forked grandchild in a session of its own, and on request a
//! third process that does not listen to TERM each append one line a beat to one
//! shared file, in one write:
//!
//! ```text
//! CLOCK_BOOTTIME-ns role pid node epoch token leader-pid
//! ```
//!
//! All hosts of a test share one kernel, so these times may be compared. The very
//! first deed of the leader is its first line. What this program must never do:
//! buffer a beat, or share a beat's write with another.

use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio, exit};
use std::thread;
use std::time::Duration;

const BEAT: Duration = Duration::from_millis(10);

const USAGE: &str = "usage: beater --beats FILE [options]
  --beats FILE       where to beat (required)
  --alone            no grandchild
  --member           also a child that does not listen to TERM
  --ignore-term      the leader does not listen to TERM
  --last-word        the leader says `last` on TERM and ends
  --idle N           also N descendants that only sleep, half of them in sessions of their own
  --http PORT        answer HTTP on 127.0.0.1:PORT
  --answer FILE      what to answer: a status, or `silent` (default 200)
  --end-after MS     end by itself after this time
  --code N           with this exit code
More options are read from BEATER_ARGS.";

#[expect(clippy::zombie_processes, reason = "who reaps them is what the tests look at")]
fn main() {
    let args = Args::parse();
    let mut beats = OpenOptions::new().append(true).create(true).open(&args.beats).unwrap_or_else(|e| {
        eprintln!("cannot open {}: {e}", args.beats);
        exit(1);
    });
    let mut beat = Beat::of_environment(&args);
    if args.role == "leader" {
        beat.write(&mut beats);
    }
    match args.role.as_str() {
        // The double fork: its child is an orphan from the start.
        "middle" => {
            args.spawn("grandchild", beat.leader);
            return;
        }
        "grandchild" => {
            nix::unistd::setsid().expect("a fresh child leads no group");
        }
        "member" => deaf(),
        _ => be_leader(&args, &beat),
    }
    loop {
        beat.write(&mut beats);
        thread::sleep(BEAT);
    }
}

#[expect(clippy::zombie_processes, reason = "who reaps them is what the tests look at")]
fn be_leader(args: &Args, beat: &Beat) {
    if args.ignore_term {
        deaf();
    }
    if args.last_word {
        last_word(args, beat);
    }
    if !args.alone {
        let mut middle = args.spawn("middle", beat.leader);
        thread::spawn(move || middle.wait());
    }
    if args.member {
        args.spawn("member", beat.leader);
    }
    if args.idle > 0 {
        // One shell makes them all: that is quicker than as many execs of ours.
        let script = "i=0; while [ $i -lt $1 ]; do if [ $((i % 2)) = 0 ]; then sleep 600 & else setsid sleep 600 & fi; i=$((i+1)); done";
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh", &args.idle.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("there is a shell");
        thread::spawn(move || shell.wait());
    }
    if let Some(port) = args.http {
        let answer = args.answer.clone();
        thread::spawn(move || serve(port, &answer));
    }
    if let Some(limit) = args.end_after {
        let code = args.code;
        thread::spawn(move || {
            thread::sleep(limit);
            exit(code);
        });
    }
}

/// Blocks TERM: the signal stays pending for ever.
fn deaf() {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().expect("blocking a signal cannot fail");
}

/// On TERM: one last line, then the end, without waiting for a beat.
fn last_word(args: &Args, beat: &Beat) {
    let (mut heard, said) = UnixStream::pair().expect("a socket pair");
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, said).expect("TERM can be caught");
    let mut beat = Beat { role: "last".into(), ..beat.clone() };
    let mut file = OpenOptions::new().append(true).open(&args.beats).expect("it was opened before");
    thread::spawn(move || {
        let _ = heard.read(&mut [0]);
        beat.write(&mut file);
        exit(0);
    });
}

/// A tiny HTTP endpoint whose answer is read from a file at each request.
fn serve(port: u16, answer: &str) {
    let listener = match TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("cannot listen on {port}: {e}");
            exit(3);
        }
    };
    for stream in listener.incoming().flatten() {
        let word = std::fs::read_to_string(answer).unwrap_or_default();
        let word = word.trim().to_owned();
        thread::spawn(move || reply(stream, &word));
    }
}

fn reply(mut stream: TcpStream, word: &str) {
    let _ = stream.read(&mut [0; 2048]);
    if word == "silent" {
        thread::sleep(Duration::from_secs(600));
    }
    let status = if word.is_empty() { "200" } else { word };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

/// One line, but for its time.
#[derive(Clone)]
struct Beat {
    role: String,
    leader: u32,
    rest: String,
}

impl Beat {
    fn of_environment(args: &Args) -> Beat {
        let env = |key: &str| std::env::var(key).ok().filter(|v| !v.is_empty()).unwrap_or_else(|| "-".into());
        let leader = args.leader.unwrap_or_else(std::process::id);
        let rest = format!("{} {} {} {leader}", env("LOCUM_NODE"), env("LOCUM_EPOCH"), env("LOCUM_TOKEN"));
        Beat { role: args.role.clone(), leader, rest }
    }

    fn write(&mut self, file: &mut File) {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the clock exists");
        let nanos = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let line = format!("{nanos} {} {} {}\n", self.role, std::process::id(), self.rest);
        let _ = file.write_all(line.as_bytes());
    }
}

#[derive(Default)]
struct Args {
    beats: String,
    role: String,
    leader: Option<u32>,
    alone: bool,
    member: bool,
    ignore_term: bool,
    last_word: bool,
    idle: u32,
    http: Option<u16>,
    answer: String,
    end_after: Option<Duration>,
    code: i32,
}

impl Args {
    fn parse() -> Args {
        let mut args = Args { role: "leader".into(), ..Args::default() };
        // Some supervisors take a program but no arguments for it.
        let more = std::env::var("BEATER_ARGS").unwrap_or_default();
        let mut words = std::env::args().skip(1).chain(more.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| usage());
            match word.as_str() {
                "--beats" => args.beats = value(),
                "--role" => args.role = value(),
                "--leader" => args.leader = value().parse().ok(),
                "--alone" => args.alone = true,
                "--member" => args.member = true,
                "--ignore-term" => args.ignore_term = true,
                "--last-word" => args.last_word = true,
                "--idle" => args.idle = value().parse().unwrap_or_else(|_| usage()),
                "--http" => args.http = Some(value().parse().unwrap_or_else(|_| usage())),
                "--answer" => args.answer = value(),
                "--end-after" => args.end_after = value().parse().ok().map(Duration::from_millis),
                "--code" => args.code = value().parse().unwrap_or_else(|_| usage()),
                // s6 hands its service's name to the program.
                name if !name.starts_with('-') => {}
                _ => usage(),
            }
        }
        if args.beats.is_empty() {
            usage();
        }
        args
    }

    fn spawn(&self, role: &str, leader: u32) -> std::process::Child {
        Command::new("/proc/self/exe")
            .env_remove("BEATER_ARGS")
            .args(["--beats", &self.beats, "--role", role, "--leader", &leader.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .expect("we can start ourselves")
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    exit(64);
}
