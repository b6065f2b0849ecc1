//! Export: when every package is committed, one worker that has applied them all writes the pruned pipeline.

use obsdiff_proto::WorkerId;

use crate::{Core, Outcome};

impl Core {
    /// The pipeline is written: the job is done. Only one who has applied every package can have written it.
    pub(crate) fn merge_exported(&mut self, worker: WorkerId, exported: bool) {
        let current = self.members.get(&worker).is_some_and(|m| m.applied == self.committed);
        if exported && current && self.all_committed() {
            self.finish(Outcome::Done);
        }
    }

    /// Asks the fastest worker to write the pipeline.
    pub(crate) fn decide_export(&mut self) {
        if !self.all_committed() || self.exporter.is_some() {
            return;
        }
        self.exporter = self.fastest_ready();
        if let Some(worker) = self.exporter {
            self.touch(worker);
        }
    }
}
