//! The life of a command's tree as one table: phase × event → phase and deed.
//!
//! Pure. What must never be in it: a way back from stopping to running, or a start
//! next to anything that may still live.

use crate::core::Boot;

/// What the keeper knows of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No process of it is left.
    Gone,
    /// The leader was started, and nobody asked for its end.
    Running,
    /// It was asked to stop; what is left at this moment is killed.
    Stopping {
        /// The end of the grace, or of the lease.
        until: Boot,
    },
    /// SIGKILL goes out until nothing is left.
    Killing,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A start was ordered, and the lease allows it.
    Start,
    /// A stop was ordered, or `term_at` has come.
    Stop {
        /// When the grace ends.
        until: Boot,
    },
    /// A kill was ordered, `kill_at` has come, or the grace has passed.
    Kill,
    /// The leader has ended.
    Ended,
    /// The leader and its group have ended; what has left the group has not.
    Strayed,
    /// Nothing is left.
    Empty,
}

/// What the keeper does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Nothing,
    /// Start the command.
    Launch,
    /// Refuse the start.
    Refuse,
    /// Send the stop signal, once.
    Ask,
    /// Kill everything, now and until nothing is left.
    Kill,
    /// Say that it is gone.
    Conclude,
}

impl Phase {
    /// The table.
    pub fn step(self, event: Event) -> (Phase, Deed) {
        use {Deed as D, Event as E, Phase as P};
        match (self, event) {
            (P::Gone, E::Start) => (P::Running, D::Launch),
            (P::Gone, _) => (P::Gone, D::Nothing),
            (_, E::Start) => (self, D::Refuse),

            (P::Running, E::Stop { until }) => (P::Stopping { until }, D::Ask),
            // What a leader that ended by itself leaves behind has no grace.
            (P::Running, E::Kill | E::Ended | E::Strayed) => (P::Killing, D::Kill),
            (P::Running, E::Empty) => (P::Gone, D::Conclude),

            // A later order may shorten the grace, never lengthen it.
            (P::Stopping { until }, E::Stop { until: other }) => {
                (P::Stopping { until: until.earliest(other) }, D::Nothing)
            }
            // The leader's group has the rest of the grace …
            (P::Stopping { .. }, E::Ended) => (self, D::Nothing),
            // … which nothing outside of it was told about.
            (P::Stopping { .. }, E::Kill | E::Strayed) => (P::Killing, D::Kill),
            (P::Stopping { .. }, E::Empty) => (P::Gone, D::Conclude),

            (P::Killing, E::Empty) => (P::Gone, D::Conclude),
            (P::Killing, E::Stop { .. } | E::Kill | E::Ended | E::Strayed) => (P::Killing, D::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Boot = Boot { boot: 1, raw: 1 };
    const LATE: Boot = Boot { boot: 2, raw: 2 };

    fn phases() -> [Phase; 4] {
        [Phase::Gone, Phase::Running, Phase::Stopping { until: EARLY }, Phase::Killing]
    }

    fn events() -> [Event; 6] {
        [Event::Start, Event::Stop { until: LATE }, Event::Kill, Event::Ended, Event::Strayed, Event::Empty]
    }

    #[test]
    fn only_a_tree_that_is_gone_is_started() {
        for phase in phases() {
            let (next, deed) = phase.step(Event::Start);
            assert_eq!(deed == Deed::Launch, phase == Phase::Gone);
            assert!(phase == Phase::Gone || next == phase);
        }
    }

    #[test]
    fn nothing_but_an_empty_tree_makes_it_gone() {
        for phase in phases() {
            for event in events() {
                let (next, deed) = phase.step(event);
                if next == Phase::Gone && phase != Phase::Gone {
                    assert_eq!((event, deed), (Event::Empty, Deed::Conclude));
                }
            }
        }
    }

    #[test]
    fn there_is_no_way_back_to_running() {
        for phase in [Phase::Stopping { until: EARLY }, Phase::Killing] {
            assert!(events().iter().all(|event| phase.step(*event).0 != Phase::Running));
        }
        assert!(events().iter().all(|event| !matches!(Phase::Killing.step(*event).0, Phase::Stopping { .. })));
    }

    #[test]
    fn a_grace_is_never_lengthened_and_the_signal_sent_once() {
        let stopping = Phase::Stopping { until: EARLY };
        assert_eq!(stopping.step(Event::Stop { until: LATE }), (stopping, Deed::Nothing));
        assert_eq!(Phase::Stopping { until: LATE }.step(Event::Stop { until: EARLY }), (stopping, Deed::Nothing));
    }

    #[test]
    fn a_crash_leaves_no_grace_to_the_rest() {
        assert_eq!(Phase::Running.step(Event::Ended), (Phase::Killing, Deed::Kill));
    }
}
