//! What the deciding half (the agent) and the holding half (the keeper) tell each
//! other. How it travels is the wire's business.

use super::timing::{Boot, Limits};
use std::fmt;
use std::time::Duration;

/// From the agent to the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The lease of `epoch` holds until these limits. [`Limits::PAST`] ends it,
    /// [`Limits::FOREVER`] is the lease of a service without a store.
    Lease {
        /// Under which epoch; 0 without a store.
        epoch: u64,
        /// Until when.
        limits: Limits,
    },
    /// Start the command. Refused unless the tree is gone and the lease of this epoch runs.
    Start(Start),
    /// Send the stop signal to the group; kill the tree after `grace`.
    Stop {
        /// How long the command may take.
        grace: Duration,
    },
    /// Kill the whole tree now.
    Kill,
    /// Send a signal to the command's group.
    Signal(i32),
    /// What a fresh agent must not forget; at most [`MEMO_MAX`] bytes, opaque to the keeper.
    Memo(Vec<u8>),
    /// End the keeper with this exit code. Obeyed only when the tree is gone.
    Shutdown {
        /// The exit code of `locum run`.
        code: u8,
    },
    /// Said when nothing else was said for a cycle.
    Alive,
}

/// The most bytes that a memo may have.
pub const MEMO_MAX: usize = 1024;

/// What the command is started with, beyond the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Under which epoch; `LOCUM_EPOCH`. 0 without a store.
    pub epoch: u64,
    /// The fencing token; `LOCUM_TOKEN`. 0 without a store.
    pub token: u64,
    /// The node that held the lease before, if any; `LOCUM_PREVIOUS_NODE`.
    pub previous: String,
}

/// From the keeper to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The first packet to a fresh agent: how things stand.
    Hello(Snapshot),
    /// The command runs.
    Started {
        /// Its leader.
        pid: i32,
    },
    /// The command could not be started; nothing of it runs.
    StartFailed {
        /// At which step.
        stage: Stage,
        /// The system's error number.
        errno: i32,
    },
    /// The leader ended; the rest of the tree may still live.
    Exited(Exit),
    /// No process of the tree is left.
    Gone,
    /// The limits are in force.
    LeaseAck {
        /// As ordered.
        epoch: u64,
        /// As ordered.
        kill_at: Boot,
    },
    /// The outside asked for something: TERM, INT or QUIT mean an orderly stop, HUP a
    /// reopening of the log.
    Asked {
        /// The signal's number.
        signal: i32,
    },
    /// A line for the log, from the half that must not write one itself.
    Told {
        /// How much it matters.
        level: Level,
        /// The line.
        text: String,
    },
}

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Somebody has to act.
    Error,
    /// Something is not as it should be.
    Warn,
    /// An event that a person expects to find.
    Info,
    /// The course of things, per cycle.
    Debug,
}

/// How things stand with the keeper, for an agent that knows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The life of this keeper.
    pub instance: String,
    /// How many agents there were before this one.
    pub agents: u32,
    /// The epoch of the last `Lease` order, 0 if there was none.
    pub epoch: u64,
    /// The limits in force; [`Limits::PAST`] if there is no lease.
    pub limits: Limits,
    /// What is left of the command.
    pub tree: Tree,
    /// How its leader ended, if it has.
    pub exit: Option<Exit>,
    /// The token the command was last started with.
    pub token: u64,
    /// An orderly stop was asked for.
    pub stopping: bool,
    /// What the agent before this one wanted remembered.
    pub memo: Vec<u8>,
}

/// What is there of the command's process tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    /// No process.
    Gone,
    /// The leader lives.
    Running {
        /// Its pid.
        pid: i32,
        /// When it was started.
        since: Boot,
    },
    /// It was told to stop, or its leader ended; something may still live.
    Ending {
        /// The leader's pid, running or not.
        pid: i32,
    },
}

/// How the leader of the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The code that a shell would show: 128 + n for a signal.
    pub fn code(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(n) => u8::try_from(128 + n).unwrap_or(u8::MAX),
        }
    }
}

/// A signal's name as people know it, like SIGTERM; its number where it has none.
pub fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_string)
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(0) => f.write_str("exited with 0"),
            Exit::Code(code) => write!(f, "exited with {code}"),
            Exit::Signal(n) => write!(f, "was ended by {}", signal_name(*n)),
        }
    }
}

/// The steps between fork and the command's first instruction, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Making the process.
    Fork,
    /// Entering the command's own cgroup.
    Cgroup,
    /// Making the process group.
    Group,
    /// Taking on the user, the group and the supplementary groups.
    User,
    /// Entering the working directory.
    Directory,
    /// Asking to be killed with the keeper.
    ParentDeath,
    /// Running the program.
    Exec,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Fork => "fork",
            Stage::Cgroup => "cgroup",
            Stage::Group => "setpgid",
            Stage::User => "user",
            Stage::Directory => "chdir",
            Stage::ParentDeath => "prctl",
            Stage::Exec => "exec",
        })
    }
}
