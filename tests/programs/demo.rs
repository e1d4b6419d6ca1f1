//! `make demo`: the main job in twenty seconds, without any server.
//!
//! Two nodes share a lease in a file. The command is a small HTTP service. The active
//! node is killed with -9, all of it, and the other one takes over. Each step is told
//! with its time since the start, and checked: anything that is not as promised ends the
//! demo with a failure. Whatever happens, nothing of it is left behind.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The whole demo ends by then, whatever happens.
const LIMIT: Duration = Duration::from_secs(19);
const TTL: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let demo = match Demo::new() {
        Ok(demo) => demo,
        Err(why) => {
            eprintln!("cannot prepare the demo: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut demo = demo;
    let result = demo.run();
    let seconds = demo.start.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("{seconds:6.2} s  done: all of it was as promised");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("{seconds:6.2} s  NOT AS PROMISED: {why}");
            demo.show_logs();
            ExitCode::FAILURE
        }
    }
}

/// Who answered: what the service says of itself.
struct Answer {
    node: String,
    epoch: u64,
    token: u64,
    pid: i32,
}

struct Demo {
    start: Instant,
    dir: PathBuf,
    binary: PathBuf,
    service: PathBuf,
    port: u16,
    nodes: Vec<(String, Child)>,
}

impl Demo {
    fn new() -> std::io::Result<Demo> {
        let me = std::env::current_exe()?;
        let examples = me.parent().unwrap_or(Path::new("."));
        let binary = examples.parent().unwrap_or(Path::new(".")).join("locum");
        let service = examples.join("demo_service");
        for file in [&binary, &service] {
            if !file.exists() {
                return Err(std::io::Error::other(format!("{} is not built: use make demo", file.display())));
            }
        }
        let dir = std::env::temp_dir().join(format!("locum-demo-{}", std::process::id()));
        fs::create_dir(&dir)?;
        // Free at the moment; the service has it to itself soon.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Demo { start: Instant::now(), dir, binary, service, port, nodes: Vec::new() })
    }

    fn run(&mut self) -> Result<(), String> {
        self.tell("two nodes, blue and green, share one lease in a file; it lasts 2 s");
        self.begin("blue")?;
        self.tell("blue is started (locum run -c blue.toml)");
        let first = self.wait("the service to answer", |d| d.ask())?;
        self.tell(&format!("the service runs on {}: epoch {}, token {}", first.node, first.epoch, first.token));
        if first.node != "blue" {
            return Err(format!("{} answers, though only blue was started", first.node));
        }
        self.begin("green")?;
        self.tell("green is started, and waits");
        self.wait("the health check to turn green", |d| (d.health("blue")? == "healthy").then_some(()))?;
        self.tell("the health check of the service on blue has turned healthy");
        self.wait("green to stand by", |d| (d.local("green", "role")? == "standby").then_some(()))?;
        self.hold(Duration::from_millis(1500), "blue")?;
        self.tell("for 1.5 s blue answered and green did not start a second copy");

        self.crash("blue", first.pid)?;
        let crashed = Instant::now();
        self.tell("blue is killed with -9: supervisor, agent and service at once");
        let second = self.wait("green to take over", |d| d.ask().filter(|a| a.node == "green"))?;
        let took = crashed.elapsed();
        self.tell(&format!(
            "the service runs on green after {:.2} s: epoch {}, token {}",
            took.as_secs_f64(),
            second.epoch,
            second.token
        ));
        if second.epoch <= first.epoch || second.token <= first.token {
            return Err("epoch and token must grow with each change of holder".into());
        }
        // ttl + 10 %, the service's own start, and slack for a busy machine; never before the
        // old lease can have ended (its last renewal was up to a quarter of it before).
        if took > TTL.mul_f64(1.1) + Duration::from_secs(2) {
            return Err(format!("the takeover took {:.2} s", took.as_secs_f64()));
        }
        if took < TTL.mul_f64(0.5) {
            return Err(format!("the takeover took only {:.2} s: the old lease had not ended", took.as_secs_f64()));
        }
        self.wait("the health check to turn green again", |d| (d.health("green")? == "healthy").then_some(()))?;
        self.tell("the health check of the service on green has turned healthy");

        self.begin("blue")?;
        self.tell("blue comes back, and waits");
        self.wait("blue to stand by", |d| (d.local("blue", "role")? == "standby").then_some(()))?;
        let before = Instant::now();
        self.stop("green")?;
        let third = self.wait("blue to take over", |d| d.ask().filter(|a| a.node == "blue"))?;
        self.tell(&format!(
            "green is stopped in order (exit 0); the service runs on blue after {:.2} s: token {}",
            before.elapsed().as_secs_f64(),
            third.token
        ));
        if third.token <= second.token {
            return Err("the token must grow with each change of holder".into());
        }
        self.stop("blue")?;
        if self.ask().is_some() {
            return Err("the service still answers after an orderly stop".into());
        }
        self.tell("blue is stopped in order (exit 0); the service is gone");
        Ok(())
    }

    fn tell(&self, what: &str) {
        println!("{:6.2} s  {what}", self.start.elapsed().as_secs_f64());
    }

    fn begin(&mut self, node: &str) -> Result<(), String> {
        let config = self.dir.join(format!("{node}.toml"));
        let text = format!(
            "service = \"demo\"\ncommand = [{:?}, \"{}\"]\ncycle = \"250ms\"\n\n[process]\nstop_timeout = \"1s\"\n\n\
             [restart]\ndelay = \"200ms\"\n\n[health]\nurl = \"http://127.0.0.1:{}/health\"\nstart_timeout = \"5s\"\n\
             timeout = \"2s\"\nrequest_timeout = \"500ms\"\n\n[lease]\nstore = \"file:{}/lease\"\nnode = \"{node}\"\n\
             ttl = \"{}s\"\n",
            self.service.display().to_string(),
            self.port,
            self.port,
            self.dir.display(),
            TTL.as_secs()
        );
        fs::write(&config, text).map_err(|e| e.to_string())?;
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{node}.log")))
            .map_err(|e| e.to_string())?;
        let child = Command::new(&self.binary)
            .args(["run", "-c"])
            .arg(&config)
            .env("LOCUM_DEMO", &self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot run {}: {e}", self.binary.display()))?;
        self.nodes.push((node.into(), child));
        Ok(())
    }

    fn take(&mut self, node: &str) -> Result<Child, String> {
        let at = self.nodes.iter().position(|(n, _)| n == node).ok_or("no such node")?;
        Ok(self.nodes.remove(at).1)
    }

    /// What a power failure does: everything of the node ends at once, unasked.
    fn crash(&mut self, node: &str, service: i32) -> Result<(), String> {
        let mut keeper = self.take(node)?;
        let pid = keeper.id() as i32;
        let mut all = vec![service];
        if let Some(agent) = self.local(node, "agent_pid").and_then(|p| p.parse().ok()) {
            all.push(agent);
        }
        // Stopped first, so that none of them can do anything about the end of another.
        for pid in [pid].iter().chain(&all) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        for pid in all.iter().chain(&[pid]) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        keeper.wait().map_err(|e| e.to_string())?;
        Ok(())
    }

    fn stop(&mut self, node: &str) -> Result<(), String> {
        let mut keeper = self.take(node)?;
        let _ = kill(Pid::from_raw(keeper.id() as i32), Signal::SIGTERM);
        let begun = Instant::now();
        loop {
            match keeper.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("{node} ended with {status}, not with 0")),
                None if begun.elapsed() > Duration::from_secs(4) || self.start.elapsed() > LIMIT => {
                    self.nodes.push((node.into(), keeper));
                    return Err(format!("{node} does not stop"));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&Demo) -> Option<T>) -> Result<T, String> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            for (node, child) in &mut self.nodes {
                if let Ok(Some(status)) = child.try_wait() {
                    return Err(format!("{node} ended ({status}) while we waited for {what}"));
                }
            }
            if begun.elapsed() > Duration::from_secs(8) || self.start.elapsed() > LIMIT {
                return Err(format!("waited {:.1} s in vain for {what}", begun.elapsed().as_secs_f64()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All through `time`, the service must answer from `node`.
    fn hold(&self, time: Duration, node: &str) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < time {
            match self.ask() {
                Some(answer) if answer.node == node => {}
                Some(answer) => return Err(format!("{} answers, and {node} should", answer.node)),
                None => return Err("the service does not answer".into()),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Asks the service who it is.
    fn ask(&self) -> Option<Answer> {
        let address = ([127, 0, 0, 1], self.port).into();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let words: Vec<&str> = text.split("\r\n\r\n").nth(1)?.split_whitespace().collect();
        let [node, epoch, token, pid] = words[..] else { return None };
        Some(Answer {
            node: node.into(),
            epoch: epoch.parse().ok()?,
            token: token.parse().ok()?,
            pid: pid.parse().ok()?,
        })
    }

    /// A value from `locum status --json` about this host, as text.
    fn local(&self, node: &str, key: &str) -> Option<String> {
        let config = self.dir.join(format!("{node}.toml"));
        let out = Command::new(&self.binary).args(["status", "--json", "-c"]).arg(config).output().ok()?;
        let value: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
        let value = &value["local"][key];
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    fn health(&self, node: &str) -> Option<String> {
        self.local(node, "health")
    }

    fn show_logs(&self) {
        for node in ["blue", "green"] {
            let text = fs::read_to_string(self.dir.join(format!("{node}.log"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- the last lines of {node}'s log");
            lines[lines.len().saturating_sub(20)..].iter().for_each(|l| println!("{l}"));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // In order at first, so that the supervisors clean up themselves; then by our mark.
        for (_, child) in &mut self.nodes {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            let _ = child.wait();
        }
        let mark = format!("LOCUM_DEMO={}", self.dir.display());
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
