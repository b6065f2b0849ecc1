//! Why a collective failed.

use std::time::Duration;

use obsdiff_proto::Epoch;
use thiserror::Error;

/// Why a group could not be joined, or a call did not go through.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// [`super::Abort`] was raised here.
    #[error("aborted")]
    Aborted,
    /// A peer left the group: it died, gave up, or was cut off.
    #[error("rank {rank} is gone ({why})")]
    PeerLost {
        /// Who.
        rank: usize,
        /// What is known of it.
        why: String,
    },
    /// Peers did not come, or nothing arrived from them.
    #[error("nothing from ranks {ranks:?} for {} s", waited.as_secs_f64())]
    Timeout {
        /// Who is missing.
        ranks: Vec<usize>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Ranks called different collectives, or with buffers of different shapes.
    #[error("rank {rank} calls {called}, but others {expected}")]
    Mismatch {
        /// Who.
        rank: usize,
        /// What it calls.
        called: String,
        /// What the group calls.
        expected: String,
    },
    /// The epoch belongs to a group that was formed or given up before.
    #[error("epoch {0} was used before")]
    EpochUsed(Epoch),
    /// The group does not have such a place.
    #[error("there is no rank {rank} among {world}")]
    Member {
        /// The place.
        rank: usize,
        /// Places of the group.
        world: usize,
    },
    /// The buffers of a call do not fit each other or the rank.
    #[error("{0}")]
    Buffers(&'static str),
    /// The transport failed.
    #[error("{0}")]
    Transport(String),
}
