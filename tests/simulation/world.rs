//! One world from one seed: hosts, their keepers and agents, the store between them,
//! and chance, which is not kind. The agents are the real core.
//!
//! Everything happens as an event at a moment of true time, which no host can read.
//! Agents act only when their own `wake_in` is over or something reaches them: a core
//! that asks to be woken too late is late, and one that never lets go is caught.

use super::chance::Chance;
use super::clock::{Clock, Ns, RHO_PPM, SLEW_PPM, has_passed};
use super::keeper::{Keeper, Tree};
use super::store::{Condition, Register};
use crate::core::{
    Answer, Effect, Event, Flaw, Look, Names, Order, Patience, Record, Setup, Supervision, Swap, Timing, Trouble,
    Verdict, Version, When,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

pub const MS: u64 = 1_000_000;
pub const S: u64 = 1_000 * MS;

/// A keeper that ended is started again within this, by the service manager.
const RESTART_PAUSE: Duration = Duration::from_secs(3);
/// A run that needs more has run wild.
const MOST_EVENTS: u64 = 300_000;
/// How many lines of the trace a failure shows.
const LAST_LINES: usize = 60;

/// Which agent of which keeper on which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub host: usize,
    pub life: u32,
    pub agent: u32,
}

/// A call to the store, under way.
#[derive(Clone)]
pub struct Call {
    who: Who,
    id: u64,
    /// What the host's clock showed before the first byte.
    asked: crate::core::Boot,
    swap: Option<(Version, Box<Record>)>,
}

/// What happens at a moment.
pub enum Happens {
    AgentWakes { who: Who, wake: u64 },
    ToAgent { who: Who, event: Box<Event> },
    Answered { call: Box<Call>, answer: Box<Answer> },
    ToKeeper { who: Who, order: Order },
    KeeperWakes { host: usize, life: u32, wake: u64 },
    Child { host: usize, life: u32, tree: usize },
    AgentEnded { who: Who },
    AgentStarts { host: usize, life: u32 },
    KeeperStarts { host: usize },
    LeaderEnds { tree: usize, exit: crate::core::Exit },
    TreeGone { tree: usize },
    MustBeGone { tree: usize },
    Excused { tree: usize },
    Settled { host: usize, life: u32, tree: usize },
    LostKeeper { who: Who },
    Buried { who: Who, proven: bool },
    Forgets { writes: usize },
    Arrives(Box<Call>),
    Store(u64),
    Joined { host: usize, cut: u64 },
    Awake { host: usize },
    Well { host: usize },
    Remade,
    Mischief,
    Calm,
    SomebodyIsActive,
    Steady,
    AllEnded,
}

struct Item {
    at: Ns,
    order: u64,
    what: Happens,
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Item) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Item) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One machine.
pub struct Host {
    pub name: String,
    pub clock: Clock,
    pub timing: Timing,
    pub supervision: Supervision,
    pub life: u32,
    pub keeper: Option<Keeper>,
    /// Killed keepers whose agents still live: each answers for its keeper itself.
    pub orphans: Vec<Keeper>,
    pub asleep_until: Ns,
    /// Its command fails its checks.
    sick: bool,
    /// What it asks does not reach the store; what the store answers does not reach it.
    cut: (bool, bool),
    cuts: u64,
    /// Its next swap is answered late, and then it is cut off for so long.
    last_breath: Option<u64>,
    /// Looks and swaps since the count began.
    calls: u64,
}

/// How often what goes wrong, of a thousand.
#[derive(Default)]
struct Weather {
    request_lost: u64,
    reply_lost: u64,
    refused: u64,
    unknown: u64,
    twice: u64,
    slow: u64,
    abandoned: u64,
    step_cut: u64,
    start_fails: u64,
    unhealthy: u64,
    odd_patience: u64,
    slewed: u64,
    mischief: Vec<Mischief>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mischief {
    Freeze,
    Down,
    Restart,
    Promote,
    RollBack,
    StoreClock,
    Cut,
    AgentKilled,
    AgentHangs,
    KeeperKilled,
    KeeperStopped,
    Crash,
    Suspend,
    CommandEnds,
    Sick,
    Asked,
    AskedTwice,
    Hup,
    Delete,
    Drift,
    /// The next success is told as late as may be, and nothing after it.
    LastBreath,
    /// All but the holder are cut off, and what was written meanwhile is forgotten.
    Forget,
}

const ALL_MISCHIEF: [Mischief; 22] = [
    Mischief::Freeze,
    Mischief::Down,
    Mischief::Restart,
    Mischief::Promote,
    Mischief::RollBack,
    Mischief::StoreClock,
    Mischief::Cut,
    Mischief::AgentKilled,
    Mischief::AgentHangs,
    Mischief::KeeperKilled,
    Mischief::KeeperStopped,
    Mischief::Crash,
    Mischief::Suspend,
    Mischief::CommandEnds,
    Mischief::Sick,
    Mischief::Asked,
    Mischief::AskedTwice,
    Mischief::Hup,
    Mischief::Delete,
    Mischief::Drift,
    Mischief::LastBreath,
    Mischief::Forget,
];

/// What a run was, for those who want to know that enough happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub events: u64,
    pub starts: u64,
    pub claims: u64,
    /// Claims over a holder that never released.
    pub takeovers: u64,
    pub releases: u64,
    pub mischief: u64,
    pub seconds: u64,
    /// The longest that nobody was active, after the first start and before the end, as a
    /// multiple of the longest ttl in hundredths.
    pub gap: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.events += other.events;
        self.starts += other.starts;
        self.claims += other.claims;
        self.takeovers += other.takeovers;
        self.releases += other.releases;
        self.mischief += other.mischief;
        self.seconds += other.seconds;
        self.gap = self.gap.max(other.gap);
    }
}

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Something never happens.
    Safety,
    /// Something happens in time.
    Progress,
}

/// A promise was broken.
#[derive(Debug)]
pub struct Broken {
    pub promise: Promise,
    pub what: String,
    pub trace: Vec<String>,
}

/// How much of the trace is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    Nothing,
    LastLines,
    Everything,
}

pub struct World {
    pub t: Ns,
    pub chance: Chance,
    order: u64,
    heap: BinaryHeap<Reverse<Item>>,
    pub hosts: Vec<Host>,
    pub trees: Vec<Tree>,
    pub alive: Vec<usize>,
    store: Register,
    store_until: u64,
    hanging: Vec<Call>,
    waiting: Vec<(Who, u64)>,
    flaw: Option<Flaw>,
    weather: Weather,
    latency: u64,
    /// Until then things go wrong; no fault lasts longer.
    faults_end: Ns,
    pub calm: bool,
    /// A rollback with nodes of different ttls: what a forgotten claim promised is unknown,
    /// so only the tokens are required to hold.
    pub lenient: bool,
    mixed: bool,
    /// Only what the budget covers goes wrong: the command is never told to stop.
    pub gentle: bool,
    /// Counts deletions of the record: epochs and tokens begin anew with it.
    era: u32,
    /// Who claimed under which (era, timeline, epoch).
    epochs: BTreeMap<(u32, u32, u64), String>,
    /// In which era an instance claimed an epoch.
    claimed_in: BTreeMap<(String, u64), u32>,
    /// The last start: (era, instance, epoch, token).
    pub last_start: Option<(u32, String, u64, u64)>,
    longest: Timing,
    steady_from: Ns,
    ending: bool,
    /// Since when nobody is active.
    pub idle_since: Option<Ns>,
    broken: Option<(Promise, String)>,
    trace: Trace,
    lines: VecDeque<String>,
    pub tally: Tally,
}

impl World {
    pub fn new(seed: u64, flaw: Option<Flaw>, trace: Trace) -> World {
        let mut chance = Chance::new(seed);
        let nodes = chance.pick(&[2, 2, 2, 3, 3, 3, 3, 4, 5, 7]);
        let mixed = chance.permille(300);
        let twins = chance.permille(60);
        let ttl = chance.pick(&[500, 1_000, 2_000, 5_000, 20_000, 20_000]);
        let mut hosts = Vec::new();
        for n in 0..nodes {
            let ttl = if mixed { ttl * chance.pick(&[1, 2, 4]) } else { ttl };
            let ttl = Duration::from_millis(ttl);
            let cycle = (ttl / chance.pick(&[2, 4, 4, 8])).max(Duration::from_millis(50));
            let timing = Timing::for_ttl(ttl, cycle);
            assert!(timing.check().is_ok(), "a budget that does not fit: {timing:?}");
            let name = if twins && n == 1 { "n0".to_string() } else { format!("n{n}") };
            let (boot, raw) = (chance.between(0, 1 << 50), chance.between(0, 1 << 50));
            hosts.push(Host {
                name,
                clock: Clock::new(0, boot, raw),
                timing,
                supervision: Supervision {
                    cycle: cycle * chance.pick(&[1, 2]),
                    probed: chance.permille(500),
                    start_timeout: ttl * 2,
                    timeout: ttl,
                    stop_timeout: ttl / chance.pick(&[8, 2, 1]),
                    when: When::Always,
                    delay: chance.pick(&[Duration::ZERO, ttl / 20, ttl / 4]),
                    max_factor: 3,
                },
                life: 0,
                keeper: None,
                orphans: Vec::new(),
                asleep_until: 0,
                sick: false,
                cut: (false, false),
                cuts: 0,
                last_breath: None,
                calls: 0,
            });
        }
        let longest = hosts.iter().map(|host| host.timing).max_by_key(|timing| timing.ttl).unwrap();
        let mut likely = |likely: u64, most: u64| if chance.permille(likely) { chance.between(1, most) } else { 0 };
        let mut weather = Weather {
            request_lost: likely(300, 80),
            reply_lost: likely(400, 150),
            refused: likely(200, 100),
            unknown: likely(200, 100),
            twice: likely(300, 200),
            slow: likely(400, 200),
            abandoned: likely(300, 100),
            step_cut: likely(250, 15),
            start_fails: likely(150, 200),
            unhealthy: likely(250, 80),
            odd_patience: likely(200, 300),
            slewed: likely(400, 1000),
            mischief: Vec::new(),
        };
        weather.mischief = ALL_MISCHIEF.into_iter().filter(|_| chance.permille(350)).collect();
        if mixed {
            // A record made anew by one node promises nothing about another one's longer ttl.
            weather.mischief.retain(|mischief| *mischief != Mischief::Delete);
        }
        // Outages that the budget covers, one at a time, and nothing else: nobody may notice.
        let gentle = !mixed && chance.permille(100);
        if gentle {
            let only = chance.pick(&[
                Mischief::Freeze,
                Mischief::Down,
                Mischief::Cut,
                Mischief::AgentKilled,
                Mischief::AgentHangs,
            ]);
            weather = Weather { mischief: vec![only], ..Weather::default() };
        }
        let faults_end = longest.ttl.as_nanos() as u64 * chance.between(3, 10);
        let record = chance.permille(900).then(|| Record::fresh(longest.ttl, longest.renew, 0));
        let latency = chance.pick(&[MS / 5, MS, 3 * MS]).min(hosts.iter().map(|h| q(&h.timing) / 12).min().unwrap());
        let mut world = World {
            t: 0,
            chance,
            order: 0,
            heap: BinaryHeap::new(),
            hosts,
            trees: Vec::new(),
            alive: Vec::new(),
            store: Register::new(record),
            store_until: 0,
            hanging: Vec::new(),
            waiting: Vec::new(),
            flaw,
            weather,
            latency,
            faults_end,
            calm: false,
            lenient: false,
            mixed,
            gentle,
            era: 0,
            epochs: BTreeMap::new(),
            claimed_in: BTreeMap::new(),
            last_start: None,
            longest,
            steady_from: 0,
            ending: false,
            idle_since: None,
            broken: None,
            trace,
            lines: VecDeque::new(),
            tally: Tally::default(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for host in 0..self.hosts.len() {
            self.drifts(host);
            let at = self.chance.up_to(self.longest.ttl);
            self.at(at, Happens::KeeperStarts { host });
        }
        self.store.clock_error = self.chance.pick(&[0, 0, 3_600_000, -3_600_000]) * MS as i64;
        self.at(self.faults_end, Happens::Calm);
        if !self.weather.mischief.is_empty() {
            let at = self.chance.up_to(self.longest.ttl);
            self.at(at, Happens::Mischief);
        }
    }

    fn drift(&mut self) -> i64 {
        let any = self.chance.between(0, 2 * RHO_PPM as u64) as i64 - RHO_PPM;
        self.chance.pick(&[-RHO_PPM, RHO_PPM, 0, any])
    }

    /// Other rates for both clocks of a host, for as long as nobody changes them.
    fn drifts(&mut self, host: usize) {
        let (mut boot, raw, t) = (self.drift(), self.drift(), self.t);
        if self.luck(self.weather.slewed) {
            boot += self.chance.pick(&[-SLEW_PPM, SLEW_PPM]);
        }
        self.hosts[host].clock.drift(t, boot, raw);
    }

    /// Runs to the end.
    pub fn run(mut self) -> Result<Tally, Broken> {
        while self.broken.is_none()
            && let Some(Reverse(item)) = self.heap.pop()
        {
            if let Some(until) = self.held_up(&item.what)
                && until > item.at
            {
                self.heap.push(Reverse(Item { at: until, ..item }));
                continue;
            }
            self.t = item.at;
            self.tally.events += 1;
            self.happens(item.what);
            if self.tally.events > MOST_EVENTS {
                self.stalls("the world does not come to its end".into());
            }
        }
        self.tally.seconds = self.t / S;
        match self.broken {
            None => Ok(self.tally),
            Some((promise, what)) => Err(Broken { promise, what, trace: self.lines.into_iter().collect() }),
        }
    }

    /// A process that is stopped, or whose machine sleeps, acts when it goes on.
    fn held_up(&self, what: &Happens) -> Option<Ns> {
        let (host, life, agent) = match what {
            Happens::AgentWakes { who, .. } | Happens::ToAgent { who, .. } => (who.host, who.life, Some(who.agent)),
            Happens::Answered { call, .. } => (call.who.host, call.who.life, Some(call.who.agent)),
            Happens::ToKeeper { who, .. } | Happens::AgentEnded { who } => (who.host, who.life, None),
            Happens::LostKeeper { who } | Happens::Buried { who, .. } => (who.host, who.life, None),
            Happens::KeeperWakes { host, life, .. }
            | Happens::Child { host, life, .. }
            | Happens::Settled { host, life, .. }
            | Happens::AgentStarts { host, life } => (*host, *life, None),
            Happens::KeeperStarts { host } => (*host, u32::MAX, None),
            Happens::LeaderEnds { tree, .. } | Happens::TreeGone { tree } => (self.trees[*tree].host, u32::MAX, None),
            _ => return None,
        };
        let host = &self.hosts[host];
        let mut until = host.asleep_until;
        if let Some(keeper) = host.keeper.iter().chain(&host.orphans).find(|keeper| keeper.life == life) {
            match agent {
                None => until = until.max(keeper.stopped_until),
                Some(n) => {
                    if let Some(agent) = &keeper.agent
                        && agent.n == n
                    {
                        until = until.max(agent.hangs_until);
                    }
                }
            }
        }
        Some(until)
    }

    pub fn at(&mut self, at: Ns, what: Happens) {
        self.order += 1;
        self.heap.push(Reverse(Item { at, order: self.order, what }));
    }

    pub fn after(&mut self, delay: u64, what: Happens) {
        self.at(self.t + delay, what);
    }

    /// The promise is broken.
    pub fn breaks(&mut self, what: String) {
        self.note(|| format!("BROKEN: {what}"));
        self.broken.get_or_insert((Promise::Safety, what));
    }

    /// Nothing terrible happened, nor what should have.
    fn stalls(&mut self, what: String) {
        self.note(|| format!("STALLED: {what}"));
        self.broken.get_or_insert((Promise::Progress, what));
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace == Trace::Nothing {
            return;
        }
        if self.trace == Trace::LastLines && self.lines.len() >= LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>12.6}  {}", self.t as f64 / S as f64, line()));
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::AgentWakes { who, wake } => {
                if self.agent(who).is_some_and(|agent| agent.wake == wake) {
                    self.step(who, Event::Tick);
                }
            }
            Happens::ToAgent { who, event } => {
                if self.agent(who).is_some() {
                    self.step(who, *event);
                }
            }
            Happens::Answered { call, answer } => self.answered(*call, *answer),
            Happens::ToKeeper { who, order } => self.keeper_hears(who, order),
            Happens::KeeperWakes { host, life, wake } => self.keeper_wakes(host, life, wake),
            Happens::Child { host, life, tree } => self.keeper_waits(host, life, tree),
            Happens::AgentEnded { who } => self.keeper_lost_agent(who),
            Happens::AgentStarts { host, life } => self.keeper_starts_agent(host, life),
            Happens::KeeperStarts { host } => self.keeper_starts(host),
            Happens::LeaderEnds { tree, exit } => self.leader_ends(tree, exit),
            Happens::TreeGone { tree } => self.tree_gone(tree),
            Happens::MustBeGone { tree } => self.must_be_gone(tree),
            Happens::Excused { tree } => self.no_longer_excused(tree),
            Happens::Arrives(call) => self.arrives(*call),
            Happens::Settled { host, life, tree } => self.keeper_settles(host, life, tree),
            Happens::LostKeeper { who } => self.lost_keeper(who),
            Happens::Buried { who, proven } => self.buried(who, proven),
            Happens::Forgets { writes } => self.forgets(writes),
            Happens::Store(n) => {
                if n == self.store_until {
                    self.store_recovers();
                }
            }
            Happens::Joined { host, cut } => {
                if self.hosts[host].cuts == cut {
                    self.hosts[host].cut = (false, false);
                    self.note(|| format!("host {host} reaches the store again"));
                }
            }
            Happens::Awake { host } => {
                let t = self.t;
                self.hosts[host].clock.sleep(t, false);
                self.note(|| format!("host {host} wakes up"));
                if let Some(life) = self.hosts[host].keeper.as_ref().map(|keeper| keeper.life) {
                    self.keeper_acts(host, life);
                }
            }
            Happens::Well { host } => self.hosts[host].sick = false,
            Happens::Remade => self.remake(),
            Happens::Mischief => self.mischief(),
            Happens::Calm => self.begin_calm(),
            Happens::SomebodyIsActive => self.somebody_is_active(),
            Happens::Steady => self.steady(),
            Happens::AllEnded => self.all_ended(),
        }
    }

    // ---- agents ----

    pub fn setup(&mut self, host: usize) -> Setup {
        let odd = !self.calm && self.chance.permille(self.weather.odd_patience);
        let wait = Patience::Wait(self.longest.ttl.mul_f64(self.chance.between(1, 300) as f64 / 100.0));
        let patience = if odd { self.chance.pick(&[Patience::Try, wait]) } else { Patience::Standby };
        let mut supervision = self.hosts[host].supervision.clone();
        if odd {
            supervision.when = self.chance.pick(&[When::Always, When::OnFailure, When::Never]);
        }
        let host = &self.hosts[host];
        Setup {
            node: host.name.clone(),
            host: String::new(),
            version: String::new(),
            names: Names::default(),
            supervision,
            timing: Some(host.timing),
            patience,
            flaw: self.flaw,
        }
    }

    pub fn agent(&mut self, who: Who) -> Option<&mut super::keeper::Agent> {
        let host = &mut self.hosts[who.host];
        let keeper = host.keeper.iter_mut().chain(&mut host.orphans).find(|keeper| keeper.life == who.life)?;
        keeper.agent.as_mut().filter(|agent| agent.n == who.agent)
    }

    /// One step of the core, and what it wants done; sometimes the agent dies in between.
    pub fn step(&mut self, who: Who, event: Event) -> bool {
        let now = self.hosts[who.host].clock.read(self.t);
        let quiet = event == Event::Tick;
        if self.trace != Trace::Nothing && !quiet {
            let text = told(&event);
            self.note(|| format!("{} <- {text}", show(who)));
        }
        let Some(agent) = self.agent(who) else { return false };
        let effects = agent.node.step(now, event);
        let mut dies_after = None;
        if !self.calm && self.agent_may_die(who) && self.chance.permille(self.weather.step_cut) {
            dies_after = Some(self.chance.below(effects.len() + 1));
        }
        let idle = quiet && effects.is_empty();
        for (n, effect) in effects.into_iter().enumerate() {
            if dies_after == Some(n) {
                break;
            }
            self.carry_out(who, now, effect);
            if self.broken.is_some() || self.agent(who).is_none() {
                return false;
            }
        }
        if dies_after.is_some() {
            self.note(|| format!("{} dies in the middle of a step", show(who)));
            self.agent_dies(who);
            return false;
        }
        self.sleep(who, idle);
        true
    }

    /// The agent sleeps for as long as it wants, or a little longer.
    fn sleep(&mut self, who: Who, idle: bool) {
        let t = self.t;
        let host = &self.hosts[who.host];
        let now = host.clock.read(t);
        let slack = host.timing.slack().mul_f64(0.4);
        let Some(agent) = self.agent(who) else { return };
        let wants = agent.node.wake_in(now);
        agent.wake += 1;
        let wake = agent.wake;
        // Awake again and again with nothing to do is a loop that burns a processor.
        agent.idle_wakes = if idle && wants < Duration::from_micros(1) { agent.idle_wakes + 1 } else { 0 };
        let burns = agent.idle_wakes > 20;
        if burns {
            self.stalls(format!("{} wakes without end and does nothing", show(who)));
            return;
        }
        let late = if self.chance.permille(50) { self.chance.up_to(slack) } else { self.chance.between(0, MS / 20) };
        let wait = self.hosts[who.host].clock.waits(wants) + 1_000 + late;
        self.after(wait, Happens::AgentWakes { who, wake });
    }

    fn carry_out(&mut self, who: Who, now: crate::core::Boot, effect: Effect) {
        if self.trace != Trace::Nothing {
            let text = match &effect {
                Effect::Tell(level, text) => format!("{level:?}: {text}"),
                Effect::Order(Order::Memo(_)) => "memo".into(),
                Effect::Look { id, .. } => format!("look {id}"),
                Effect::Swap { id, version, next, .. } => format!("swap {id} of {} for {}", of(version), brief(next)),
                other => format!("{other:?}"),
            };
            self.note(|| format!("{} -> {text}", show(who)));
        }
        match effect {
            Effect::Look { id, .. } => self.calls(Call { who, id, asked: now, swap: None }),
            Effect::Swap { id, version, next, .. } => {
                self.check_swap(who, &next);
                self.calls(Call { who, id, asked: now, swap: Some((version, next)) });
            }
            Effect::Wait { id, limit } => self.waits(who, id, limit),
            Effect::GiveUp => {
                if let Some(agent) = self.agent(who) {
                    agent.open = None;
                }
            }
            Effect::Order(order) => {
                if self.is_orphan(who) {
                    self.answer_for_keeper(who, &order);
                    return;
                }
                let delay = self.wire();
                let Some(keeper) = &mut self.hosts[who.host].keeper else { return };
                keeper.to_keeper = keeper.to_keeper.max(self.t + delay);
                let at = keeper.to_keeper;
                self.at(at, Happens::ToKeeper { who, order });
            }
            Effect::Probe => {
                let verdict =
                    if self.hosts[who.host].sick || (!self.calm && self.chance.permille(self.weather.unhealthy)) {
                        self.chance.pick(&[0, 1])
                    } else {
                        2
                    };
                let verdict = match verdict {
                    0 => Verdict::Failing("refused".into()),
                    1 => Verdict::NotReady("503".into()),
                    _ => Verdict::Healthy("200".into()),
                };
                let most = self.hosts[who.host].timing.store_timeout;
                let delay = self.chance.up_to(most);
                self.after(delay, Happens::ToAgent { who, event: Box::new(Event::Judged(verdict)) });
            }
            Effect::Tell(..) => {}
            Effect::KillAll => self.kill_all(who),
        }
    }

    pub fn wire(&mut self) -> u64 {
        if self.chance.permille(20) { self.chance.between(0, 2 * MS) } else { self.chance.between(20_000, 200_000) }
    }

    // ---- the store, and the way to it ----

    fn travel(&mut self) -> u64 {
        self.chance.between(self.latency / 4, self.latency * 2)
    }

    fn calls(&mut self, call: Call) {
        let who = call.who;
        self.hosts[who.host].calls += 1;
        let Some(agent) = self.agent(who) else { return };
        if let Some(open) = agent.open.replace(call.id) {
            self.stalls(format!("{} asks the store twice at once (call {open} is open)", show(who)));
            return;
        }
        if self.hosts[who.host].cut.0 || self.luck(self.weather.request_lost) {
            self.note(|| format!("{} call {} is lost on its way", show(who), call.id));
            return;
        }
        if self.luck(self.weather.refused) {
            let answer = failed(&call, Trouble::Refused("refused".into()));
            self.reply(call, answer);
            return;
        }
        let mut delay = self.travel();
        if self.luck(self.weather.slow) {
            delay += self.chance.up_to(self.hosts[who.host].timing.store_timeout);
        }
        if self.luck(self.weather.abandoned) {
            delay += self.chance.up_to(self.longest.ttl * 3);
        }
        let at = (self.t + delay).min(self.faults_end.max(self.t + self.latency));
        self.at(at, Happens::Arrives(Box::new(call)));
    }

    fn luck(&mut self, permille: u64) -> bool {
        !self.calm && self.chance.permille(permille)
    }

    fn arrives(&mut self, call: Call) {
        match self.store.condition {
            Condition::Up => self.carried_out(call),
            Condition::Frozen => self.hanging.push(call),
            Condition::Down => {
                let trouble = if self.chance.permille(500) {
                    Trouble::Refused("connection refused".into())
                } else {
                    Trouble::Unknown("connection reset".into())
                };
                let answer = failed(&call, trouble);
                self.reply(call, answer);
            }
        }
    }

    fn carried_out(&mut self, call: Call) {
        let unknown = self.luck(self.weather.unknown);
        if unknown && self.chance.permille(500) {
            let answer = failed(&call, Trouble::Unknown("the connection broke".into()));
            self.reply(call, answer);
            return;
        }
        let t = self.t;
        let answer = match &call.swap {
            None => Answer::Look(Ok(Look { sighting: self.store.sighting(t), members: Vec::new() })),
            Some((version, next)) => {
                let before = self.store.record.as_ref().map_or(0, |record| record.epoch);
                let held = self.store.record.as_ref().is_some_and(|record| record.holder.is_some());
                let swap = self.store.swap(t, version, next);
                if swap == Swap::Done {
                    self.note(|| {
                        let holder = next.holder.as_ref().map_or("nobody", |holder| holder.instance.as_str());
                        format!("store: {holder} epoch {} seq {} token {}", next.epoch, next.seq, next.token)
                    });
                    self.tally.takeovers += u64::from(held && next.epoch != before);
                    self.changed(call.who, before, next);
                }
                Answer::Swap(Ok(swap))
            }
        };
        let answer = if unknown { failed(&call, Trouble::Unknown("the connection broke".into())) } else { answer };
        self.reply(call, answer);
    }

    fn reply(&mut self, call: Call, answer: Answer) {
        if self.hosts[call.who.host].cut.1 || self.luck(self.weather.reply_lost) {
            self.note(|| format!("the answer to {} call {} is lost", show(call.who), call.id));
            return;
        }
        let mut delay = self.travel();
        let q = self.hosts[call.who.host].timing.store_timeout;
        if self.luck(self.weather.slow) {
            delay += self.chance.between(0, q.as_nanos() as u64 / 5 * 6);
        }
        if answer == Answer::Swap(Ok(Swap::Done))
            && let Some(how_long) = self.hosts[call.who.host].last_breath.take()
            && !self.calm
        {
            let q = q.as_nanos() as u64;
            delay = self.chance.between(q * 8 / 10, q * 97 / 100).saturating_sub(2 * self.latency);
            self.cut_off(call.who.host, (true, true), how_long);
        }
        if self.luck(self.weather.twice) {
            let later = delay + self.chance.up_to(q * 4);
            let again = Happens::Answered { call: Box::new(call.clone()), answer: Box::new(answer.clone()) };
            self.after(later, again);
        }
        self.after(delay, Happens::Answered { call: Box::new(call), answer: Box::new(answer) });
    }

    fn answered(&mut self, call: Call, answer: Answer) {
        let who = call.who;
        let Some(agent) = self.agent(who) else { return };
        let counts = agent.open == Some(call.id);
        if counts {
            agent.open = None;
        }
        let mut not_ours = None;
        if counts {
            match (&answer, &call.swap) {
                (Answer::Swap(Ok(Swap::Done)), Some((_, next))) if next.holder.is_some() => {
                    self.confirmed(who, call.asked, next);
                }
                (Answer::Swap(Ok(Swap::Changed(sighting))), _) => not_ours = self.not_ours(who, sighting),
                (Answer::Look(Ok(look)), _) => not_ours = self.not_ours(who, &look.sighting),
                _ => {}
            }
        }
        let lived = self.step(who, Event::Answer { id: call.id, answer });
        if let (Some(tree), true) = (not_ours, lived) {
            self.kill_expected(tree);
        }
    }

    fn waits(&mut self, who: Who, id: u64, limit: Duration) {
        if let Some(agent) = self.agent(who)
            && let Some(open) = agent.open.replace(id)
        {
            self.stalls(format!("{} waits while call {open} is open", show(who)));
            return;
        }
        if self.hosts[who.host].cut.0 || self.hosts[who.host].cut.1 {
            // It hangs, or fails at once.
            if self.chance.permille(500) {
                let delay = self.travel();
                self.wait_ends(who, id, delay, Err(Trouble::Unknown("unreachable".into())));
            }
            return;
        }
        let (delay, answer) = match self.store.condition {
            // No wait is shorter than its way through a thread.
            Condition::Up => (self.hosts[who.host].clock.waits(limit) + 20_000, Ok(false)),
            Condition::Frozen => return,
            Condition::Down => (self.travel(), Err(Trouble::Refused("connection refused".into()))),
        };
        if self.luck(self.weather.reply_lost) {
            return;
        }
        self.waiting.push((who, id));
        self.wait_ends(who, id, delay, answer);
    }

    fn wait_ends(&mut self, who: Who, id: u64, delay: u64, answer: Result<bool, Trouble>) {
        let call = Call { who, id, asked: crate::core::Boot::ZERO, swap: None };
        let answer = Box::new(Answer::Wait(answer));
        self.after(delay, Happens::Answered { call: Box::new(call), answer });
    }

    /// Most of those who wait learn of a change at once.
    fn tell_waiting(&mut self) {
        for (who, id) in std::mem::take(&mut self.waiting) {
            let reaches = !self.hosts[who.host].cut.1 && (self.calm || self.chance.permille(800));
            if reaches && self.agent(who).is_some_and(|agent| agent.open == Some(id)) {
                let delay = self.travel();
                self.wait_ends(who, id, delay, Ok(true));
            }
        }
    }

    fn store_recovers(&mut self) {
        self.note(|| "the store is up".into());
        self.store.condition = Condition::Up;
        let mut hanging = std::mem::take(&mut self.hanging);
        while !hanging.is_empty() {
            let n = self.chance.below(hanging.len());
            let call = hanging.swap_remove(n);
            // Some clients are gone by now and their statements with them, some are not.
            if self.chance.permille(700) {
                self.carried_out(call);
            }
        }
    }

    fn store_fails(&mut self, condition: Condition, how_long: u64) {
        self.note(|| format!("the store is {condition:?} for {:.3} s", how_long as f64 / S as f64));
        self.store.condition = condition;
        self.store_until += 1;
        let n = self.store_until;
        self.until(how_long, Happens::Store(n));
    }

    fn remake(&mut self) {
        if self.store.record.is_none() {
            self.note(|| "the record is made anew".into());
            let t = self.t;
            // Who makes a record draws its first seq: else it could not be told from the one before.
            let seq = self.chance.between(0, u64::from(u32::MAX));
            self.store.remake(t, Record::fresh(self.longest.ttl, self.longest.renew, seq));
            self.tell_waiting();
        }
    }

    /// `locum run` makes the record if there is none.
    pub fn run_may_make_record(&mut self, host: usize) {
        let reaches = self.store.condition == Condition::Up && self.hosts[host].cut == (false, false);
        if reaches && self.chance.permille(500) {
            self.remake();
        }
    }

    // ---- what goes wrong ----

    /// So long from now, and not longer than things go wrong at all.
    pub fn before_calm(&self, how_long: u64) -> Ns {
        (self.t + how_long).min(self.faults_end.max(self.t))
    }

    /// Faults end in time.
    fn until(&mut self, how_long: u64, what: Happens) -> Ns {
        let at = self.before_calm(how_long);
        self.at(at, what);
        at
    }

    pub fn restart_later(&mut self, host: usize) {
        if self.ending {
            return;
        }
        let pause = if self.chance.permille(400) {
            self.chance.between(0, 50 * MS)
        } else {
            self.chance.up_to(RESTART_PAUSE.min(self.longest.ttl * 2))
        };
        self.after(pause, Happens::KeeperStarts { host });
    }

    fn mischief(&mut self) {
        if self.calm {
            return;
        }
        let calm_between = if self.gentle { self.longest.ttl.as_nanos() as u64 * 3 / 2 } else { 0 };
        let pause = calm_between + self.chance.up_to(self.longest.ttl * 2);
        self.after(pause, Happens::Mischief);
        self.tally.mischief += 1;
        let what = self.weather.mischief[self.chance.below(self.weather.mischief.len())];
        let host = self.chance.below(self.hosts.len());
        // Shorter than a call's bound, than the budget, than the lease, longer than all.
        let longest = self.longest;
        let unnoticed = longest.budget().unnoticed.mul_f64(1.0 - longest.clock_error);
        let most = if self.gentle {
            unnoticed
        } else {
            self.chance.pick(&[longest.store_timeout, longest.budget().unnoticed, longest.ttl, longest.ttl * 3])
        };
        let how_long = self.chance.between(MS, most.as_nanos() as u64);
        self.note(|| format!("mischief: {what:?} (host {host}, up to {:.3} s)", how_long as f64 / S as f64));
        match what {
            Mischief::Freeze => self.store_fails(Condition::Frozen, how_long),
            Mischief::Down => self.store_fails(Condition::Down, how_long),
            Mischief::Restart => {
                self.hanging.clear();
                let short = self.longest.store_timeout.as_nanos() as u64;
                let how_long = self.chance.between(MS, short);
                self.store_fails(Condition::Down, how_long);
            }
            Mischief::Promote => self.promote(0),
            Mischief::RollBack => {
                let most = self.store.writes() - 1;
                let lost = self.chance.pick(&[1, 2, 3, 10, most]).min(most);
                self.lenient |= self.mixed;
                self.promote(lost);
            }
            Mischief::StoreClock => {
                self.store.clock_error = self.chance.pick(&[0, 3600, -3600, 5]) * S as i64;
            }
            Mischief::Cut => {
                let cut = self.chance.pick(&[(true, true), (true, false), (false, true)]);
                self.cut_off(host, cut, how_long);
            }
            Mischief::AgentKilled => self.kill_agent(host),
            Mischief::AgentHangs => self.hang_agent(host, how_long),
            Mischief::KeeperKilled => self.kill_keeper(host),
            Mischief::KeeperStopped => self.stop_keeper(host, how_long),
            Mischief::Crash => self.crash(host),
            Mischief::Suspend => self.suspend(host, how_long),
            Mischief::CommandEnds => self.command_ends(),
            Mischief::Sick => {
                self.hosts[host].sick = true;
                self.until(how_long, Happens::Well { host });
            }
            Mischief::Asked => self.ask(host, 15),
            Mischief::AskedTwice => {
                self.ask(host, 15);
                self.ask(host, 15);
            }
            Mischief::Hup => self.ask(host, 1),
            Mischief::Delete => {
                self.era += 1;
                self.store.delete();
                self.until(how_long, Happens::Remade);
            }
            Mischief::LastBreath => self.hosts[host].last_breath = Some(how_long),
            Mischief::Forget => {
                // As long as it takes for the others to have seen nothing new for a whole ttl.
                let least = longest.ttl.mul_f64(1.01).as_nanos() as u64;
                let how_long = least + self.chance.up_to(longest.ttl * 2);
                let writes = self.store.writes();
                let holder = self.store.record.as_ref().and_then(|record| record.holder.as_ref());
                let holder = holder.map(|holder| holder.node.clone());
                for host in 0..self.hosts.len() {
                    if Some(&self.hosts[host].name) != holder.as_ref() {
                        self.cut_off(host, (true, true), how_long + 1);
                    }
                }
                self.until(how_long, Happens::Forgets { writes });
            }
            Mischief::Drift => {
                if self.hosts[host].asleep_until <= self.t {
                    self.drifts(host);
                }
            }
        }
    }

    fn cut_off(&mut self, host: usize, cut: (bool, bool), how_long: u64) {
        self.hosts[host].cut = cut;
        self.hosts[host].cuts += 1;
        let cut = self.hosts[host].cuts;
        self.until(how_long, Happens::Joined { host, cut });
    }

    fn forgets(&mut self, writes: usize) {
        let lost = self.store.writes().saturating_sub(writes);
        if !self.calm && lost > 0 {
            self.lenient |= self.mixed;
            self.promote(lost);
        }
    }

    fn promote(&mut self, lost: usize) {
        // What hung on the old primary ends with it.
        self.hanging.clear();
        self.store.promote(lost);
        let text = self.store.record.as_ref().map_or("no record".to_string(), |record| {
            let holder = record.holder.as_ref().map_or("nobody", |holder| holder.instance.as_str());
            format!("{holder} epoch {} seq {}", record.epoch, record.seq)
        });
        let timeline = self.store.generation.timeline;
        self.note(|| format!("promoted to timeline {timeline}, {lost} writes lost: {text}"));
        if lost > 0 && self.store.record.is_none() {
            self.after(0, Happens::Remade);
        }
    }

    fn suspend(&mut self, host: usize, how_long: u64) {
        let t = self.t;
        if self.hosts[host].asleep_until > t {
            return;
        }
        self.hosts[host].clock.sleep(t, true);
        let until = self.until(how_long, Happens::Awake { host });
        self.hosts[host].asleep_until = until;
        // Its processes stand still, so they are not two yet; when they go on, only
        // a kill at once is in our power.
        let timing = self.hosts[host].timing;
        let excused = until + (timing.kill_margin + timing.slack()).as_nanos() as u64;
        for tree in self.alive.clone() {
            if self.trees[tree].host == host {
                self.trees[tree].excused_until = excused;
                self.trees[tree].must_be_gone = None;
                self.at(excused + 1, Happens::Excused { tree });
            }
        }
    }

    // ---- the calm after ----

    /// Within this after the last fault, somebody is active. Each term is one thing that
    /// has to be over first; the longest ttl counts where nodes differ:
    ///
    /// - a keeper that ended is started again (`RESTART_PAUSE`), its agent after one that
    ///   died or hangs (1.5 P of silence, and the pause between two agents, here ≤ 1 s);
    /// - a standby that waits looks again (P + j; Q more if the wait hangs), and that look
    ///   may be given up once (Q);
    /// - the lease that nobody renews is watched for the promised time, L(1+ρ)/(1−ρ),
    ///   by a clock that may be slow (1/(1−ρ)), and watched anew if its holder, alive or
    ///   killed with a renewal under way, wrote once more: another P + Q;
    /// - a claim collides with another one, or its answer was lost: look, renew, each
    ///   within Q, twice over: 4Q;
    /// - the holder's command is being stopped (its stop time, or what the lease leaves of
    ///   it, and κ) and then waits out the longest pause before a start;
    /// - and each of the steps above may be late by j.
    fn active_within(&self) -> Duration {
        let t = &self.longest;
        let rules = self.hosts.iter().map(|host| &host.supervision);
        let stop = rules.clone().map(|rules| rules.stop_timeout).max().unwrap() + t.kill_margin;
        let pause = rules.map(|rules| rules.delay * rules.max_factor).max().unwrap();
        let agent = t.renew.mul_f64(1.5) + Duration::from_secs(1);
        let look = t.renew + t.slack() + 2 * t.store_timeout;
        let watch = t.patience(t.ttl).mul_f64(1.0 / (1.0 - t.clock_error)) + t.renew + t.store_timeout;
        RESTART_PAUSE + agent + look + watch + 4 * t.store_timeout + stop + pause + 8 * t.slack()
    }

    /// Within this after TERM the keeper is gone: the command's stop time and κ, then the
    /// release, which is tried for 2Q; a claim under way is waited for (Q), and the store
    /// is asked whether it took effect (Q). Again each step may be late by j.
    fn ended_within(&self, host: usize) -> Duration {
        let host = &self.hosts[host];
        let t = &host.timing;
        host.supervision.stop_timeout + t.kill_margin + 4 * t.store_timeout + 4 * t.slack()
    }

    fn begin_calm(&mut self) {
        self.note(|| "calm: no more faults".into());
        self.calm = true;
        self.store_recovers();
        self.remake();
        for host in 0..self.hosts.len() {
            self.hosts[host].cut = (false, false);
            self.hosts[host].sick = false;
            if self.hosts[host].asleep_until <= self.t {
                self.drifts(host);
            }
        }
        let within = self.active_within().as_nanos() as u64;
        self.after(within, Happens::SomebodyIsActive);
    }

    fn somebody_is_active(&mut self) {
        let runs = self.alive.iter().any(|&tree| self.trees[tree].leader_lives && !self.trees[tree].termed);
        if !runs {
            self.stalls(format!("nobody is active {:?} after the last fault", self.active_within()));
            return;
        }
        for host in &mut self.hosts {
            host.calls = 0;
        }
        self.steady_from = self.t;
        let window = self.longest.renew.as_nanos() as u64 * 6;
        self.after(window, Happens::Steady);
    }

    /// At most one call per node and cycle, when nothing happens; a cycle is the shorter of
    /// the node's own and the holder's.
    fn steady(&mut self) {
        let window = Duration::from_nanos(self.t - self.steady_from);
        let holders = self.store.record.as_ref().map_or(self.longest.renew, |record| record.renew);
        for host in 0..self.hosts.len() {
            let cycle = self.hosts[host].timing.renew.min(holders);
            let most = (window.as_secs_f64() / cycle.as_secs_f64()).ceil() as u64 + 2;
            if self.hosts[host].calls > most {
                let calls = self.hosts[host].calls;
                self.stalls(format!("host {host} asks the store {calls} times in {window:?}, cycle {cycle:?}"));
                return;
            }
        }
        self.ending = true;
        let mut within = Duration::ZERO;
        for host in 0..self.hosts.len() {
            within = within.max(self.ended_within(host));
            self.ask(host, 15);
        }
        self.after(within.as_nanos() as u64, Happens::AllEnded);
    }

    fn all_ended(&mut self) {
        if let Some(host) = self.hosts.iter().position(|host| host.keeper.is_some()) {
            self.stalls(format!("host {host} has not ended {:?} after it was asked to", self.ended_within(host)));
        }
        if let Some(holder) = self.store.record.as_ref().and_then(|record| record.holder.clone()) {
            self.stalls(format!("{} ended in order without giving the lease back", holder.instance));
        }
        if !self.alive.is_empty() {
            self.stalls("a tree outlives its keeper".into());
        }
        if self.hosts.iter().any(|host| !host.orphans.is_empty()) {
            self.stalls("an agent outlives its keeper for too long".into());
        }
        self.heap.clear();
    }

    // ---- what must hold ----

    /// A swap leaves: a claim only when nothing of the command is left.
    fn check_swap(&mut self, who: Who, next: &Record) {
        let Some(tree) = self.tree_of(who.host, who.life) else { return };
        if next.holder.is_some() && next.epoch != self.trees[tree].epoch {
            self.breaks(format!("{} claims epoch {} while its command lives", show(who), next.epoch));
        }
    }

    /// A swap took effect.
    fn changed(&mut self, who: Who, before: u64, next: &Record) {
        match &next.holder {
            None => {
                self.tally.releases += 1;
                if let Some(tree) = self.tree_of(who.host, who.life) {
                    let pid = self.trees[tree].pid;
                    self.breaks(format!("{} released the lease while pid {pid} lives", show(who)));
                }
            }
            Some(holder) if next.epoch != before => {
                self.tally.claims += 1;
                self.claimed_in.insert((holder.instance.clone(), next.epoch), self.era);
                let key = (self.era, self.store.generation.timeline, next.epoch);
                let first = self.epochs.entry(key).or_insert_with(|| holder.instance.clone()).clone();
                if first != holder.instance {
                    self.breaks(format!("epoch {} was {first}'s and is now {}'s", next.epoch, holder.instance));
                }
            }
            Some(_) => {}
        }
        self.tell_waiting();
    }

    /// The success of a swap was seen: from its `s` the tree has its time.
    fn confirmed(&mut self, who: Who, asked: crate::core::Boot, next: &Record) {
        // Worked out here anew: the core's own figure is what has to be checked.
        let rho = RHO_PPM as f64 / 1e6;
        let end = asked.plus(next.ttl.mul_f64((1.0 - rho) / (1.0 + rho)));
        let t = self.t;
        let Some(keeper) = self.hosts[who.host].keeper.as_mut().filter(|keeper| keeper.life == who.life) else {
            return;
        };
        keeper.confirmed = Some((next.epoch, end));
        // A keeper that is stopped acknowledges nothing: one renewal may be under way or
        // follow the last acknowledgement, and no other one.
        keeper.unheard = if keeper.stopped_until > t { keeper.unheard + 1 } else { 0 };
        if keeper.unheard > 1 {
            self.breaks(format!("{} goes on renewing for a keeper that does not answer", show(who)));
            return;
        }
        if let Some(tree) = self.tree_of(who.host, who.life)
            && self.trees[tree].epoch == next.epoch
        {
            self.trees[tree].end = end;
        }
    }

    /// The tree that has to be killed, now that its agent sees a record that is not its lease.
    fn not_ours(&mut self, who: Who, sighting: &crate::core::Sighting) -> Option<usize> {
        let tree = self.tree_of(who.host, who.life)?;
        let keeper = self.hosts[who.host].keeper.as_ref().filter(|keeper| keeper.life == who.life)?;
        let ours = sighting.record.as_ref().is_some_and(|record| {
            record.epoch == self.trees[tree].epoch
                && record.holder.as_ref().is_some_and(|holder| holder.instance == keeper.instance)
        });
        (!ours && keeper.stopped_until <= self.t).then_some(tree)
    }

    fn kill_expected(&mut self, tree: usize) {
        let timing = self.hosts[self.trees[tree].host].timing;
        let by = self.t + (timing.kill_margin + timing.slack()).as_nanos() as u64;
        if self.trees[tree].must_be_gone.is_none() {
            self.trees[tree].must_be_gone = Some(by);
            self.at(by, Happens::MustBeGone { tree });
        }
    }

    fn must_be_gone(&mut self, tree: usize) {
        if self.trees[tree].gone.is_none() && self.trees[tree].must_be_gone.is_some_and(|by| by <= self.t) {
            let pid = self.trees[tree].pid;
            self.breaks(format!("pid {pid} still lives after its agent saw that the lease is lost"));
        }
    }

    fn no_longer_excused(&mut self, tree: usize) {
        let now = self.hosts[self.trees[tree].host].clock.read(self.t);
        let late = self.trees[tree].gone.is_none() && self.trees[tree].excused_until < self.t;
        if late && has_passed(now, self.trees[tree].end) {
            let pid = self.trees[tree].pid;
            self.breaks(format!("pid {pid} was not killed at once when its machine went on"));
        }
    }

    pub fn tree_of(&self, host: usize, life: u32) -> Option<usize> {
        self.alive.iter().copied().find(|&tree| self.trees[tree].host == host && self.trees[tree].life == life)
    }

    /// A tree is started: everything that must hold then.
    pub fn check_start(&mut self, who: Who, epoch: u64, token: u64) {
        let t = self.t;
        let now = self.hosts[who.host].clock.read(t);
        let Some(keeper) = &self.hosts[who.host].keeper else { return };
        let instance = keeper.instance.clone();
        let leased = keeper.confirmed.is_some_and(|(confirmed, end)| confirmed == epoch && !has_passed(now, end));
        if !leased {
            self.breaks(format!("{} starts the command without a confirmed lease of epoch {epoch}", show(who)));
        }
        let other = self.alive.iter().copied().find(|&tree| self.trees[tree].excused_until < t);
        if let (Some(other), false) = (other, self.lenient) {
            let Tree { host, life, epoch: old, pid, .. } = self.trees[other];
            let live = format!("pid {pid} of host {host} life {life} under epoch {old}");
            self.breaks(format!("two live trees: {live}, and now one of {} under epoch {epoch}", show(who)));
        }
        let claimed_in = self.claimed_in.get(&(instance.clone(), epoch)).copied().unwrap_or_default();
        if let Some((era, last, last_epoch, last_token)) = self.last_start.clone()
            && era == claimed_in
        {
            let same = last == instance && last_epoch == epoch;
            let fits = token > last_token || (same && token == last_token);
            if !fits {
                self.breaks(format!(
                    "token {token} of epoch {epoch} ({instance}) after token {last_token} of epoch {last_epoch} ({last})"
                ));
            }
        }
        self.last_start = Some((claimed_in, instance, epoch, token));
        if let Some(since) = self.idle_since.take() {
            self.tally.gap = self.tally.gap.max((t - since) * 100 / self.longest.ttl.as_nanos() as u64);
        }
        self.tally.starts += 1;
    }

    /// Whether some agents end by themselves here, because they were told to.
    pub fn weather_is_odd(&self) -> bool {
        self.weather.odd_patience > 0
    }

    /// Whether this agent's keeper is dead.
    pub fn is_orphan(&self, who: Who) -> bool {
        self.hosts[who.host].orphans.iter().any(|keeper| keeper.life == who.life)
    }

    pub fn start_fails(&mut self) -> bool {
        self.luck(self.weather.start_fails)
    }
}

fn q(timing: &Timing) -> u64 {
    timing.store_timeout.as_nanos() as u64
}

fn failed(call: &Call, trouble: Trouble) -> Answer {
    match call.swap {
        None => Answer::Look(Err(trouble)),
        Some(_) => Answer::Swap(Err(trouble)),
    }
}

pub fn show(who: Who) -> String {
    format!("host {}.{}.{}", who.host, who.life, who.agent)
}

fn of(version: &Version) -> String {
    let timeline = version.generation.as_ref().map_or(0, |generation| generation.timeline);
    format!("{timeline}/{}/{}", version.epoch, version.seq)
}

fn brief(record: &Record) -> String {
    let holder = record.holder.as_ref().map_or("nobody", |holder| holder.instance.as_str());
    format!("[{} {holder} token {} ttl {:?}]", of(&record.version()), record.token, record.ttl)
}

fn seen(sighting: &crate::core::Sighting) -> String {
    let record = sighting.record.as_ref().map_or("no record".to_string(), brief);
    format!("{record} under timeline {}", sighting.generation.timeline)
}

fn told(event: &Event) -> String {
    match event {
        Event::Answer { id, answer: Answer::Look(Ok(look)) } => format!("answer {id}: {}", seen(&look.sighting)),
        Event::Answer { id, answer: Answer::Swap(Ok(Swap::Changed(now))) } => {
            format!("answer {id}: changed, {}", seen(now))
        }
        Event::Answer { id, answer } => format!("answer {id}: {answer:?}"),
        Event::Keeper(crate::core::Report::Hello(_)) => "hello".into(),
        other => format!("{other:?}"),
    }
}
