//! Collectives: what the workers of a group sum and send to each other. Knows flat buffers only, in the host's memory or a GPU's.
//!
//! A group lives for one epoch. Every rank makes the same calls in the same order; each call is bounded by a timeout, and an
//! [`Abort`] frees a blocked one from any thread. After the first error a group is of no use: all that is left is to drop it.

mod abort;
mod alone;
mod buffer;
mod call;
mod counted;
mod error;
#[cfg(feature = "gloo")]
mod gloo;
mod local;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(any(feature = "gloo", feature = "cuda"))]
mod newest;
mod rendezvous;

use std::time::Duration;

use obsdiff_proto::Epoch;

pub use abort::Abort;
pub use alone::Alone;
pub use buffer::{Buffer, BufferShape, Values};
pub use counted::Counted;
pub use error::CollectiveError;
#[cfg(feature = "gloo")]
pub use gloo::Gloo;
pub use local::Local;
#[cfg(all(test, feature = "cuda"))]
pub(crate) use nccl::tests::transports as nccl_transports;
#[cfg(feature = "cuda")]
pub use nccl::{Nccl, NcclSettings, OnStuck};
pub use rendezvous::Rendezvous;

/// Numbers that a call takes at most, where its transport does not say otherwise: 8 MiB of integers.
pub const PIECE: usize = 1 << 20;

/// A result of a collective.
pub type Result<T, E = CollectiveError> = std::result::Result<T, E>;

/// One rank's end of a group. Dropping it leaves the group: peers that still wait for this rank get an error.
pub trait Collective: Send {
    /// What this worker joined with.
    fn member(&self) -> &Member;

    /// This worker's place in the group, from 0.
    fn rank(&self) -> usize {
        self.member().rank
    }

    /// Ranks of the group.
    fn world(&self) -> usize {
        self.member().world
    }

    /// The group's epoch.
    fn epoch(&self) -> Epoch {
        self.member().epoch
    }

    /// The GPU in whose memory buffers may lie besides the host's, as CUDA counts them.
    fn gpu(&self) -> Option<usize> {
        None
    }

    /// Numbers that callers give to one call at most, the same at all ranks: larger buffers are summed piece by piece.
    fn piece(&self) -> usize {
        PIECE
    }

    /// Every rank receives the sum over ranks of what each sends. Integers wrap. Floats are added in the order of ranks, but
    /// by NCCL in an order of its own, which depends on the group's size and links.
    ///
    /// # Errors
    /// When a peer is lost or silent for too long, calls another collective, or the group was aborted.
    fn all_reduce(&mut self, send: Values<'_>, receive: Buffer<'_>) -> Result<()>;

    /// The root receives the sum over ranks of what each sends; the other ranks give no buffer. A rank may return before the root has
    /// received.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn reduce(&mut self, root: usize, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()>;

    /// Every rank receives the root's buffer. No job calls it yet: all that goes to every worker are solved weights, which are committed to the
    /// job's store once their group has ended, and read from there into the host's memory, also by workers that join later.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`].
    fn broadcast(&mut self, root: usize, buffer: Buffer<'_>) -> Result<()>;
}

/// How groups are joined: one implementation for each way in which workers reach each other. It finds its peers by the epoch.
pub trait Transport: Send + Sync {
    /// Joins a group, and returns when all its ranks have.
    ///
    /// # Errors
    /// When a peer does not come in time or leaves, the epoch was used before, or `abort` is raised. The peers get an error too.
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>>;

    /// Starts what joins a group, or calls a collective of one, and may block in it: on a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    fn start(&self, joining: Box<dyn FnOnce() + Send>) -> Result<()> {
        let thread = std::thread::Builder::new().name("group".to_owned()).spawn(joining);
        thread.map(drop).map_err(|e| {
            CollectiveError::Transport(format!(
                "the system gives no more threads: raise its limit (ulimit -u, or pids.max of its control group) ({e})"
            ))
        })
    }
}

/// A member of a group to join, and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The group's epoch, never used for another group.
    pub epoch: Epoch,
    /// The place, from 0.
    pub rank: usize,
    /// Places of the group.
    pub world: usize,
    /// How long the peers may take to come.
    pub form: Duration,
    /// How long a call may take in which nothing arrives.
    pub silence: Duration,
}

impl Member {
    /// Refuses a place that the group does not have.
    fn check(&self) -> Result<()> {
        if self.rank < self.world {
            Ok(())
        } else {
            Err(CollectiveError::Member { rank: self.rank, world: self.world })
        }
    }
}

#[cfg(test)]
mod tests;
