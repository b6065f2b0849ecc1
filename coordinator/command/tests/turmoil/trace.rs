//! What happened in a run, in order.

use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A run's account of itself. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    /// Something happened at the host whose software runs.
    pub(crate) fn here(&self, host: &str, what: impl Display) {
        self.at(turmoil::sim_elapsed().unwrap_or_default(), host, what);
    }

    /// Something happened at a time.
    pub(crate) fn at(&self, time: Duration, who: &str, what: impl Display) {
        self.0.lock().unwrap().push(format!("{:>9.3} {who:<11} {what}", time.as_secs_f64()));
    }

    /// All of it.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}
