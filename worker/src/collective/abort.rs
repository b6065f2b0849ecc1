//! Freeing a blocked call from another thread.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use obsdiff_proto::lock;

type Hook = Box<dyn FnOnce() + Send>;

/// Raised once, it stays raised. A transport hangs on to it what frees its blocked calls.
#[derive(Clone, Default)]
pub struct Abort(Arc<AbortState>);

#[derive(Default)]
struct AbortState {
    raised: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

impl Abort {
    /// Frees every call that is blocked, and lets every later one fail.
    pub fn raise(&self) {
        let hooks = {
            let mut hooks = lock(&self.0.hooks);
            self.0.raised.store(true, Ordering::Release);
            std::mem::take(&mut *hooks)
        };
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Runs `hook` when it is raised: at once where it was already. The hook must not block.
    pub fn when_raised(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = lock(&self.0.hooks);
        if self.is_raised() {
            drop(hooks);
            return hook();
        }
        hooks.push(Box::new(hook));
    }
}

impl fmt::Debug for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Abort").field("raised", &self.is_raised()).finish_non_exhaustive()
    }
}
