//! A collective call, which must be the same at all ranks of a group.

use std::fmt;

use super::buffer::{Buffer, BufferShape, Values};
use super::{CollectiveError, Result};

/// A call, as far as all ranks must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CollectiveCall {
    pub(super) what: CallKind,
    pub(super) shape: BufferShape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    AllReduce,
    Reduce { root: usize },
    Broadcast { root: usize },
}

/// What a rank says of each call to the others before it. All ranks must say the same.
#[cfg(any(feature = "gloo", feature = "cuda"))]
pub(super) type CallHeader = [u64; 5];

impl CollectiveCall {
    /// An all-reduce of buffers that fit each other.
    pub(super) fn all_reduce(send: Values<'_>, receive: &Buffer<'_>) -> Result<Self> {
        Ok(Self { what: CallKind::AllReduce, shape: same_shape(send, receive)? })
    }

    /// A reduction at one of `world` ranks. Only the root receives the sum.
    pub(super) fn reduce(
        root: usize,
        send: Values<'_>,
        receive: Option<&Buffer<'_>>,
        rank: usize,
        world: usize,
    ) -> Result<Self> {
        within(root, world)?;
        match receive {
            Some(receive) if root == rank => same_shape(send, receive)?,
            None if root != rank => send.shape(),
            _ => return Err(CollectiveError::Buffers("the root of a reduction receives, and nobody else")),
        };
        Ok(Self { what: CallKind::Reduce { root }, shape: send.shape() })
    }

    /// A broadcast from one of `world` ranks.
    pub(super) fn broadcast(root: usize, buffer: &Buffer<'_>, world: usize) -> Result<Self> {
        within(root, world)?;
        Ok(Self { what: CallKind::Broadcast { root }, shape: buffer.shape() })
    }
}

fn within(root: usize, world: usize) -> Result<()> {
    if root < world { Ok(()) } else { Err(CollectiveError::Member { rank: root, world }) }
}

fn same_shape(send: Values<'_>, receive: &Buffer<'_>) -> Result<BufferShape> {
    if send.shape() == receive.shape() {
        Ok(send.shape())
    } else {
        Err(CollectiveError::Buffers("a buffer to receive is not of the shape that is sent"))
    }
}

#[cfg(any(feature = "gloo", feature = "cuda"))]
impl CollectiveCall {
    /// The call as a rank says it, which is its `number`-th.
    pub(super) fn encode(self, number: u64) -> CallHeader {
        let (what, root) = match self.what {
            CallKind::AllReduce => (1, 0),
            CallKind::Reduce { root } => (2, root),
            CallKind::Broadcast { root } => (3, root),
        };
        let (kind, count) = match self.shape {
            BufferShape::I64(count) => (1, count),
            BufferShape::F32(count) => (2, count),
        };
        [number, what, root as u64, kind, count as u64]
    }

    /// The call that a rank says it makes.
    pub(super) fn decode(said: &CallHeader) -> Option<Self> {
        let [_, what, root, kind, count] = said.map(|number| number as usize);
        let what = match what {
            1 => CallKind::AllReduce,
            2 => CallKind::Reduce { root },
            3 => CallKind::Broadcast { root },
            _ => return None,
        };
        let shape = match kind {
            1 => BufferShape::I64(count),
            2 => BufferShape::F32(count),
            _ => return None,
        };
        Some(Self { what, shape })
    }
}

impl fmt::Display for CollectiveCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            CallKind::AllReduce => write!(f, "all_reduce of {}", self.shape),
            CallKind::Reduce { root } => write!(f, "reduce of {} to rank {root}", self.shape),
            CallKind::Broadcast { root } => write!(f, "broadcast of {} from rank {root}", self.shape),
        }
    }
}
