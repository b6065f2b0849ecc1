//! Apply: every worker takes the weights that were committed. No worker waits for the others: one that is up to date gets shards of the
//! next package, and a late joiner catches up by the same order.

use obsdiff_proto::WorkerId;

use crate::Core;
use crate::state::ConnectedWorker;

impl Core {
    /// Takes in how many packages a worker has applied.
    pub(crate) fn merge_applied(&mut self, worker: WorkerId, applied: u32) {
        let committed = self.committed;
        if let Some(member) = self.members.get_mut(&worker) {
            member.applied = member.applied.max(applied.min(committed));
        }
    }

    /// Workers that are prepared, on the weights that the open package calibrates on, and who stay.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (WorkerId, &ConnectedWorker)> {
        let ready = |m: &ConnectedWorker| !m.preparing && m.applied == self.committed && m.draining.is_none();
        self.members.iter().filter(move |(_, m)| ready(m)).map(|(worker, m)| (*worker, m))
    }
}
