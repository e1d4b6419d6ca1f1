//! The agent: the process that decides. Threads around the core.
//!
//! The main loop turns the world into events and the node's effects into deeds, and
//! nothing else. Whatever may hang (the store, the health URL, the log) lives on a
//! thread of its own, so that a renewal is never late because of it.
//!
//! The agent may die or hang at any moment: the keeper starts another one, and the
//! command goes on. What must never happen here: that the lease is given back without
//! proof that the command's tree is gone.

pub mod control;
pub mod health;
pub mod inbox;
pub mod logging;
mod setup;

use crate::config::Config;
use crate::core::{Boot, Effect, Event, Level, Member, Node, Order, Report, Snapshot, Tree};
use crate::status::Local;
use crate::store::Prepared;
use crate::store::bounded::Calls;
use crate::tree::{self, Proof};
use crate::wire::{CgroupFds, End};
use crate::{exit, store, sys, wire};
use control::Control;
use inbox::Inbox;
use log::{debug, error, info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

/// The keeper's first word comes at once; after this it never comes.
const FIRST_WORDS: Duration = Duration::from_secs(5);
/// However far the next deadline is: look again.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// What the threads tell the main loop.
#[expect(clippy::large_enum_variant, reason = "few live at a time, each for a moment")]
enum News {
    Event(Event),
    /// The store was made ready, or could not be.
    Prepared(Prepared),
    /// The control socket wants the status.
    Status(mpsc::SyncSender<Local>),
}

/// The life of `locum agent`. Returns its exit code.
pub fn run(with_cgroup: bool) -> u8 {
    sys::share_heap();
    let inherited = match wire::agent_end(with_cgroup) {
        Ok(inherited) => inherited,
        Err(error) => {
            eprintln!("locum: cannot run an agent: {error} (locum run starts it by itself)");
            return exit::SOFTWARE;
        }
    };
    let config: Config = match serde_json::from_slice(&inherited.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("locum: cannot read the configuration that the keeper handed over: {error}");
            return exit::SOFTWARE;
        }
    };
    if let Err(error) = logging::start(&config.log, &setup::name(&config)) {
        eprintln!("locum: {error}");
    }
    let code = match Agent::new(&config, inherited.end, inherited.cgroup) {
        Ok(mut agent) => agent.run(),
        Err(why) => {
            error!("cannot run the agent: {why}");
            exit::SOFTWARE
        }
    };
    logging::flush();
    code
}

struct Agent<'a> {
    config: &'a Config,
    wire: End,
    keeper: tree::Watch,
    keeper_pid: i32,
    /// The keeper is dead and so, for certain, is the command's tree: what the keeper
    /// would answer is answered here, until the lease is given back.
    orphaned: bool,
    snapshot: Snapshot,
    node: Node,
    inbox: Inbox<News>,
    calls: Option<Calls>,
    prober: Option<health::Prober>,
    /// The store is being made ready: a look has to wait for that.
    preparing: bool,
    waiting_look: Option<(u64, Member)>,
    events: VecDeque<Event>,
    /// When a health check under way is given up.
    probe_until: Option<Boot>,
    /// Serves the status for as long as it is held.
    _control: Option<Control>,
    end: Option<u8>,
}

impl<'a> Agent<'a> {
    fn new(config: &'a Config, wire: End, cgroup: Option<CgroupFds>) -> Result<Agent<'a>, String> {
        let snapshot = first_words(&wire)?;
        let keeper_pid = wire.maker().map_err(|error| format!("cannot learn who the keeper is: {error}"))?;
        let mut keeper = tree::Watch::begin(keeper_pid, &snapshot.instance, cgroup);
        if let Tree::Running { pid, .. } | Tree::Ending { pid } = snapshot.tree {
            keeper.leader(Some(pid));
        }
        let inbox = Inbox::new().map_err(|error| format!("cannot make an inbox: {error}"))?;
        let verdicts = inbox.sender();
        let prober = config.health.url.as_ref().map(|url| {
            health::Prober::start(url, config.health.request_timeout, move |verdict| {
                verdicts.send(News::Event(Event::Judged(verdict)));
            })
        });
        let node = Node::new(setup::node(config), sys::now(), &snapshot);
        let answers = inbox.sender();
        let calls = match &config.lease {
            Some(lease) => Some(store::open(&config.service, lease, node.generation(), move |id, answer| {
                answers.send(News::Event(Event::Answer { id, answer }));
            })?),
            None => None,
        };
        // Only the first agent of a keeper makes what is missing in the store: one that is
        // started over a running service must not make a record that somebody deleted.
        let preparing = match &config.lease {
            Some(lease) if snapshot.agents == 0 => {
                let done = inbox.sender();
                store::prepare(&config.service, lease, move |news| done.send(News::Prepared(news)));
                true
            }
            _ => false,
        };
        Ok(Agent {
            config,
            wire,
            keeper,
            keeper_pid,
            _control: None,
            orphaned: false,
            snapshot,
            node,
            inbox,
            calls,
            prober,
            preparing,
            waiting_look: None,
            events: VecDeque::new(),
            probe_until: None,
            end: None,
        })
    }

    fn run(&mut self) -> u8 {
        self.step(Event::Tick);
        // After the first orders: the command waits for them, and nobody for this.
        self._control = self.serve_status();
        loop {
            self.give_up_probe();
            while let Some(event) = self.events.pop_front() {
                self.step(event);
            }
            if let Some(code) = self.end {
                return code;
            }
            self.sleep();
            for news in self.inbox.take() {
                self.hear(news);
            }
            if !self.orphaned {
                self.hear_keeper();
            }
            if self.events.is_empty() {
                self.step(Event::Tick);
            }
        }
    }

    fn serve_status(&self) -> Option<Control> {
        let asked = self.inbox.sender();
        let answer_status = move || {
            let (answer, wait) = mpsc::sync_channel(1);
            asked.send(News::Status(answer));
            wait.recv_timeout(Duration::from_secs(1)).ok()
        };
        let control = Control::serve(&self.config.service, setup::node_name(self.config), answer_status);
        control.map_err(|why| warn!("locum status will not see this node: {why}")).ok()
    }

    /// Waits for the keeper, the threads, or the node's next deadline.
    fn sleep(&self) {
        // Rounded up: a deadline that is looked at too early is looked at twice.
        let now = sys::now();
        let probe = self.probe_until.map_or(LONGEST_SLEEP, |until| now.until(until));
        let wait = self.node.wake_in(now).min(probe) + Duration::from_micros(999);
        let wait = PollTimeout::try_from(wait.min(LONGEST_SLEEP)).unwrap_or(PollTimeout::MAX);
        let inbox = PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN);
        let wire = PollFd::new(self.wire.as_fd(), PollFlags::POLLIN);
        // EINTR and the like: the loop looks at everything anyway.
        let _ = match self.orphaned {
            true => poll(&mut [inbox], wait),
            false => poll(&mut [inbox, wire], wait),
        };
    }

    /// A check whose verdict did not come in time hangs: that is a verdict, too.
    fn give_up_probe(&mut self) {
        let Some(prober) = &mut self.prober else { return };
        if self.probe_until.is_some_and(|until| sys::now().has_reached(until)) {
            self.probe_until = None;
            if let Some(verdict) = prober.give_up() {
                self.events.push_back(Event::Judged(verdict));
            }
        }
    }

    fn hear(&mut self, news: News) {
        if let News::Event(Event::Judged(_)) = news {
            self.probe_until = None;
        }
        match news {
            News::Event(event) => self.events.push_back(event),
            News::Prepared(prepared) => self.prepared(prepared),
            News::Status(answer) => {
                // A reader that gave up meanwhile is no concern of ours.
                let _ = answer.try_send(self.status());
            }
        }
    }

    fn prepared(&mut self, prepared: Prepared) {
        match &prepared {
            Prepared::Ready { made: false } => {}
            Prepared::Ready { made: true } => {
                let ttl = self.config.lease.as_ref().map_or(Duration::ZERO, |lease| lease.timing.ttl);
                info!(
                    "made the record of this service in the store; waiting one ttl ({:.1} s) before claiming it, \
                     because whoever held a record that was here before may still run",
                    ttl.as_secs_f64()
                );
            }
            Prepared::Later(why) => warn!("{why}; trying again"),
            Prepared::Denied(why) => {
                self.events.push_back(Event::Unusable { code: exit::RIGHTS, why: why.clone() });
            }
            Prepared::Unusable(why) => {
                self.events.push_back(Event::Unusable { code: exit::CONFIGURATION, why: why.clone() });
            }
        }
        if matches!(prepared, Prepared::Denied(_) | Prepared::Unusable(_)) {
            return;
        }
        self.preparing = false;
        if let (Some((id, me)), Some(calls)) = (self.waiting_look.take(), &mut self.calls) {
            calls.look(id, &me);
        }
    }

    fn hear_keeper(&mut self) {
        loop {
            match self.wire.next_report() {
                Ok(Some(Report::Asked { signal })) if signal == Signal::SIGHUP as i32 => logging::reopen(),
                Ok(Some(report)) => {
                    match report {
                        Report::Started { pid } => {
                            self.keeper.leader(Some(pid));
                            // One that is under way asked the command before this one.
                            self.probe_until = None;
                            self.prober.as_mut().and_then(health::Prober::give_up);
                        }
                        Report::Gone => self.keeper.leader(None),
                        _ => {}
                    }
                    self.events.push_back(Event::Keeper(report));
                }
                Ok(None) => return,
                Err(error) => {
                    self.lost_keeper(&error.to_string());
                    return;
                }
            }
        }
    }

    fn step(&mut self, event: Event) {
        let effects = self.node.step(sys::now(), event);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Look { id, me } if self.preparing => self.waiting_look = Some((id, me)),
            Effect::Look { id, me } => self.with_calls(|calls| calls.look(id, &me)),
            Effect::Swap { id, version, next, entry, me } => {
                self.with_calls(|calls| calls.swap(id, &version, &next, entry.as_ref(), &me));
            }
            Effect::Wait { id, limit } => self.with_calls(|calls| calls.wait(id, limit)),
            Effect::GiveUp => {
                if self.waiting_look.take().is_none() {
                    self.with_calls(|calls| {
                        calls.give_up();
                    });
                }
            }
            Effect::Order(order) if self.orphaned => self.answer_for_keeper(&order),
            Effect::Order(order) => {
                if let Err(error) = self.wire.send_order(&order) {
                    // A keeper that reads nothing is dead or stopped: the deadline will tell.
                    warn!("cannot tell the keeper: {error}");
                }
            }
            Effect::Probe => {
                if let Some(prober) = &mut self.prober {
                    self.probe_until = Some(sys::now().plus(prober.patience()));
                    prober.probe();
                }
            }
            Effect::Tell(level, text) => tell(level, &text),
            Effect::KillAll => {
                let proof = self.keeper.overrule();
                self.orphan(proof);
            }
        }
    }

    fn with_calls(&mut self, call: impl FnOnce(&mut Calls)) {
        if let Some(calls) = &mut self.calls {
            call(calls);
        }
    }

    /// The keeper is gone, and with it whoever could have killed the command's tree.
    fn lost_keeper(&mut self, why: &str) {
        if self.end.is_some() {
            return;
        }
        if self.node.has_ended() {
            self.end = Some(0);
            return;
        }
        // Kill first, log after.
        let proof = match self.node.is_tree_gone() {
            // The keeper said so, and nobody could have started anything since.
            true => Proof::Gone,
            false => self.keeper.bury(),
        };
        error!("the keeper is gone ({why}): killed what was left of the command");
        self.orphan(proof);
    }

    /// Without a keeper, only proof that nothing is left allows the lease to be given back.
    fn orphan(&mut self, proof: Proof) {
        self.orphaned = true;
        self.events.clear();
        match proof {
            Proof::Gone => self.events.push_back(Event::Orphaned),
            Proof::Unproven => {
                if self.config.lease.is_some() {
                    warn!("there is no proof that nothing of the command is left: the lease runs out by itself");
                }
                self.end = Some(exit::SOFTWARE);
            }
        }
    }

    fn answer_for_keeper(&mut self, order: &Order) {
        match order {
            Order::Lease { epoch, limits } => {
                let ack = Report::LeaseAck { epoch: *epoch, kill_at: limits.kill_at };
                self.events.push_back(Event::Keeper(ack));
            }
            Order::Shutdown { .. } => self.end = Some(exit::SOFTWARE),
            _ => {}
        }
    }

    fn status(&self) -> Local {
        let now = sys::now();
        let view = self.node.view(now);
        Local {
            service: self.config.service.clone(),
            node: setup::node_name(self.config).to_string(),
            instance: self.snapshot.instance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            keeper_pid: self.keeper_pid,
            agent_pid: nix::unistd::getpid().as_raw(),
            agents_replaced: self.snapshot.agents,
            role: view.role,
            epoch: view.epoch,
            token: view.token,
            deadline_left: view.deadline_left.map(|left| left.as_secs_f64()),
            health: Some(view.health),
            health_detail: view.detail,
            pid: view.running.map(|(pid, _)| pid),
            uptime: view.running.map(|(_, since)| now.fast_since(since).as_secs_f64()),
            restarts: view.restarts,
            failed_tries: view.tries,
            last_exit: view.last_exit.map(|exit| exit.to_string()).unwrap_or_default(),
            next: view.next,
            tree: if self.keeper.can_prove() { "cgroup" } else { "group and sweep" }.into(),
            written_off: self.calls.as_ref().map_or(0, Calls::written_off),
            store_trouble: view.trouble.unwrap_or_default(),
            log_lines_dropped: logging::dropped(),
        }
    }
}

/// The keeper speaks first.
fn first_words(wire: &End) -> Result<Snapshot, String> {
    let mut fds = [PollFd::new(wire.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(FIRST_WORDS).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, limit).map_err(|error| format!("cannot wait for the keeper: {error}"))?;
    match wire.next_report() {
        Ok(Some(Report::Hello(snapshot))) => Ok(snapshot),
        Ok(Some(other)) => Err(format!("the keeper's first word was {other:?}")),
        Ok(None) => Err("the keeper said nothing".into()),
        Err(error) => Err(format!("cannot hear the keeper: {error}")),
    }
}

fn tell(level: Level, text: &str) {
    match level {
        Level::Error => error!("{text}"),
        Level::Warn => warn!("{text}"),
        Level::Info => info!("{text}"),
        Level::Debug => debug!("{text}"),
    }
}
