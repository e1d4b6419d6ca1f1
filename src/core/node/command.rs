//! The node's side towards the keeper: what is heard of the command, and what it needs.

use super::*;

impl Node {
    pub(super) fn keeper_said(&mut self, now: Boot, report: Report) {
        self.keeper_heard = now;
        match report {
            Report::Hello(_) => {}
            Report::Started { pid } => {
                if let Life::Starting { .. } = self.command.life {
                    self.command.started(now, pid);
                    self.tell(Level::Info, format!("started the command as pid {pid}"));
                } else if self.command.is_gone() {
                    // The two of us do not agree on what lives: nothing may, then.
                    self.tell(Level::Error, format!("the command runs as pid {pid} against our knowledge: killing it"));
                    self.command.ending(Ending::Lease);
                    self.order(Order::Kill);
                }
            }
            Report::StartFailed { stage, errno } => self.start_failed(now, stage, errno),
            Report::Exited(exit) => {
                // The keeper acts on a limit by itself: an end after it is not the command's doing.
                self.notice_doubt(now);
                let by_itself = !matches!(self.command.life, Life::Ending { .. });
                self.command.exited(exit);
                let level = if by_itself && exit != Exit::Code(0) { Level::Warn } else { Level::Info };
                self.tell(level, format!("the command {exit}"));
            }
            Report::Gone => {
                // A start that came too late for the lease was refused: no failed try.
                self.notice_doubt(now);
                self.tree_is_gone(now);
            }
            Report::LeaseAck { kill_at, .. } => {
                if self.unacked == Some(kill_at) {
                    self.unacked = None;
                }
                if let Some(finish) = &mut self.finish
                    && finish.sealed == Sealed::Asked
                    && kill_at == Boot::ZERO
                {
                    finish.sealed = Sealed::Yes;
                }
            }
            Report::Asked { signal } => {
                if signal != HUP && !self.asked_to_stop {
                    self.asked_to_stop = true;
                    self.stop(now, &format!("asked to stop by {}", signal_name(signal)));
                }
            }
            Report::Told { level, text } => self.tell(level, text),
        }
    }

    pub(super) fn start_failed(&mut self, now: Boot, stage: Stage, errno: i32) {
        let error = std::io::Error::from_raw_os_error(errno);
        if let Life::Ending { .. } = self.command.life {
            self.tree_is_gone(now);
            return;
        }
        let code = match (stage, errno) {
            // ENOENT is 2 on every Unix.
            (Stage::Exec, 2) => code::NOT_FOUND,
            _ => code::NOT_EXECUTABLE,
        };
        let names = &self.setup.names;
        let object = match stage {
            Stage::Exec => names.program.as_str(),
            Stage::Directory => &names.directory,
            Stage::User => &names.user,
            _ => "",
        };
        let space = if object.is_empty() { "" } else { " " };
        let what = format!("cannot start the command: {stage}{space}{object}: {error}");
        match self.command.start_failed(now, code) {
            Some(pause) => {
                let tries = self.command.tries;
                self.tell(Level::Error, format!("{what}; try {tries} failed, next one in {}", secs(pause)));
            }
            None => self.tell(Level::Error, what),
        }
    }

    pub(super) fn tree_is_gone(&mut self, now: Boot) {
        if self.command.is_gone() {
            return;
        }
        self.forfeit = None;
        match self.command.gone(now) {
            Some(pause) => {
                let tries = self.command.tries;
                self.tell(
                    Level::Info,
                    format!(
                        "nothing of the command is left; starting it again in {} (failed tries: {tries})",
                        secs(pause)
                    ),
                );
            }
            None => self.tell(Level::Info, "nothing of the command is left".into()),
        }
    }

    pub(super) fn judged(&mut self, now: Boot, verdict: Verdict) {
        let change = self.command.judged(now, verdict);
        let detail = self.command.detail.clone();
        match change {
            Change::None => {}
            Change::Ready { after } => {
                self.tell(Level::Info, format!("the command is healthy after {} ({detail})", secs(after)));
            }
            Change::Failing => {
                let timeout = secs(self.setup.supervision.timeout);
                self.tell(Level::Warn, format!("health check fails: {detail}; restart after {timeout} of this"));
            }
            Change::Recovered { after } => {
                self.tell(Level::Info, format!("healthy again after {} ({detail})", secs(after)));
            }
        }
    }

    /// The stop signal was due: the keeper has sent it, with or without us.
    pub(super) fn notice_doubt(&mut self, now: Boot) {
        let Some(held) = &self.held else { return };
        let in_doubt = held.limits() != Limits::PAST && now.has_reached(held.limits().term_at);
        if in_doubt && matches!(self.command.life, Life::Running { .. } | Life::Starting { .. }) {
            self.command.ending(Ending::Lease);
            self.tell(
                Level::Error,
                "the lease could not be renewed in time: the command is told to stop, and killed before the lease ends"
                    .into(),
            );
        }
    }

    /// When the agent acts in place of a keeper that has let `kill_at` pass.
    pub(super) fn last_resort(&self, limits: Limits) -> Boot {
        limits.kill_at.plus(self.setup.timing.map_or(Duration::ZERO, |timing| timing.kill_margin / 2))
    }

    /// The limits that something of the command lives under, if it does.
    pub(super) fn living_under(&self) -> Option<Limits> {
        let limits = self.held.as_ref().map(Held::limits).or(self.forfeit)?;
        (!self.command.is_gone()).then_some(limits)
    }

    pub(super) fn watch_keeper(&mut self, now: Boot) {
        let Some(limits) = self.living_under() else { return };
        let silent = !self.keeper_heard.has_reached(limits.kill_at);
        let due = limits != Limits::PAST && now.has_reached(self.last_resort(limits));
        if due && silent && !self.killed_all {
            self.killed_all = true;
            self.tell(Level::Error, "the keeper let the deadline pass: killing the command and the keeper".into());
            self.out.push(Effect::KillAll);
        }
    }

    pub(super) fn watch_command(&mut self, now: Boot) {
        match self.command.due(now) {
            Due::Nothing => {}
            Due::Probe => self.out.push(Effect::Probe),
            Due::Alive => self.judged(now, Verdict::Healthy("alive".into())),
            Due::TooSlow { after } => {
                let detail = self.command.detail.clone();
                self.tell(Level::Error, format!("not ready {} after its start, killing it ({detail})", secs(after)));
                self.command.ending(Ending::Sick);
                self.order(Order::Kill);
            }
            Due::TooSick { after } => {
                let detail = self.command.detail.clone();
                self.tell(Level::Error, format!("health check fails since {}, stopping it ({detail})", secs(after)));
                self.stop_command(now, Ending::Sick);
            }
        }
    }

    pub(super) fn start_if_due(&mut self, now: Boot) {
        if self.finish.is_some() || self.asked_to_stop || !self.command.wants_start(now) {
            return;
        }
        let start = match (&self.setup.timing, &self.held) {
            (None, _) => Start { epoch: 0, token: 0, previous: String::new() },
            (Some(_), Some(held)) if !now.has_reached(held.limits().term_at) => {
                // The keeper knows the token of the last start, not of this lease: look first.
                let Some((record, _)) = &held.record else { return };
                Start { epoch: held.epoch, token: held.token, previous: record.previous.clone() }
            }
            _ => return,
        };
        self.command.starting(now);
        if self.setup.timing.is_none() {
            self.order(Order::Lease { epoch: 0, limits: Limits::FOREVER });
        }
        self.order(Order::Start(start));
    }

    pub(super) fn stop_command(&mut self, _now: Boot, why: Ending) {
        self.command.ending(why);
        self.order(Order::Stop { grace: self.setup.supervision.stop_timeout });
    }

    /// An orderly stop: first the command, then the lease, then the keeper.
    pub(super) fn stop(&mut self, now: Boot, why: &str) {
        if self.command.is_gone() {
            self.tell(Level::Info, format!("{why}: ending"));
            self.begin_finish(now, code::OK, why);
            return;
        }
        self.farewell = why.to_string();
        let limit = secs(self.setup.supervision.stop_timeout);
        self.tell(Level::Info, format!("{why}: stopping the command, which has {limit}"));
        match self.command.life {
            Life::Ending { .. } => self.command.ending(Ending::Asked),
            _ => self.stop_command(now, Ending::Asked),
        }
        if self.is_flawed(Flaw::ReleaseBeforeGone) {
            self.begin_finish(now, code::OK, why);
        }
    }
}
