//! A thread for calls that may hang: it is asked one thing at a time, and can be given up.
//!
//! No time-out of a library or of the kernel bounds every call: a stopped server,
//! a name look-up, a dead disk hold a thread for as long as they like. So such a
//! call is made on a thread of its own, whose owner keeps the time. A thread that
//! was given up is left to its call; its late answer is used for nothing but to
//! end it, and a fresh one takes its place. How many hang at once is bounded.
//!
//! What must never happen here: that the owner waits, and that what a hung thread
//! owns is dropped by anybody but that thread (dropping a stuck client blocks too).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Enough for a TLS handshake in a build without optimisation; only what is touched
/// of it takes memory.
const STACK_BYTES: usize = 512 * 1024;

/// Makes, on a worker's own thread, what answers its requests.
type Make<R, A> = dyn Fn() -> Box<dyn FnMut(R) -> A> + Send + Sync;
/// Takes the answers; called on the worker's thread.
type Deliver<A> = dyn Fn(A) + Send + Sync;

/// Answers requests of type `R` with `A`, one at a time, on a thread of its own.
pub struct Worker<R, A> {
    name: &'static str,
    limit: u32,
    make: Arc<Make<R, A>>,
    deliver: Arc<Deliver<A>>,
    current: Option<Current<R>>,
    hanging: Arc<AtomicU32>,
}

/// The thread that takes requests at present.
struct Current<R> {
    requests: Sender<R>,
    state: Arc<Mutex<State>>,
}

/// Whose turn it is. One lock orders an answer against giving up: exactly one of them happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Asked,
    GivenUp,
}

/// Why a request was not taken; nothing was done for it.
#[derive(Debug)]
pub enum Refusal {
    /// The one before it is not answered yet.
    Busy,
    /// This many threads hang, as many as may; one of them has to end first.
    Hanging(u32),
    /// No thread could be made.
    Thread(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Busy => f.write_str("the one before is not answered yet"),
            Refusal::Hanging(n) => write!(f, "{n} hang; waiting for one of them to end"),
            Refusal::Thread(e) => write!(f, "cannot start a thread: {e}"),
        }
    }
}

impl<R: Send + 'static, A: 'static> Worker<R, A> {
    /// A worker whose threads are called `name` (15 bytes are seen in `ps`), of which
    /// at most `limit` may hang. No thread is made before the first request.
    ///
    /// `make` runs on each new thread and builds what answers there. `deliver` gets the
    /// answers on that thread; it must not block, and must not call this worker.
    pub fn new(
        name: &'static str,
        limit: u32,
        make: impl Fn() -> Box<dyn FnMut(R) -> A> + Send + Sync + 'static,
        deliver: impl Fn(A) + Send + Sync + 'static,
    ) -> Worker<R, A> {
        Worker {
            name,
            limit,
            make: Arc::new(make),
            deliver: Arc::new(deliver),
            current: None,
            hanging: Arc::new(AtomicU32::new(0)),
        }
    }

    /// Hands over a request; its answer is delivered, unless it is given up before.
    pub fn ask(&mut self, request: R) -> Result<(), Refusal> {
        let current = match self.current.take() {
            Some(current) => current,
            None => self.start()?,
        };
        let current = self.current.insert(current);
        {
            let mut state = lock(&current.state);
            if *state == State::Asked {
                return Err(Refusal::Busy);
            }
            *state = State::Asked;
        }
        // The thread lives as long as this sender: it ends only when the channel closes or it was given up.
        let _ = current.requests.send(request);
        Ok(())
    }

    /// Gives up the request under way: its answer will not be delivered, and the next
    /// request gets a fresh thread. False if there is none, or if its answer has been
    /// delivered already.
    pub fn give_up(&mut self) -> bool {
        let Some(current) = self.current.take() else { return false };
        let mut state = lock(&current.state);
        if *state == State::Asked {
            *state = State::GivenUp;
            self.hanging.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        drop(state);
        self.current = Some(current);
        false
    }

    /// How many threads were given up and have not ended yet.
    pub fn hanging(&self) -> u32 {
        self.hanging.load(Ordering::SeqCst)
    }

    fn start(&self) -> Result<Current<R>, Refusal> {
        let hanging = self.hanging();
        if hanging >= self.limit {
            return Err(Refusal::Hanging(hanging));
        }
        let (requests, inbox) = channel();
        let state = Arc::new(Mutex::new(State::Idle));
        let (make, deliver, count, shared) =
            (self.make.clone(), self.deliver.clone(), self.hanging.clone(), state.clone());
        thread::Builder::new()
            .name(self.name.into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                serve(&*make, &*deliver, &shared, &inbox);
                // After `serve`, so that a drop that hangs still counts as hanging.
                if *lock(&shared) == State::GivenUp {
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            })
            .map_err(Refusal::Thread)?;
        Ok(Current { requests, state })
    }
}

/// The life of one thread: until it is given up, or nobody can ask it any more.
fn serve<R, A>(make: &Make<R, A>, deliver: &Deliver<A>, state: &Mutex<State>, inbox: &Receiver<R>) {
    let mut answer = make();
    while let Ok(request) = inbox.recv() {
        // Given up before it began: what was not sent cannot take effect late.
        if *lock(state) == State::GivenUp {
            return;
        }
        let reply = answer(request);
        let mut state = lock(state);
        if *state == State::GivenUp {
            return;
        }
        *state = State::Idle;
        deliver(reply);
    }
}

/// Nothing panics while it holds one of these locks, and a value of [`State`] is never half written.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(10);

    /// A door that holds every thread until it is opened, and counts those that came to it.
    #[derive(Default)]
    struct Door(Mutex<bool>, Condvar, AtomicU32);

    impl Door {
        fn pass(&self) {
            self.2.fetch_add(1, Ordering::SeqCst);
            drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
        }
        fn came(&self, n: u32) {
            until("a thread comes to the door", || self.2.load(Ordering::SeqCst) == n);
        }
        fn open(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }

    /// Answers `n` with `n + 1`, but hangs at 0 until the door opens.
    fn hanging_at_zero(limit: u32) -> (Worker<u32, u32>, Receiver<u32>, Arc<Door>) {
        let (tx, rx) = channel();
        let door = Arc::new(Door::default());
        let held = door.clone();
        let make = move || {
            let held = held.clone();
            Box::new(move |n: u32| {
                if n == 0 {
                    held.pass();
                }
                n + 1
            }) as Box<dyn FnMut(u32) -> u32>
        };
        (Worker::new("test", limit, make, move |a| tx.send(a).unwrap_or(())), rx, door)
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + LONG;
        while !holds() {
            assert!(Instant::now() < end, "not within {LONG:?}: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_request_is_answered_and_a_second_one_has_to_wait() {
        let (mut worker, answers, door) = hanging_at_zero(3);
        worker.ask(1).unwrap();
        assert_eq!(answers.recv_timeout(LONG), Ok(2));
        assert!(!worker.give_up(), "an answer that was delivered cannot be given up");
        worker.ask(0).unwrap();
        assert!(matches!(worker.ask(7), Err(Refusal::Busy)));
        door.open();
        assert_eq!(answers.recv_timeout(LONG), Ok(1));
    }

    #[test]
    fn a_given_up_request_is_never_answered_and_delays_nobody() {
        let (mut worker, answers, door) = hanging_at_zero(3);
        worker.ask(0).unwrap();
        door.came(1);
        assert!(worker.give_up());
        assert!(!worker.give_up());
        worker.ask(5).unwrap();
        assert_eq!(answers.recv_timeout(LONG), Ok(6));
        assert_eq!(worker.hanging(), 1);
        door.open();
        until("the hung thread ends", || worker.hanging() == 0);
        assert!(answers.try_recv().is_err(), "a late answer was delivered");
    }

    #[test]
    fn no_more_threads_hang_than_allowed() {
        let (mut worker, answers, door) = hanging_at_zero(3);
        for hung in 1..=3 {
            worker.ask(0).unwrap();
            door.came(hung);
            assert!(worker.give_up());
            assert_eq!(worker.hanging(), hung);
        }
        assert!(matches!(worker.ask(1), Err(Refusal::Hanging(3))));
        door.open();
        until("the hung threads end", || worker.hanging() == 0);
        worker.ask(1).unwrap();
        assert_eq!(answers.recv_timeout(LONG), Ok(2));
    }
}
