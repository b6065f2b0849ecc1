//! Pilot: one worker runs the first shard on the dense model, and the exponents of all sites follow from it.

use std::sync::Arc;

use crate::{Action, Core, Failure, Status};

impl Core {
    /// Takes the exponents from any worker, because all find the same ones.
    pub(crate) fn merge_pilot(&mut self, status: &Status) {
        let (None, Some(found)) = (&self.exponents, &status.pilot) else { return };
        if let Err(error) = self.job.validate_exponents(found) {
            return self.fail(Failure::Fatal { what: "pilot".to_owned(), error: error.to_string() });
        }
        self.out.push(Action::Save(found.clone()));
        self.exponents = Some(Arc::unwrap_or_clone(found.clone()));
        self.pilot = None;
        self.open_package();
        self.touch_all();
    }

    /// Asks the fastest worker for the exponents, where none are known.
    pub(crate) fn decide_pilot(&mut self) {
        if self.exponents.is_some() || self.pilot.is_some() {
            return;
        }
        self.pilot = self.fastest_ready();
        if let Some(worker) = self.pilot {
            self.touch(worker);
        }
    }
}
