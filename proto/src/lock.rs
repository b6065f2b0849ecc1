//! Mutexes whose state stays whole: no lock here is held over a call that may panic half-way through a change.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a thread that panicked elsewhere does not take the others with it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
