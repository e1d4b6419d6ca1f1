//! The simulated keeper, after the rules of section 1 of the design, and the process
//! trees that it holds.
//!
//! It is a model: what it does is what the real keeper has to do. The agents inside
//! are real.

use super::clock::{Ns, has_passed};
use super::world::{Happens, MS, Who, World, show};
use crate::core::{Boot, Event, Exit, Limits, Node, Order, Report, Snapshot, Stage, Start, Tree as Left};
use std::time::Duration;

/// The longest that a tree takes to die, as a share of κ.
const WORST_KILL: f64 = 0.98;
/// The latest that the keeper wakes, as a share of j.
const WORST_LATE: f64 = 0.93;

/// The process that decides.
pub struct Agent {
    pub n: u32,
    pub node: Node,
    /// Counts its sleeps: only the last one wakes it.
    pub wake: u64,
    pub idle_wakes: u32,
    pub hangs_until: Ns,
    /// Dead, and not yet seen to be.
    dead: bool,
    /// The call to the store that it waits for.
    pub open: Option<u64>,
    born: Ns,
}

/// The process that holds the command.
pub struct Keeper {
    pub life: u32,
    pub instance: String,
    pub agent: Option<Agent>,
    agents: u32,
    /// Agents that died young, in a row.
    deaths: u32,
    epoch: u64,
    token: u64,
    limits: Limits,
    tree: Option<usize>,
    /// When a stop that was asked for, or begun at `term_at`, becomes a kill.
    kill_by: Option<Boot>,
    exit: Option<Exit>,
    exit_told: bool,
    memo: Vec<u8>,
    pub stopping: bool,
    forced: bool,
    heard: Boot,
    pub stopped_until: Ns,
    wake: u64,
    pub to_keeper: Ns,
    to_agent: Ns,
    /// Its agent has seen that it is dead.
    mourned: bool,
    /// Renewals confirmed while it was stopped.
    pub unheard: u32,
    /// For the checks: epoch and `s + D` of the last swap whose success its agent saw.
    pub confirmed: Option<(u64, Boot)>,
}

/// A tree of processes.
pub struct Tree {
    pub host: usize,
    pub life: u32,
    pub epoch: u64,
    pub pid: i32,
    since: Boot,
    pub leader_lives: bool,
    pub termed: bool,
    /// Ignores the stop signal.
    deaf: bool,
    /// Its program cannot be executed.
    fails: bool,
    /// Whether the keeper knows that it runs, or cannot.
    settled: bool,
    dying: bool,
    pub gone: Option<Ns>,
    /// Its own `s + D`, by its host's clocks.
    pub end: Boot,
    /// Its machine slept: until then only the token can help.
    pub excused_until: Ns,
    pub must_be_gone: Option<Ns>,
}

impl World {
    fn keeper(&mut self, host: usize, life: u32) -> Option<&mut Keeper> {
        self.hosts[host].keeper.as_mut().filter(|keeper| keeper.life == life)
    }

    pub fn keeper_starts(&mut self, host: usize) {
        if self.hosts[host].keeper.is_some() {
            return;
        }
        self.run_may_make_record(host);
        let now = self.hosts[host].clock.read(self.t);
        self.hosts[host].life += 1;
        let life = self.hosts[host].life;
        self.hosts[host].keeper = Some(Keeper {
            life,
            instance: format!("h{host}i{life}"),
            agent: None,
            agents: 0,
            deaths: 0,
            epoch: 0,
            token: 0,
            limits: Limits::PAST,
            tree: None,
            kill_by: None,
            exit: None,
            exit_told: true,
            memo: Vec::new(),
            stopping: false,
            forced: false,
            heard: now,
            stopped_until: 0,
            wake: 0,
            to_keeper: self.t,
            to_agent: self.t,
            mourned: false,
            unheard: 0,
            confirmed: None,
        });
        self.note(|| format!("host {host}: keeper {life} starts"));
        self.after(MS, Happens::AgentStarts { host, life });
    }

    pub fn keeper_starts_agent(&mut self, host: usize, life: u32) {
        let setup = self.setup(host);
        let now = self.hosts[host].clock.read(self.t);
        let t = self.t;
        let trees = &self.trees;
        let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|keeper| keeper.life == life) else { return };
        if keeper.agent.is_some() {
            return;
        }
        let tree = match keeper.tree.map(|tree| &trees[tree]) {
            None => Left::Gone,
            Some(tree) if tree.leader_lives && !tree.termed && !tree.dying => {
                Left::Running { pid: tree.pid, since: tree.since }
            }
            Some(tree) => Left::Ending { pid: tree.pid },
        };
        let snapshot = Snapshot {
            instance: keeper.instance.clone(),
            agents: keeper.agents,
            epoch: keeper.epoch,
            limits: keeper.limits,
            tree,
            exit: keeper.exit,
            token: keeper.token,
            stopping: keeper.stopping,
            memo: keeper.memo.clone(),
        };
        keeper.agents += 1;
        let n = keeper.agents;
        let node = Node::new(setup, now, &snapshot);
        keeper.agent =
            Some(Agent { n, node, wake: 0, idle_wakes: 0, hangs_until: 0, dead: false, open: None, born: t });
        keeper.heard = now;
        let who = Who { host, life, agent: n };
        self.note(|| format!("{} starts: tree {:?}, epoch {}", show(who), snapshot.tree, snapshot.epoch));
        self.report(host, Report::Hello(snapshot));
        self.keeper_arms(host, life);
    }

    fn report(&mut self, host: usize, report: Report) {
        let delay = self.wire();
        let t = self.t;
        let Some(keeper) = self.hosts[host].keeper.as_mut() else { return };
        let Some(agent) = &keeper.agent else { return };
        let who = Who { host, life: keeper.life, agent: agent.n };
        keeper.to_agent = keeper.to_agent.max(t + delay);
        let at = keeper.to_agent;
        self.at(at, Happens::ToAgent { who, event: Box::new(Event::Keeper(report)) });
    }

    pub fn keeper_hears(&mut self, who: Who, order: Order) {
        let Who { host, life, agent } = who;
        self.keeper_limits(host, life);
        let now = self.hosts[host].clock.read(self.t);
        let Some(keeper) = self.keeper(host, life) else { return };
        // Orders that an agent left behind are read before its end is seen, never after.
        if keeper.agents != agent {
            return;
        }
        keeper.heard = now;
        match order {
            Order::Lease { epoch, limits } => {
                if keeper.tree.is_some() && keeper.epoch != epoch {
                    // Another lease extends nothing.
                    keeper.limits = keeper.limits.tightest(limits);
                    self.note(|| format!("host {host}: keeper refuses the lease of epoch {epoch}"));
                } else {
                    (keeper.epoch, keeper.limits) = (epoch, limits);
                    self.report(host, Report::LeaseAck { epoch, kill_at: limits.kill_at });
                }
            }
            Order::Start(start) => self.keeper_starts_tree(who, &start),
            Order::Stop { grace } => {
                if let Some(tree) = keeper.tree {
                    let by = now.plus(grace);
                    keeper.kill_by = Some(keeper.kill_by.map_or(by, |old| old.earliest(by)));
                    self.term(tree);
                }
            }
            Order::Kill => {
                if let Some(tree) = keeper.tree {
                    self.kill(tree, WORST_KILL);
                }
            }
            Order::Memo(memo) => {
                keeper.memo = memo;
            }
            Order::Shutdown { code } => {
                if keeper.tree.is_none() {
                    if !keeper.stopping {
                        let odd = self.weather_is_odd();
                        if !odd {
                            self.breaks(format!("{} ends though nobody asked for it, with {code}", show(who)));
                        }
                    }
                    self.note(|| format!("host {host}: keeper {life} ends with {code}"));
                    self.hosts[host].keeper = None;
                    self.restart_later(host);
                    return;
                }
            }
            Order::Signal(_) | Order::Alive => {}
        }
        self.keeper_acts(host, life);
    }

    fn keeper_starts_tree(&mut self, who: Who, start: &Start) {
        let Who { host, life, .. } = who;
        let now = self.hosts[host].clock.read(self.t);
        let Some(keeper) = self.keeper(host, life) else { return };
        if keeper.tree.is_some() {
            self.breaks(format!("{} orders a start while something of the command lives", show(who)));
            return;
        }
        if keeper.epoch != start.epoch || now.has_reached(keeper.limits.term_at) || keeper.forced {
            self.note(|| format!("host {host}: keeper refuses to start under epoch {}", start.epoch));
            self.report(host, Report::StartFailed { stage: Stage::Fork, errno: 1 });
            return;
        }
        keeper.exit = None;
        keeper.token = start.token;
        let fails = self.start_fails();
        if fails && self.chance.permille(200) {
            self.report(host, Report::StartFailed { stage: Stage::Fork, errno: 11 });
            return;
        }
        self.check_start(who, start.epoch, start.token);
        let deaf = !self.calm && self.chance.permille(300);
        let tree = self.trees.len();
        let pid = 100 + tree as i32;
        let Some(keeper) = self.keeper(host, life) else { return };
        keeper.tree = Some(tree);
        keeper.kill_by = None;
        keeper.exit_told = false;
        let end = keeper.confirmed.map_or(Boot::ZERO, |(_, end)| end);
        self.trees.push(Tree {
            host,
            life,
            epoch: start.epoch,
            pid,
            since: now,
            leader_lives: true,
            termed: false,
            deaf,
            fails,
            settled: false,
            dying: false,
            gone: None,
            end,
            excused_until: 0,
            must_be_gone: None,
        });
        self.alive.push(tree);
        self.note(|| format!("host {host}: pid {pid} STARTS, epoch {} token {}", start.epoch, start.token));
        let delay = self.chance.between(100_000, 2 * MS);
        match fails {
            true => self.after(delay, Happens::LeaderEnds { tree, exit: Exit::Code(126) }),
            false => self.after(delay, Happens::Settled { host, life, tree }),
        }
    }

    /// The command has made its first step, or ended before.
    pub fn keeper_settles(&mut self, host: usize, life: u32, tree: usize) {
        let Tree { settled, fails, pid, .. } = self.trees[tree];
        if self.keeper(host, life).is_some_and(|keeper| keeper.tree == Some(tree)) && !settled {
            self.trees[tree].settled = true;
            if !fails {
                self.report(host, Report::Started { pid });
            }
        }
    }

    pub fn keeper_wakes(&mut self, host: usize, life: u32, wake: u64) {
        if self.keeper(host, life).is_some_and(|keeper| keeper.wake == wake) {
            self.keeper_acts(host, life);
        }
    }

    /// What the keeper does at each wake, whatever woke it.
    pub fn keeper_acts(&mut self, host: usize, life: u32) {
        self.keeper_limits(host, life);
        let (now, renew) = (self.hosts[host].clock.read(self.t), self.hosts[host].timing.renew);
        let Some(keeper) = self.keeper(host, life) else { return };
        if keeper.stopped_until > 0 && now.fast_since(keeper.heard) >= renew.mul_f64(1.5) {
            // What was said while it was stopped is still to be read.
            if keeper.stopped_until + MS > self.t {
                self.keeper_arms(host, life);
                return;
            }
        }
        let Some(keeper) = self.keeper(host, life) else { return };
        if let Some(agent) = &keeper.agent
            && !agent.dead
            && now.fast_since(keeper.heard) >= renew.mul_f64(1.5)
        {
            let who = Who { host, life, agent: agent.n };
            self.note(|| format!("host {host}: the keeper kills its silent agent {}", who.agent));
            self.agent_dies(who);
        }
        self.keeper_arms(host, life);
    }

    /// Both clocks are looked at before anything else.
    fn keeper_limits(&mut self, host: usize, life: u32) {
        let now = self.hosts[host].clock.read(self.t);
        let Some(keeper) = self.keeper(host, life) else { return };
        let Some(tree) = keeper.tree else { return };
        let limits = keeper.limits;
        let due = keeper.kill_by.is_some_and(|by| now.has_reached(by));
        if now.has_reached(limits.kill_at) || due || keeper.forced {
            self.kill(tree, WORST_KILL);
        } else if now.has_reached(limits.term_at) && !self.trees[tree].termed {
            // A later lease does not call it off, nor put off the kill that follows.
            if let Some(keeper) = self.keeper(host, life) {
                keeper.kill_by = Some(keeper.kill_by.map_or(limits.kill_at, |old| old.earliest(limits.kill_at)));
            }
            if self.gentle {
                self.breaks(format!("host {host} tells its command to stop in an outage that the budget covers"));
            }
            self.term(tree);
        }
    }

    /// Armed for 7/8 of what remains: the clocks may be slewed meanwhile.
    fn keeper_arms(&mut self, host: usize, life: u32) {
        let t = self.t;
        let renew = self.hosts[host].timing.renew;
        let slack = self.hosts[host].timing.slack().mul_f64(WORST_LATE);
        let trees = &self.trees;
        let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|keeper| keeper.life == life) else { return };
        let mut next: Option<Boot> =
            keeper.agent.as_ref().is_some_and(|agent| !agent.dead).then(|| keeper.heard.plus(renew.mul_f64(1.5)));
        let mut at_most = |limit: Boot| next = Some(next.map_or(limit, |old: Boot| old.earliest(limit)));
        if let Some(tree) = keeper.tree.map(|tree| &trees[tree])
            && !tree.dying
        {
            at_most(if tree.termed { keeper.limits.kill_at } else { keeper.limits.term_at });
            if let Some(by) = keeper.kill_by {
                at_most(by);
            }
        }
        let Some(next) = next else { return };
        keeper.wake += 1;
        let wake = keeper.wake;
        let left = self.hosts[host].clock.until(t, next);
        let delay = if left > MS {
            left / 8 * 7
        } else {
            let late = match self.chance.between(0, 999) {
                0..20 => self.chance.up_to(slack),
                20..40 => slack.as_nanos() as u64,
                _ => 1_000,
            };
            left + late
        };
        self.after(delay, Happens::KeeperWakes { host, life, wake });
    }

    /// A child of the keeper changed its state.
    pub fn keeper_waits(&mut self, host: usize, life: u32, tree: usize) {
        self.keeper_limits(host, life);
        let (leader_lives, gone) = (self.trees[tree].leader_lives, self.trees[tree].gone.is_some());
        let Some(keeper) = self.keeper(host, life) else { return };
        if keeper.tree != Some(tree) {
            return;
        }
        if !leader_lives && !keeper.exit_told {
            keeper.exit_told = true;
            let exit = keeper.exit;
            self.keeper_settles(host, life, tree);
            if let (Some(exit), false) = (exit, self.trees[tree].fails) {
                self.report(host, Report::Exited(exit));
            }
            // What a leader leaves behind goes with it, unless all of them were asked to stop.
            if self.trees[tree].termed && self.chance.permille(400) {
                let most = self.hosts[host].timing.stop_timeout;
                let delay = self.chance.up_to(most);
                self.after(delay, Happens::TreeGone { tree });
            } else {
                self.kill(tree, WORST_KILL);
            }
        }
        if gone {
            let Some(keeper) = self.keeper(host, life) else { return };
            keeper.tree = None;
            keeper.kill_by = None;
            let forced = keeper.forced;
            // A "gone" behind a failed start could be taken for the end of the next one.
            let failed = Report::StartFailed { stage: Stage::Exec, errno: 13 };
            self.report(host, if self.trees[tree].fails { failed } else { Report::Gone });
            if forced {
                self.keeper_ends_alone(host, life);
                return;
            }
        }
        self.keeper_acts(host, life);
    }

    fn keeper_ends_alone(&mut self, host: usize, life: u32) {
        self.note(|| format!("host {host}: keeper {life} ends by itself"));
        self.hosts[host].keeper = None;
        self.restart_later(host);
    }

    pub fn keeper_lost_agent(&mut self, who: Who) {
        let Who { host, life, agent: n } = who;
        let (t, renew) = (self.t, self.hosts[host].timing.renew);
        let Some(keeper) = self.keeper(host, life) else { return };
        let Some(agent) = keeper.agent.take_if(|agent| agent.n == n) else { return };
        let young = t - agent.born < renew.as_nanos() as u64;
        keeper.deaths = if young { (keeper.deaths + 1).min(5) } else { 0 };
        let pause = (renew / 200).saturating_mul(1 << keeper.deaths).min(Duration::from_secs(1));
        self.after(pause.as_nanos() as u64, Happens::AgentStarts { host, life });
        self.keeper_acts(host, life);
    }

    // ---- trees ----

    fn term(&mut self, tree: usize) {
        if self.trees[tree].termed || !self.trees[tree].leader_lives {
            return;
        }
        self.trees[tree].termed = true;
        let Tree { pid, deaf, host, .. } = self.trees[tree];
        self.note(|| format!("host {host}: TERM to pid {pid}"));
        if !deaf {
            let most = self.hosts[host].timing.stop_timeout.mul_f64(1.5);
            let most = if self.chance.permille(500) { most / 50 } else { most };
            let delay = self.chance.up_to(most);
            self.after(delay, Happens::LeaderEnds { tree, exit: Exit::Signal(15) });
        }
    }

    /// It takes up to this share of κ to die.
    pub fn kill(&mut self, tree: usize, share: f64) {
        if self.trees[tree].dying {
            return;
        }
        self.trees[tree].dying = true;
        let Tree { pid, host, .. } = self.trees[tree];
        let margin = self.hosts[host].timing.kill_margin.mul_f64(share);
        let margin = margin.as_nanos() as u64;
        let takes = match self.chance.between(0, 9) {
            0 => margin,
            1 => self.chance.between(0, margin),
            _ => 70_000,
        };
        self.note(|| format!("host {host}: KILL to pid {pid}"));
        self.after(takes / 2, Happens::LeaderEnds { tree, exit: Exit::Signal(9) });
        self.after(takes, Happens::TreeGone { tree });
    }

    pub fn leader_ends(&mut self, tree: usize, exit: Exit) {
        if !self.trees[tree].leader_lives {
            return;
        }
        self.trees[tree].leader_lives = false;
        let Tree { host, life, pid, .. } = self.trees[tree];
        self.note(|| format!("host {host}: pid {pid} {exit}"));
        if let Some(keeper) = self.keeper(host, life) {
            keeper.exit = Some(exit);
            self.after(20_000, Happens::Child { host, life, tree });
        }
    }

    pub fn tree_gone(&mut self, tree: usize) {
        if self.trees[tree].gone.is_some() {
            return;
        }
        let t = self.t;
        self.trees[tree].gone = Some(t);
        self.trees[tree].leader_lives = false;
        self.alive.retain(|&alive| alive != tree);
        if self.alive.is_empty() {
            self.idle_since = Some(t);
        }
        let Tree { host, life, pid, end, excused_until, .. } = self.trees[tree];
        self.note(|| format!("host {host}: nothing of pid {pid} is left"));
        let now = self.hosts[host].clock.read(t);
        if has_passed(now, end) && excused_until < t {
            let late = now.fast_since(end);
            self.breaks(format!("pid {pid} of host {host} was gone {late:?} after its own s + D"));
        }
        if self.keeper(host, life).is_some() {
            self.after(20_000, Happens::Child { host, life, tree });
        }
    }

    // ---- what goes wrong with processes ----

    /// The design survives the keeper or the agent, not both at once.
    pub fn agent_may_die(&self, who: Who) -> bool {
        let t = self.t;
        self.hosts[who.host].asleep_until <= t
            && self.hosts[who.host].keeper.as_ref().is_some_and(|k| k.life == who.life && k.stopped_until <= t)
    }

    fn healthy_pair(&self, host: usize) -> Option<Who> {
        let (host_awake, keeper) = (self.hosts[host].asleep_until <= self.t, self.hosts[host].keeper.as_ref()?);
        let agent = keeper.agent.as_ref()?;
        let whole = host_awake && keeper.stopped_until <= self.t && agent.hangs_until <= self.t;
        whole.then_some(Who { host, life: keeper.life, agent: agent.n })
    }

    /// It is dead at once; what it said before is still read by the keeper.
    pub fn agent_dies(&mut self, who: Who) {
        let Some(keeper) = self.keeper(who.host, who.life) else { return };
        let at = keeper.to_keeper + 1_000;
        if let Some(agent) = keeper.agent.as_mut().filter(|agent| agent.n == who.agent) {
            // The body lies there until the keeper sees it; it does nothing any more.
            agent.wake += 1;
            agent.hangs_until = Ns::MAX;
            agent.dead = true;
        }
        let at = at.max(self.t + 50_000);
        self.at(at, Happens::AgentEnded { who });
    }

    pub fn kill_agent(&mut self, host: usize) {
        if let Some(who) = self.healthy_pair(host) {
            self.agent_dies(who);
        }
    }

    pub fn hang_agent(&mut self, host: usize, how_long: u64) {
        if let Some(who) = self.healthy_pair(host) {
            let until = self.before_calm(how_long);
            if let Some(agent) = self.agent(who) {
                agent.hangs_until = until;
            }
        }
    }

    pub fn stop_keeper(&mut self, host: usize, how_long: u64) {
        let Some(Who { life, .. }) = self.healthy_pair(host) else { return };
        let until = self.before_calm(how_long);
        if let Some(keeper) = self.keeper(host, life) {
            keeper.stopped_until = until;
            keeper.unheard = 0;
            let wake = keeper.wake;
            self.at(until, Happens::KeeperWakes { host, life, wake });
        }
        if let Some(tree) = self.tree_of(host, life) {
            self.trees[tree].must_be_gone = None;
        }
    }

    /// Killed with -9: its agent sees that, sooner or later.
    pub fn kill_keeper(&mut self, host: usize) {
        let Some(who) = self.healthy_pair(host) else { return };
        let timing = self.hosts[host].timing;
        let t = self.t;
        let Some(keeper) = self.hosts[host].keeper.take() else { return };
        let by = keeper.limits.kill_at.plus(timing.kill_margin / 2);
        let left = match self.tree_of(host, who.life) {
            Some(tree) => {
                self.trees[tree].must_be_gone = None;
                self.hosts[host].clock.until(t, by).min(1_000 * MS)
            }
            None => MS,
        };
        let delay = self.chance.between(0, left);
        let delay = if self.chance.permille(500) { delay.min(2 * MS) } else { delay };
        let at = (t + delay).max(keeper.to_agent + 1_000);
        self.hosts[host].orphans.push(keeper);
        self.at(at, Happens::LostKeeper { who });
        self.restart_later(host);
    }

    /// The agent's last resort, when its keeper lets the deadline pass.
    pub fn kill_all(&mut self, who: Who) {
        let Who { host, life, .. } = who;
        if let Some(tree) = self.tree_of(host, life) {
            self.trees[tree].dying = false;
        }
        if let Some(keeper) = self.hosts[host].keeper.take_if(|keeper| keeper.life == life) {
            self.hosts[host].orphans.push(keeper);
            self.restart_later(host);
        }
        self.lost_keeper(who);
    }

    fn orphan(&mut self, who: Who) -> Option<&mut Keeper> {
        self.hosts[who.host].orphans.iter_mut().find(|keeper| keeper.life == who.life)
    }

    /// An agent sees that its keeper is dead: it kills what is left, and waits for the proof.
    pub fn lost_keeper(&mut self, who: Who) {
        let Who { host, life, .. } = who;
        let t = self.t;
        let takes = self.hosts[host].timing.kill_margin.mul_f64(0.45).as_nanos() as u64;
        let tree = self.tree_of(host, life);
        let Some(keeper) = self.orphan(who).filter(|keeper| !keeper.mourned) else { return };
        keeper.mourned = true;
        let Some(agent) = &mut keeper.agent else { return };
        let ended = agent.node.has_ended();
        let gone = agent.node.is_tree_gone();
        if let Some(tree) = tree {
            agent.hangs_until = t + takes;
            if gone {
                self.breaks(format!("{} takes the tree for gone, and it lives", show(who)));
            }
            self.kill(tree, 0.4);
        }
        self.note(|| format!("{} has lost its keeper", show(who)));
        if ended {
            self.hosts[host].orphans.retain(|keeper| keeper.life != life);
            return;
        }
        let proven = gone || self.chance.permille(700);
        self.after(if tree.is_some() { takes } else { 1_000 }, Happens::Buried { who, proven });
    }

    /// Nothing is left of the tree; without proof of that, the lease has to run out.
    pub fn buried(&mut self, who: Who, proven: bool) {
        let pause = self.hosts[who.host].timing.kill_margin.as_nanos() as u64 / 10;
        if self.tree_of(who.host, who.life).is_some() {
            self.after(pause, Happens::Buried { who, proven });
        } else if proven {
            self.step(who, Event::Orphaned);
        } else {
            self.hosts[who.host].orphans.retain(|keeper| keeper.life != who.life);
        }
    }

    /// What a dead keeper would say, its agent says to itself.
    pub fn answer_for_keeper(&mut self, who: Who, order: &Order) {
        // Until its end is seen, it is only silent.
        if !self.orphan(who).is_some_and(|keeper| keeper.mourned) {
            return;
        }
        match order {
            Order::Lease { epoch, limits } => {
                let ack = Report::LeaseAck { epoch: *epoch, kill_at: limits.kill_at };
                self.after(1_000, Happens::ToAgent { who, event: Box::new(Event::Keeper(ack)) });
            }
            Order::Shutdown { .. } => self.hosts[who.host].orphans.retain(|keeper| keeper.life != who.life),
            _ => {}
        }
    }

    /// The machine is gone, with all its processes, and comes back with other clocks.
    pub fn crash(&mut self, host: usize) {
        let t = self.t;
        if self.hosts[host].asleep_until > t {
            return;
        }
        for tree in self.alive.clone() {
            if self.trees[tree].host == host {
                self.tree_gone(tree);
            }
        }
        let (boot, raw) = (self.chance.between(0, 1 << 40), self.chance.between(0, 1 << 40));
        let (boot_ppm, raw_ppm) = (self.chance.pick(&[-2000, 0, 2000]), self.chance.pick(&[-2000, 0, 2000]));
        self.hosts[host].clock = super::clock::Clock::new(t, boot, raw);
        self.hosts[host].clock.drift(t, boot_ppm, raw_ppm);
        self.hosts[host].orphans.clear();
        if self.hosts[host].keeper.take().is_some() {
            self.restart_later(host);
        }
    }

    pub fn command_ends(&mut self) {
        if self.alive.is_empty() {
            return;
        }
        let tree = self.alive[self.chance.below(self.alive.len())];
        if self.hosts[self.trees[tree].host].asleep_until > self.t {
            return;
        }
        let exit = self.chance.pick(&[Exit::Code(0), Exit::Code(1), Exit::Signal(11)]);
        self.leader_ends(tree, exit);
    }

    /// The outside asks: 15 for an orderly stop, a second one for a quick one, 1 for a
    /// reopened log.
    pub fn ask(&mut self, host: usize, signal: i32) {
        let t = self.t;
        let asleep = self.hosts[host].asleep_until > t;
        let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|k| !asleep && k.stopped_until <= t) else { return };
        let life = keeper.life;
        if signal == 15 {
            if keeper.stopping {
                keeper.forced = true;
                if keeper.tree.is_none() {
                    self.keeper_ends_alone(host, life);
                    return;
                }
            } else {
                keeper.stopping = true;
            }
        }
        self.report(host, Report::Asked { signal });
        self.keeper_acts(host, life);
    }
}
