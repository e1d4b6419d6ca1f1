//! Calls to a store, each of which can be given up when it takes longer than *Q*.
//!
//! The store lives on a thread of its own, made there and dropped there. The caller
//! keeps the time: it calls [`Calls::give_up`] when it saw no answer within *Q*, and
//! from then on the outcome of that call is unknown for good. See `docs/safety.md`
//! for what an abandoned call may still do.
//!
//! What must never happen here: that the caller waits, that two calls are under way,
//! and that a late answer is taken for the answer to another call.

use super::Store;
use crate::core::{Answer, Entry, Member, Record, Trouble, Version};
use crate::worker::{Refusal, Worker};
use std::sync::Arc;
use std::time::Duration;

/// How many written-off calls may hang at once, for each host of a store.
pub const HANGING_PER_HOST: u32 = 3;

enum Request {
    Look(u64, Member),
    Swap(u64, Box<Change>),
    Wait(u64, Duration),
}

struct Change {
    version: Version,
    next: Record,
    entry: Option<Entry>,
    me: Member,
}

/// One store and the thread it lives on.
pub struct Calls {
    worker: Worker<Request, (u64, Answer)>,
    deliver: Arc<dyn Fn(u64, Answer) + Send + Sync>,
    /// Counts what hangs inside a store that has threads of its own.
    inside: Box<dyn Fn() -> u32>,
}

impl Calls {
    /// Calls to the store that `factory` makes, for a store of `hosts` hosts (1 for a file).
    /// `factory` runs on the store's own thread at the first call, and again after each
    /// call that was given up.
    ///
    /// `deliver` takes the answers: on the store's thread, or on the caller's own when a
    /// call is refused at once. It must not block, and must not call back in here.
    pub fn new(
        factory: impl Fn() -> Box<dyn Store> + Send + Sync + 'static,
        hosts: usize,
        deliver: impl Fn(u64, Answer) + Send + Sync + 'static,
    ) -> Calls {
        let deliver: Arc<dyn Fn(u64, Answer) + Send + Sync> = Arc::new(deliver);
        let limit = HANGING_PER_HOST.saturating_mul(u32::try_from(hosts.max(1)).unwrap_or(u32::MAX));
        let make = move || {
            let mut store = factory();
            Box::new(move |request| perform(&mut *store, request)) as Box<dyn FnMut(Request) -> (u64, Answer)>
        };
        let taker = deliver.clone();
        Calls {
            worker: Worker::new("store", limit, make, move |(id, answer)| taker(id, answer)),
            deliver,
            inside: Box::new(|| 0),
        }
    }

    /// Asks for [`Store::look`]; the answer bears `id`.
    pub fn look(&mut self, id: u64, me: &Member) {
        self.ask(id, Request::Look(id, me.clone()), |trouble| Answer::Look(Err(trouble)));
    }

    /// Asks for [`Store::swap`]; the answer bears `id`. The limit *s* counts from a
    /// reading of the clock **before** this call.
    pub fn swap(&mut self, id: u64, version: &Version, next: &Record, entry: Option<&Entry>, me: &Member) {
        let change = Change { version: version.clone(), next: next.clone(), entry: entry.cloned(), me: me.clone() };
        self.ask(id, Request::Swap(id, Box::new(change)), |trouble| Answer::Swap(Err(trouble)));
    }

    /// Asks for [`Store::wait`]; the answer bears `id`. No other call is taken until it
    /// has been answered or given up.
    pub fn wait(&mut self, id: u64, limit: Duration) {
        self.ask(id, Request::Wait(id, limit), |trouble| Answer::Wait(Err(trouble)));
    }

    /// Writes off the call under way: it gets no answer any more, though it may still
    /// take effect. False if its answer has been delivered already (and waits where
    /// `deliver` put it), or if there is none.
    pub fn give_up(&mut self) -> bool {
        self.worker.give_up()
    }

    /// Counts with `inside` what hangs in a store that has threads of its own.
    pub fn counting(self, inside: impl Fn() -> u32 + 'static) -> Calls {
        Calls { inside: Box::new(inside), ..self }
    }

    /// How many calls were written off and still hang.
    pub fn written_off(&self) -> u32 {
        // A hung worker is hung in a call that the store counts, too.
        self.worker.hanging().max((self.inside)())
    }

    fn ask(&mut self, id: u64, request: Request, refused: impl FnOnce(Trouble) -> Answer) {
        let why = match self.worker.ask(request) {
            Ok(()) => return,
            Err(Refusal::Hanging(n)) => format!("{n} calls to the store hang; waiting for one of them to end"),
            Err(refusal) => format!("cannot call the store: {refusal}"),
        };
        (self.deliver)(id, refused(Trouble::Refused(why)));
    }
}

fn perform(store: &mut dyn Store, request: Request) -> (u64, Answer) {
    match request {
        Request::Look(id, me) => (id, Answer::Look(store.look(&me))),
        Request::Swap(id, c) => (id, Answer::Swap(store.swap(&c.version, &c.next, c.entry.as_ref(), &c.me))),
        Request::Wait(id, limit) => (id, Answer::Wait(store.wait(limit))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Generation, Health, Look, Role, Sighting, Swap};
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Condvar, Mutex};

    const LONG: Duration = Duration::from_secs(10);

    /// Whether it is open, and how many came to it.
    #[derive(Default)]
    struct Latch {
        state: Mutex<(bool, u32)>,
        changed: Condvar,
    }

    impl Latch {
        fn pass(&self) {
            let mut state = self.state.lock().unwrap();
            state.1 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(open, _)| !*open).unwrap());
        }
        fn came(&self, n: u32) {
            let state = self.state.lock().unwrap();
            let (_guard, late) = self.changed.wait_timeout_while(state, LONG, |(_, came)| *came < n).unwrap();
            assert!(!late.timed_out());
        }
        fn open(&self) {
            self.state.lock().unwrap().0 = true;
            self.changed.notify_all();
        }
    }

    /// Every look hangs until the latch opens; a wait answers at once.
    struct Hung(Arc<Latch>);

    impl Store for Hung {
        fn look(&mut self, _: &Member) -> Result<Look, Trouble> {
            self.0.pass();
            let generation = Generation { system: "s".into(), timeline: 1 };
            Ok(Look { sighting: Sighting { record: None, generation, age: None }, members: Vec::new() })
        }
        fn swap(&mut self, _: &Version, _: &Record, _: Option<&Entry>, _: &Member) -> Result<Swap, Trouble> {
            Ok(Swap::Done)
        }
        fn wait(&mut self, _: Duration) -> Result<bool, Trouble> {
            Ok(true)
        }
    }

    fn calls() -> (Calls, Receiver<(u64, Answer)>, Arc<Latch>) {
        let (tx, rx) = channel();
        let latch = Arc::new(Latch::default());
        let held = latch.clone();
        (Calls::new(move || Box::new(Hung(held.clone())), 1, move |id, a| drop(tx.send((id, a)))), rx, latch)
    }

    fn me() -> Member {
        Member {
            node: "alpha".into(),
            instance: "i".into(),
            host: "h".into(),
            version: "1".into(),
            role: Role::Standby,
            health: Health::Idle,
        }
    }

    #[test]
    fn a_hung_store_is_written_off_three_times_and_then_refused_until_it_thaws() {
        let (mut calls, answers, latch) = calls();
        for id in 0..3 {
            calls.look(id, &me());
            latch.came(u32::try_from(id).unwrap() + 1);
            assert!(calls.give_up());
        }
        assert_eq!(calls.written_off(), 3);
        calls.look(3, &me());
        match answers.recv_timeout(LONG) {
            Ok((3, Answer::Look(Err(Trouble::Refused(why))))) => assert!(why.starts_with("3 calls"), "{why}"),
            other => panic!("{other:?}"),
        }
        latch.open();
        while calls.written_off() > 0 {
            std::thread::yield_now();
        }
        calls.look(4, &me());
        assert!(matches!(answers.recv_timeout(LONG), Ok((4, Answer::Look(Ok(_))))), "only the new call is answered");
        assert!(!calls.give_up());
    }

    #[test]
    fn a_call_during_a_call_is_refused() {
        let (mut calls, answers, latch) = calls();
        calls.look(1, &me());
        calls.wait(2, LONG);
        assert!(matches!(answers.recv_timeout(LONG), Ok((2, Answer::Wait(Err(Trouble::Refused(_)))))));
        latch.open();
        assert!(matches!(answers.recv_timeout(LONG), Ok((1, Answer::Look(Ok(_))))));
    }
}
