//! How far a job is, for the one worker that announces it where it runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use obsdiff_proto::session::JobProgress;
use obsdiff_proto::{WorkerId, lock};

/// Sends the progress of a job to one of the workers that can announce it: to the one with the lowest number.
#[derive(Clone)]
pub(crate) struct Announcements {
    progress: Arc<dyn Fn() -> JobProgress + Send + Sync>,
    /// Connected workers that can.
    able: Arc<Mutex<BTreeSet<WorkerId>>>,
}

impl Announcements {
    /// Of the job that is so far.
    pub(crate) fn new(progress: impl Fn() -> JobProgress + Send + Sync + 'static) -> Self {
        Self { progress: Arc::new(progress), able: Arc::default() }
    }

    /// A worker that can announce it, until this is dropped.
    pub(crate) fn announcer(&self, worker: WorkerId) -> Announcer {
        lock(&self.able).insert(worker);
        Announcer { announcements: self.clone(), worker }
    }
}

/// The place of a worker among those that can announce the progress.
pub(crate) struct Announcer {
    announcements: Announcements,
    worker: WorkerId,
}

impl Announcer {
    /// How far the job is, where this worker is the one to announce it.
    pub(crate) fn progress(&self) -> Option<JobProgress> {
        let first = lock(&self.announcements.able).first().copied();
        (first == Some(self.worker)).then(|| (self.announcements.progress)())
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        lock(&self.announcements.able).remove(&self.worker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_announces_and_another_one_once_it_has_left() {
        let progress = JobProgress { percent: 7, left: None, committed: 0, packages: 2 };
        let announcements = Announcements::new(move || progress);
        let [second, first] = [2, 1].map(|worker| announcements.announcer(WorkerId(worker)));
        assert_eq!((first.progress(), second.progress()), (Some(progress), None));
        drop(first);
        assert_eq!(second.progress(), Some(progress));
        let third = announcements.announcer(WorkerId(3));
        assert_eq!((second.progress(), third.progress()), (Some(progress), None));
    }
}
