//! Encode: before any worker loads its weights, the conditioning of every prompt is in the store. One worker encodes
//! what the store lacks; the others find it there afterwards.

use std::cmp::Reverse;

use obsdiff_proto::WorkerId;

use crate::state::ConnectedWorker;
use crate::{Core, Encoding, Event};

impl Core {
    /// Takes in how far a worker is. It only grows: a late report changes nothing.
    pub(crate) fn merge_encoding(&mut self, worker: WorkerId, encoding: Encoding) {
        let Some(member) = self.members.get_mut(&worker) else { return };
        member.encoding = member.encoding.max(encoding);
        if encoding == Encoding::Done && !self.encoded {
            self.encoded = true;
            self.touch_all();
        }
    }

    /// Asks the fastest worker that can encode to do so, until it has done it or is gone.
    pub(crate) fn decide_encoder(&mut self) {
        if self.encoded || self.encoder.is_some() {
            return;
        }
        let can = |m: &ConnectedWorker| m.preparing && m.encoding == Encoding::Ready && m.draining.is_none();
        let encoders = self.members.iter().filter(|(_, m)| can(m));
        self.encoder =
            encoders.max_by_key(|(worker, m)| (m.speed, Reverse(**worker))).map(|(worker, _)| *worker);
        if let Some(worker) = self.encoder {
            self.emit(Event::Encodes { worker });
            self.touch(worker);
        }
    }

    /// Whether a worker that prepares should encode now.
    pub(crate) fn encodes(&self, worker: WorkerId, member: &ConnectedWorker) -> bool {
        member.encoding == Encoding::Ready && (self.encoded || self.encoder == Some(worker))
    }
}
