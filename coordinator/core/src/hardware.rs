//! One kind of hardware for a job, so that its bits do not depend on who did what: the kind of the first worker that joins.

use obsdiff_proto::WorkerId;

use crate::{Action, Core, Dismissal, Event};

impl Core {
    /// Why a worker on this kind of hardware stands by, if it does.
    pub fn other_hardware(&self, worker: &str) -> Option<Dismissal> {
        let job = self.hardware.as_deref().filter(|job| *job != worker)?;
        Some(Dismissal::OtherHardware { job: job.to_owned(), worker: worker.to_owned() })
    }

    /// Sends a worker of another kind away, and reports its kind if that is new.
    pub(crate) fn stand_by(&mut self, worker: WorkerId, why: Dismissal) {
        if let Dismissal::OtherHardware { job, worker } = &why
            && self.standing_by.insert(worker.clone())
        {
            self.emit(Event::StandingBy { job: job.clone(), worker: worker.clone() });
        }
        self.out.push(Action::Dismiss { worker, why });
    }

    /// The first worker decides for all that follow, in later lives too.
    pub(crate) fn take_hardware(&mut self, worker: &str) {
        if self.hardware.is_none() && !self.job.options.mixed_hardware {
            self.hardware = Some(worker.to_owned());
            self.out.push(Action::SaveHardware(worker.to_owned()));
        }
    }
}
