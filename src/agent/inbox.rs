//! Where the agent's threads leave what its main loop has to know.
//!
//! A queue and an eventfd: the loop waits in one `poll` for this and for the keeper.
//! Nobody who leaves something ever waits.

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The main loop's end.
pub struct Inbox<T> {
    shared: Arc<Shared<T>>,
}

/// A thread's end.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    queue: Mutex<VecDeque<T>>,
    bell: EventFd,
}

impl<T> Inbox<T> {
    /// An empty inbox.
    ///
    /// # Errors
    /// When the process may not open another descriptor.
    pub fn new() -> io::Result<Inbox<T>> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Inbox { shared: Arc::new(Shared { queue: Mutex::default(), bell }) })
    }

    /// Another way in.
    pub fn sender(&self) -> Sender<T> {
        Sender { shared: self.shared.clone() }
    }

    /// Takes everything that was left so far, and quiets the bell.
    pub fn take(&self) -> VecDeque<T> {
        // Quiet first: what is left after this rings again.
        let _ = self.shared.bell.read();
        std::mem::take(&mut *self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { shared: self.shared.clone() }
    }
}

impl<T> Sender<T> {
    /// Leaves something and wakes the loop.
    pub fn send(&self, item: T) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(item);
        // Fails only when the counter is full, and then the bell rings already.
        let _ = self.shared.bell.write(1);
    }
}
