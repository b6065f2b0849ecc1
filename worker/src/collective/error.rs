//! Why a collective failed.

use std::time::Duration;

use obsdiff_proto::{Epoch, WorkerId, counted};
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
    #[error("nothing from {} for {:.1} s", listed(ranks, |rank| format!("rank {rank}")), waited.as_secs_f64())]
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

impl CollectiveError {
    /// The error in words for people, who know workers and no ranks: those of the group, by rank.
    pub fn among(&self, workers: &[WorkerId]) -> String {
        let name = |rank: usize| match workers.get(rank) {
            Some(worker) => format!("worker {worker}"),
            None => format!("rank {rank}"),
        };
        match self {
            Self::PeerLost { rank, why } => format!("{} is gone ({why})", name(*rank)),
            Self::Timeout { ranks, waited } => {
                format!("nothing from {} for {:.1} s", listed(ranks, name), waited.as_secs_f64())
            }
            Self::Mismatch { rank, called, expected } => {
                format!("{} calls {called}, but others {expected}", name(*rank))
            }
            _ => self.to_string(),
        }
    }
}

/// Ranks by their names: all of a few, else the first ones and how many follow.
fn listed(ranks: &[usize], name: impl Fn(usize) -> String) -> String {
    const MOST: usize = 8;
    let (named, rest) = ranks.split_at(ranks.len().min(MOST));
    let mut names: Vec<_> = named.iter().map(|rank| name(*rank)).collect();
    if !rest.is_empty() {
        names.push(counted(rest.len(), "other"));
    }
    match names.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_of_workers_and_not_of_ranks() {
        let workers: Vec<_> = (0..20).map(|rank| WorkerId((1 << 32) + 10 + rank)).collect();
        let missing =
            |ranks: Vec<usize>| CollectiveError::Timeout { ranks, waited: Duration::from_millis(49_976) };
        assert_eq!(missing(vec![3]).among(&workers), "nothing from worker 2.13 for 50.0 s");
        assert_eq!(
            missing(vec![0, 2]).among(&workers),
            "nothing from worker 2.10 and worker 2.12 for 50.0 s"
        );
        assert_eq!(missing(vec![0, 2]).to_string(), "nothing from rank 0 and rank 2 for 50.0 s");
        let many = missing((0..20).collect()).among(&workers);
        assert!(many.starts_with("nothing from worker 2.10, worker 2.11, "), "{many}");
        assert!(many.ends_with(", worker 2.17 and 12 others for 50.0 s"), "{many}");
        let lost = CollectiveError::PeerLost { rank: 1, why: "it died".to_owned() };
        assert_eq!(lost.among(&workers), "worker 2.11 is gone (it died)");
        assert_eq!(lost.among(&[]), "rank 1 is gone (it died)");
        assert_eq!(CollectiveError::Aborted.among(&workers), "aborted");
    }
}
