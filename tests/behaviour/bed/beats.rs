//! What the beaters wrote, and the checker that judges it.
//!
//! A tree is everything that one start of the command made: it is named by node,
//! epoch and the leader's pid, and it lived from its first beat to its last. All
//! hosts of a test share one kernel and so one CLOCK_BOOTTIME: here, and only here,
//! times of several hosts are compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// One line of a beater.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub at: u64,
    /// leader, grandchild, member or last.
    pub role: String,
    /// The process.
    pub pid: i32,
    /// Its node; `-` without a lease.
    pub node: String,
    /// Its epoch, 0 without a lease.
    pub epoch: u64,
    /// Its token, 0 without a lease.
    pub token: u64,
    /// The leader of its tree.
    pub leader: i32,
}

impl Beat {
    fn parse(line: &str) -> Option<Beat> {
        let w: Vec<&str> = line.split(' ').collect();
        let [at, role, pid, node, epoch, token, leader] = w[..] else { return None };
        Some(Beat {
            at: at.parse().ok()?,
            role: role.into(),
            pid: pid.parse().ok()?,
            node: node.into(),
            epoch: epoch.parse().unwrap_or(0),
            token: token.parse().unwrap_or(0),
            leader: leader.parse().ok()?,
        })
    }

    /// How long ago.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(boot_now().saturating_sub(self.at))
    }
}

/// CLOCK_BOOTTIME in nanoseconds.
pub fn boot_now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// All beats of a test, in the order they were written.
#[derive(Clone, Debug, Default)]
pub struct Beats(pub Vec<Beat>);

/// One start of the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its node.
    pub node: String,
    /// Its epoch.
    pub epoch: u64,
    /// Its token.
    pub token: u64,
    /// Its leader's pid.
    pub leader: i32,
    /// The first beat, CLOCK_BOOTTIME in nanoseconds.
    pub first: u64,
    /// The last beat of any of its processes.
    pub last: u64,
}

impl Beats {
    /// Reads a file; a last line without its end is not there yet.
    pub fn read(file: &Path) -> Beats {
        Beats::parse(&std::fs::read_to_string(file).unwrap_or_default())
    }

    fn parse(text: &str) -> Beats {
        let whole = &text[..text.rfind('\n').map_or(0, |i| i + 1)];
        Beats(whole.lines().map(|l| Beat::parse(l).unwrap_or_else(|| panic!("a torn beat: {l:?}"))).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last beat of a leader on a node; without a lease the node is `-`.
    pub fn last_leader(&self, node: &str) -> Option<&Beat> {
        self.0.iter().rev().find(|b| b.role == "leader" && (b.node == node || b.node == "-"))
    }

    /// Every process that ever beat for the tree of this leader.
    pub fn pids_of(&self, leader: i32) -> Vec<i32> {
        let mut pids: Vec<i32> = self.0.iter().filter(|b| b.leader == leader).map(|b| b.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The trees, in the order of their first beats.
    pub fn lives(&self) -> Vec<Life> {
        let mut lives: BTreeMap<(&str, u64, i32), Life> = BTreeMap::new();
        for b in &self.0 {
            let life = lives.entry((&b.node, b.epoch, b.leader)).or_insert_with(|| Life {
                node: b.node.clone(),
                epoch: b.epoch,
                token: b.token,
                leader: b.leader,
                first: b.at,
                last: b.at,
            });
            life.first = life.first.min(b.at);
            life.last = life.last.max(b.at);
        }
        let mut lives: Vec<Life> = lives.into_values().collect();
        lives.sort_by_key(|l| l.first);
        lives
    }

    /// From the end of each tree to the first instruction of the next one.
    pub fn gaps(&self) -> Vec<Duration> {
        let lives = self.lives();
        lives.windows(2).map(|w| Duration::from_nanos(w[1].first.saturating_sub(w[0].last))).collect()
    }
}

/// By when each tree had to be gone: node and epoch → CLOCK_BOOTTIME in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Deadlines(BTreeMap<(String, u64), u64>);

impl Deadlines {
    /// From the agents' lines `lease limits: epoch E end B`; the last one of an epoch counts.
    pub fn from_logs(logs: impl IntoIterator<Item = (String, String)>) -> Deadlines {
        let mut all = BTreeMap::new();
        for (node, log) in logs {
            for line in log.lines() {
                let Some((_, rest)) = line.split_once("lease limits: epoch ") else { continue };
                let words: Vec<&str> = rest.split_whitespace().collect();
                let [epoch, "end", end, ..] = words[..] else { continue };
                if let (Ok(epoch), Ok(end)) = (epoch.parse(), end.trim_end_matches([',', ';', '.']).parse()) {
                    all.insert((node.clone(), epoch), end);
                }
            }
        }
        Deadlines(all)
    }
}

/// From each renewal of one epoch to the next, by the clock read before each was sent.
pub fn renewal_gaps(log: &str) -> Vec<Duration> {
    let limit = |line: &str| -> Option<(u64, u64)> {
        let words: Vec<&str> = line.split_once("lease limits: epoch ")?.1.split_whitespace().collect();
        Some((words.first()?.parse().ok()?, words.get(2)?.parse().ok()?))
    };
    let ends: Vec<(u64, u64)> = log.lines().filter_map(limit).collect();
    let gap = |w: &[(u64, u64)]| (w[0].0 == w[1].0).then(|| Duration::from_nanos(w[1].1.saturating_sub(w[0].1)));
    ends.windows(2).filter_map(gap).collect()
}

/// Proves that no two trees ever overlapped, that tokens and epochs never decreased in the order
/// of the starts, and, where deadlines are given, that every tree was gone by its own.
pub fn check(beats: &Beats, deadlines: Option<&Deadlines>) -> Result<(), String> {
    let lives = beats.lives();
    let secs = |ns: u64| ns as f64 / 1e9;
    let name = |l: &Life| format!("the tree of {} (epoch {}, token {}, leader {})", l.node, l.epoch, l.token, l.leader);
    // Against the one that ended last so far: a long life may span several short ones.
    let mut longest: Option<&Life> = None;
    for life in &lives {
        if let Some(before) = longest {
            if life.first <= before.last {
                let by = secs(before.last.min(life.last) - life.first);
                return Err(format!("two at once for {by:.3} s: {} and {}", name(before), name(life)));
            }
            if life.token < before.token {
                return Err(format!("the token went back: {} and then {}", name(before), name(life)));
            }
            if life.epoch < before.epoch {
                return Err(format!("the epoch went back: {} and then {}", name(before), name(life)));
            }
            if life.epoch == before.epoch && life.node != before.node {
                return Err(format!("one epoch, two nodes: {} and {}", name(before), name(life)));
            }
        }
        if longest.is_none_or(|l| life.last > l.last) {
            longest = Some(life);
        }
        let Some(Deadlines(all)) = deadlines else { continue };
        match all.get(&(life.node.clone(), life.epoch)) {
            None => return Err(format!("no log says by when {} had to be gone", name(life))),
            Some(end) if life.last > *end => {
                return Err(format!("{} lived {:.3} s past its deadline", name(life), secs(life.last - end)));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(text: &str) -> Beats {
        Beats::parse(text)
    }

    const GOOD: &str = "100 leader 1 a 1 5 1\n110 grandchild 2 a 1 5 1\n150 grandchild 2 a 1 5 1\n\
                        160 leader 7 b 2 6 7\n200 leader 7 b 2 6 7\n";

    fn deadlines(a: u64) -> Deadlines {
        let log = |n: &str, e: u64, end: u64| {
            (
                n.to_owned(),
                format!("x DEBUG lease limits: epoch {e} end 1\nx DEBUG lease limits: epoch {e} end {end}\n"),
            )
        };
        Deadlines::from_logs([log("a", 1, a), log("b", 2, 900)])
    }

    #[test]
    fn one_after_the_other_passes() {
        assert_eq!(check(&beats(GOOD), Some(&deadlines(155))), Ok(()));
        assert_eq!(beats(GOOD).gaps(), [Duration::from_nanos(10)]);
        assert_eq!(beats(GOOD).pids_of(1), [1, 2]);
    }

    #[test]
    fn a_grandchild_that_outlives_its_leader_into_the_next_tree_is_caught() {
        let late = format!("{GOOD}161 grandchild 2 a 1 5 1\n");
        assert!(check(&beats(&late), None).unwrap_err().starts_with("two at once"));
    }

    #[test]
    fn two_leaders_of_one_node_and_epoch_are_caught() {
        assert!(check(&beats("1 leader 1 a 1 1 1\n2 leader 2 a 1 1 2\n3 leader 1 a 1 1 1\n"), None).is_err());
    }

    #[test]
    fn a_long_life_around_short_ones_is_caught() {
        let text = "1 leader 1 a 1 1 1\n2 leader 2 b 2 2 2\n3 leader 2 b 2 2 2\n9 grandchild 4 a 1 1 1\n\
                    5 leader 3 c 3 3 3\n";
        assert!(check(&beats(text), None).is_err());
    }

    #[test]
    fn a_token_or_an_epoch_that_goes_back_is_caught() {
        assert!(check(&beats("1 leader 1 a 1 9 1\n2 leader 2 b 2 8 2\n"), None).unwrap_err().contains("token"));
        assert!(check(&beats("1 leader 1 a 2 9 1\n2 leader 2 b 1 9 2\n"), None).unwrap_err().contains("epoch"));
        assert!(check(&beats("1 leader 1 a 2 9 1\n2 leader 2 b 2 9 2\n"), None).unwrap_err().contains("two nodes"));
    }

    #[test]
    fn a_tree_past_its_deadline_is_caught() {
        assert!(check(&beats(GOOD), Some(&deadlines(149))).unwrap_err().contains("past its deadline"));
    }

    #[test]
    fn a_tree_without_a_deadline_is_caught() {
        assert!(check(&beats(GOOD), Some(&Deadlines::default())).is_err());
    }

    #[test]
    fn the_last_line_may_be_half_written() {
        assert_eq!(beats("1 leader 1 a 1 1 1\n2 lea").0.len(), 1);
    }
}
