//! The agents of one keeper's life: one at a time, each with the same configuration.
//!
//! What must never happen here: an agent that is not followed by a fresh one, or that
//! costs the command anything but the lease's limits.

use crate::config::Config;
use crate::core::{Boot, Snapshot};
use crate::sys::{self, Executable, Input, Outcome, ParentDeath, Program, Setup};
use crate::tree::{self, Cgroup};
use crate::wire::End;
use nix::libc;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// An agent that lived for this long has shown that agents can live.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a killed agent may take to die before the next one is started beside it.
const DYING: Duration = Duration::from_secs(2);

/// What an agent ignores: it has to outlive a Ctrl-C, and its terminal, to clean up.
const IGNORED: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

pub struct Agents {
    program: Program,
    null: OwnedFd,
    config: OwnedFd,
    /// `cgroup.kill` and `cgroup.events`.
    cgroup: Option<[OwnedFd; 2]>,
    silence: Duration,
    nice: Option<i32>,
    current: Option<Agent>,
    /// A killed one that is not reaped yet, or 0.
    dying: i32,
    dying_until: Boot,
    deaths: u32,
    next_at: Boot,
}

struct Agent {
    pid: i32,
    end: Option<End>,
    outcome: OwnedFd,
    born: Boot,
    heard: Boot,
}

impl Agents {
    pub fn prepare(
        config: &Config,
        program: Vec<OsString>,
        cgroup: Option<&Cgroup>,
        silence: Duration,
        nice: Option<i32>,
    ) -> io::Result<Agents> {
        let (file, mut arguments) = match program.first() {
            Some(path) => (Executable::Paths(vec![CString::new(path.as_bytes())?]), program),
            // Open, so that every agent is the program that the keeper is, whatever its name holds by then.
            None => {
                let file = sys::lift(File::open("/proc/self/exe")?.as_fd())?;
                (Executable::Open(file), vec!["locum".into(), "agent".into()])
            }
        };
        let cgroup = match cgroup {
            Some(cgroup) => {
                arguments.push("--cgroup".into());
                let [kill, events] = cgroup.handed();
                Some([sys::lift(kill)?, sys::lift(events)?])
            }
            None => None,
        };
        let environment = std::env::vars_os().filter(|(name, _)| !tree::is_for_us(name));
        let json = serde_json::to_vec(config).map_err(io::Error::other)?;
        Ok(Agents {
            program: Program::new(file, &arguments, environment)?,
            null: sys::lift(File::open("/dev/null")?.as_fd())?,
            config: sys::lift(sys::sealed(c"locum-config", &json)?.as_fd())?,
            cgroup,
            silence,
            nice,
            current: None,
            dying: 0,
            dying_until: Boot::ZERO,
            deaths: 0,
            next_at: Boot::ZERO,
        })
    }

    /// Starts an agent, unless one was spawned already, and tells it how things stand.
    pub fn start(&mut self, state: &Snapshot, now: Boot) -> io::Result<()> {
        if self.current.is_none() {
            self.spawn(now)?;
        }
        if let Some(agent) = &mut self.current {
            // Its silence counts from here: before, it has nothing to answer.
            agent.heard = now;
        }
        if let Some(end) = self.end() {
            // One that does not hear it ends, or has ended, and a fresh one follows.
            let _ = end.send_hello(state);
        }
        Ok(())
    }

    /// Starts an agent that does nothing before it is told how things stand.
    pub fn spawn(&mut self, now: Boot) -> io::Result<()> {
        let (ours, theirs) = End::pair()?;
        let theirs = sys::lift(theirs.as_fd())?;
        let first = [theirs.as_fd(), self.config.as_fd()];
        let all;
        let inherit = match &self.cgroup {
            Some([kill, events]) => {
                all = [first[0], first[1], kill.as_fd(), events.as_fd()];
                all.as_slice()
            }
            None => first.as_slice(),
        };
        let setup = Setup {
            cgroup: None,
            ignored: &IGNORED,
            oom_score: None,
            nice: self.nice,
            user: None,
            directory: None,
            // It has to outlive us, to kill what we would leave.
            parent_death: ParentDeath::Survive,
            input: Input::From(self.null.as_fd()),
            inherit,
        };
        let spawned = sys::spawn(&mut self.program, &setup)?;
        self.current =
            Some(Agent { pid: spawned.pid, end: Some(ours), outcome: spawned.outcome, born: now, heard: now });
        Ok(())
    }

    /// Ends an agent that was spawned and told nothing, so has done nothing.
    pub fn dismiss(&mut self) {
        let Some(agent) = self.current.take() else { return };
        sys::kill(agent.pid, libc::SIGKILL);
        let give_up = sys::now().plus(DYING);
        while sys::reap(agent.pid).is_none() && !sys::now().has_reached(give_up) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The wire to the present agent.
    pub fn end(&self) -> Option<&End> {
        self.current.as_ref()?.end.as_ref()
    }

    /// Children of ours that are not of the command's tree; 0 where there is none.
    pub fn pids(&self) -> [i32; 2] {
        [self.current.as_ref().map_or(0, |a| a.pid), self.dying]
    }

    /// The agent has said something.
    pub fn heard(&mut self, now: Boot) {
        if let Some(agent) = &mut self.current {
            agent.heard = now;
        }
    }

    /// How long an agent may be silent.
    pub fn silence(&self) -> Duration {
        self.silence
    }

    pub fn is_silent(&self, now: Boot) -> bool {
        self.current.as_ref().is_some_and(|agent| now.has_reached(agent.heard.plus(self.silence)))
    }

    pub fn wants_start(&self, now: Boot) -> bool {
        self.current.is_none()
            && now.has_reached(self.next_at)
            && (self.dying == 0 || now.has_reached(self.dying_until))
    }

    /// When this has to be looked at without any other reason.
    pub fn due(&self) -> Boot {
        match &self.current {
            Some(agent) => agent.heard.plus(self.silence),
            None if self.dying == 0 => self.next_at,
            // Later by far, or at its reaping.
            None => self.dying_until,
        }
    }

    /// Whether the child that was reaped is the present agent.
    pub fn was_reaped(&mut self, pid: i32) -> bool {
        if self.dying == pid {
            self.dying = 0;
        }
        self.current.as_ref().is_some_and(|agent| agent.pid == pid)
    }

    /// Why the present agent could not be started, if it could not.
    pub fn outcome(&self) -> Outcome {
        self.current.as_ref().map_or(Outcome::Running, |agent| sys::read_outcome(agent.outcome.as_fd()))
    }

    /// Kills the present agent, which is still to be reaped.
    pub fn kill(&mut self) {
        if let Some(agent) = &self.current {
            sys::kill(agent.pid, libc::SIGKILL);
            self.dying = agent.pid;
            self.dying_until = sys::now().plus(DYING);
        }
    }

    /// The present agent is of no use any more: the next one follows at once, or after a
    /// growing pause when they keep dying, early enough to renew before `term_at`.
    pub fn lost(&mut self, now: Boot, term_at: Boot) {
        let lived = self.current.take().is_some_and(|agent| now.has_reached(agent.born.plus(SETTLED)));
        self.deaths = if lived { 1 } else { self.deaths.saturating_add(1) };
        let pause = match self.deaths {
            0 | 1 => Duration::ZERO,
            n => Duration::from_millis(10) * (1 << (n - 2).min(7)),
        };
        let most = Duration::from_secs(1).min(now.until(term_at) / 4);
        // Without a lease there is nothing to renew, and no hurry.
        let most = if now.has_reached(term_at) { Duration::from_secs(1) } else { most };
        self.next_at = now.plus(pause.min(most));
    }

    /// How many have died in a row.
    pub fn deaths(&self) -> u32 {
        self.deaths
    }

    /// Closes the wire; the agent ends by itself.
    pub fn close(&mut self) {
        if let Some(agent) = &mut self.current {
            agent.end = None;
        }
    }
}
