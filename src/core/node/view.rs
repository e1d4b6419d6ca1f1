//! What a node shows of itself, for the status.

use super::*;

/// What a node shows of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Active or standby; none without a store.
    pub role: Option<Role>,
    /// The epoch held, 0 if none.
    pub epoch: u64,
    /// The token held, 0 if none.
    pub token: u64,
    /// Until the command is told to stop, if a lease is held.
    pub deadline_left: Option<Duration>,
    /// How the command is.
    pub health: super::super::record::Health,
    /// What the last check said.
    pub detail: String,
    /// The leader and when it was started.
    pub running: Option<(i32, Boot)>,
    /// Starts after the first.
    pub restarts: u64,
    /// Failed tries in a row.
    pub tries: u32,
    /// How the command ended last.
    pub last_exit: Option<Exit>,
    /// The last trouble with the store.
    pub trouble: Option<String>,
    /// What comes next, in words.
    pub next: String,
}

impl Node {
    /// What this node shows of itself.
    pub fn view(&self, now: Boot) -> View {
        let held = self.held.as_ref().filter(|held| held.limits() != Limits::PAST);
        View {
            role: self.setup.timing.map(|_| self.role()),
            epoch: held.map_or(0, |held| held.epoch),
            token: held.map_or(0, |held| held.token),
            deadline_left: held.map(|held| now.until(held.limits().term_at)),
            health: self.command.health(),
            detail: self.command.detail.clone(),
            running: match self.command.life {
                Life::Running { pid, since, .. } => Some((pid, since)),
                _ => None,
            },
            restarts: self.command.restarts,
            tries: self.command.tries,
            last_exit: self.command.last_exit,
            trouble: self.trouble.as_ref().map(|(_, text)| text.clone()),
            next: self.next(now),
        }
    }

    pub(super) fn next(&self, now: Boot) -> String {
        if self.finish.is_some() || self.asked_to_stop {
            return "ends".into();
        }
        match &self.command.life {
            Life::Waiting { until } => format!("starts the command again in {}", secs(now.until(*until))),
            Life::Ending { .. } => "waits until nothing of the command is left".into(),
            Life::Running { failing: Some(first), .. } => {
                let left = self.setup.supervision.timeout.saturating_sub(now.fast_since(*first));
                format!("restarts the command in {} unless a check passes", secs(left))
            }
            Life::Idle if self.held.is_none() => match &self.setup.timing {
                Some(timing) => match self.challenger.claim_in(now, &self.me.node, timing) {
                    Some((left, Ground::Silence)) => match self.challenger.record().and_then(|r| r.holder.as_ref()) {
                        Some(holder) => {
                            format!("takes over if {} is silent for {} more", holder.node, secs(left))
                        }
                        None => format!("claims the lease in {}", secs(left)),
                    },
                    Some((left, Ground::Free)) => format!("claims the lease in {}", secs(left)),
                    None => "waits for the store".into(),
                },
                None => String::new(),
            },
            _ => String::new(),
        }
    }
}
