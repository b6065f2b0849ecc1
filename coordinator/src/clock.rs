//! The clock is an argument, so that code that depends on time can be tested without waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time since some fixed moment. It never goes back.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The machine's clock, counted from now.
pub fn monotonic() -> Clock {
    let start = Instant::now();
    Arc::new(move || start.elapsed())
}
