//! Time as an argument, so that what depends on it can be tested without waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time since some fixed moment; never goes back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's clock, counted from now.
pub fn monotonic() -> Clock {
    let start = Instant::now();
    Arc::new(move || start.elapsed())
}
