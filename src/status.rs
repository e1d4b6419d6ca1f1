//! What a host says about itself: the answer of the control socket, and half of
//! `locum status --json`. Durations are in seconds; no secret is ever part of it.

use crate::core::{Health, Role, Seen};
use serde::{Deserialize, Serialize};

/// This host, as its agent knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Local {
    /// The service.
    pub service: String,
    /// This node; empty without a lease.
    pub node: String,
    /// The life of the keeper.
    pub instance: String,
    /// The version of the program.
    pub version: String,
    /// The keeper's pid.
    pub keeper_pid: i32,
    /// The agent's pid.
    pub agent_pid: i32,
    /// How many agents were replaced in this keeper's life.
    pub agents_replaced: u32,
    /// Active or standby; none without a lease.
    pub role: Option<Role>,
    /// The epoch held, 0 if none.
    pub epoch: u64,
    /// The fencing token held, 0 if none.
    pub token: u64,
    /// Seconds until the command would be told to stop without another renewal; none
    /// if no lease is held, or none is used.
    pub deadline_left: Option<f64>,
    /// How the command is.
    pub health: Option<Health>,
    /// What the last check answered.
    pub health_detail: String,
    /// The leader's pid.
    pub pid: Option<i32>,
    /// Seconds since the command was started.
    pub uptime: Option<f64>,
    /// How often it was started again in this keeper's life.
    pub restarts: u64,
    /// Failed tries in a row.
    pub failed_tries: u32,
    /// How the command ended last.
    pub last_exit: String,
    /// What happens next, in words.
    pub next: String,
    /// How the tree is killed: with a cgroup, or by group and sweep.
    pub tree: String,
    /// Store calls that were written off and still hang.
    pub written_off: u32,
    /// The last trouble with the store, empty if the last call went well.
    pub store_trouble: String,
    /// Lines of the log that were dropped because it was stuck or full.
    pub log_lines_dropped: u64,
}

/// The cluster, as the store shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Who holds the lease.
    pub holder: Option<String>,
    /// Under which epoch.
    pub epoch: u64,
    /// With which fencing token.
    pub token: u64,
    /// Seconds since the epoch began, by the store's clock, if its history shows it.
    pub since: Option<f64>,
    /// Seconds since the last renewal, by the store's clock.
    pub renewed: Option<f64>,
    /// Seconds the holder promised.
    pub ttl: f64,
    /// Why the last change of holder happened.
    pub why: String,
    /// Every node that was heard.
    pub members: Vec<Seen>,
}
