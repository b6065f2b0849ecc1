//! A rank's end: who adds what, and who sends it where.
//!
//! A sum goes in two halves. Each rank owns a segment of the buffer: it receives that segment of all others and adds them up in the
//! order of ranks; then the sums go to the ranks that need them. So every rank sends and receives each number about twice, for any number of
//! ranks, and only the root of a reduction is a bottleneck.

use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use super::mesh::Piece;
use super::{SharedMesh, check, millis, peers};
use crate::collective::buffer::{OUT_OF_REACH, on_host};
use crate::collective::call::{CallHeader, CollectiveCall};
use crate::collective::{Abort, Buffer, Collective, CollectiveError, Member, Result, Values};

/// The longest message: what is in flight from one rank to another.
const MESSAGE: usize = 1 << 20;
/// The most that a rank holds of what others sent and it has not added yet; at least a number of each.
const STAGE: usize = 16 << 20;

/// A rank of a group.
pub(super) struct GlooRank {
    member: Member,
    mesh: Arc<SharedMesh>,
    watcher: Option<JoinHandle<()>>,
    abort: Abort,
    /// Calls made.
    calls: u64,
    /// Why the group is of no use any more.
    ended: Option<CollectiveError>,
    /// What others sent and is not added yet.
    stage: Vec<i64>,
    /// Sums of the own segment, where no buffer of the caller has room for them.
    sums: Vec<i64>,
}

impl GlooRank {
    pub(super) fn new(member: Member, mesh: Arc<SharedMesh>, watcher: JoinHandle<()>, abort: Abort) -> Self {
        let watcher = Some(watcher);
        Self { member, mesh, watcher, abort, calls: 0, ended: None, stage: Vec::new(), sums: Vec::new() }
    }

    /// Hears of every peer that it joined the same group.
    pub(super) fn greet(&mut self, silence: Duration) -> Result<()> {
        let own: CallHeader = [self.member.epoch.0, self.member.world as u64, 0, 0, 0];
        for (peer, said) in self.greetings(own, silence)? {
            if said != own {
                let said = format!("it is in the group of epoch {}", said[0]);
                return Err(CollectiveError::PeerLost { rank: peer, why: said });
            }
        }
        Ok(())
    }

    /// Sends this rank's header to all peers, and returns theirs.
    fn greetings(&mut self, own: CallHeader, silence: Duration) -> Result<Vec<(usize, CallHeader)>> {
        const LENGTH: usize = size_of::<CallHeader>();
        let mut said = vec![CallHeader::default(); self.member.world];
        let outgoing = peers(self.member).map(|rank| Piece { rank, offset: 0, length: LENGTH });
        let incoming = peers(self.member).map(|rank| Piece { rank, offset: rank * LENGTH, length: LENGTH });
        let (outgoing, incoming): (Vec<_>, Vec<_>) = (outgoing.collect(), incoming.collect());
        self.exchange(cast_slice(&own), &outgoing, cast_slice_mut(&mut said), &incoming, silence)?;
        Ok(peers(self.member).map(|peer| (peer, said[peer])).collect())
    }

    fn exchange(
        &self,
        send: &[u8],
        outgoing: &[Piece],
        receive: &mut [u8],
        incoming: &[Piece],
        silence: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        let report = self.mesh.exchange(send, outgoing, receive, incoming, millis(silence));
        check(&report.map_err(super::broken)?, begun, &self.abort)
    }

    /// Makes a call; the first error ends the group.
    fn call(&mut self, call: CollectiveCall, follow: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let followed = self.agree(call).and_then(|()| follow(self));
        if let Err(error) = &followed {
            self.ended = Some(error.clone());
            self.mesh.end_hard();
        }
        followed
    }

    /// Sees that all ranks make the same call. A message that does not fit its buffer would be Gloo's end, and the process's.
    fn agree(&mut self, call: CollectiveCall) -> Result<()> {
        self.calls += 1;
        let own = call.encode(self.calls);
        for (peer, said) in self.greetings(own, self.member.silence)? {
            if said != own {
                let called = CollectiveCall::decode(&said)
                    .map_or_else(|| "something else".to_owned(), |c| c.to_string());
                return Err(CollectiveError::Mismatch { rank: peer, called, expected: call.to_string() });
            }
        }
        Ok(())
    }

    /// Sums what all ranks send. Ranks for which `receives` is true get the sum.
    fn sum<T: Summand>(
        &mut self,
        send: &[T],
        mut receive: Option<&mut [T]>,
        receives: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let own = self.segment(send.len(), self.member.rank);
        let mut sums = std::mem::take(&mut self.sums);
        sums.resize((own.len() * size_of::<T>()).div_ceil(size_of::<i64>()), 0);
        let summed = {
            let sums = &mut cast_slice_mut::<i64, T>(&mut sums)[..own.len()];
            self.add_up(send, sums).and_then(|()| {
                if let Some(receive) = &mut receive {
                    receive[own].copy_from_slice(sums);
                }
                self.gather(send.len(), sums, receive, receives)
            })
        };
        self.sums = sums;
        summed
    }

    /// Adds up the own segment of all ranks, in their order.
    fn add_up<T: Summand>(&mut self, send: &[T], sums: &mut [T]) -> Result<()> {
        let others = self.member.world - 1;
        let step = (MESSAGE.min(STAGE / others) / size_of::<T>()).max(1);
        let mut stage = std::mem::take(&mut self.stage);
        stage.resize((others * step.min(sums.len()) * size_of::<T>()).div_ceil(size_of::<i64>()), 0);
        let own = self.segment(send.len(), self.member.rank);
        let mut added = Ok(());
        for start in self.rounds(send.len(), step) {
            let part = round(&own, start, step);
            let outgoing: Vec<_> = peers(self.member)
                .map(|rank| (rank, round(&self.segment(send.len(), rank), start, step)))
                .filter_map(|(rank, range)| piece::<T>(rank, &range))
                .collect();
            let place = |rank: usize| if rank < self.member.rank { rank } else { rank - 1 };
            let staged = |rank| place(rank) * part.len()..(place(rank) + 1) * part.len();
            let incoming: Vec<_> =
                peers(self.member).filter_map(|rank| piece::<T>(rank, &staged(rank))).collect();
            let silence = self.member.silence;
            added =
                self.exchange(cast_slice(send), &outgoing, cast_slice_mut(&mut stage), &incoming, silence);
            if added.is_err() {
                break;
            }
            let stage: &[T] = cast_slice(&stage);
            let into = &mut sums[part.start - own.start..part.end - own.start];
            for rank in 0..self.member.world {
                let adds = if rank == self.member.rank { &send[part.clone()] } else { &stage[staged(rank)] };
                match rank {
                    0 => into.copy_from_slice(adds),
                    _ => into.iter_mut().zip(adds).for_each(|(sum, add)| *sum = sum.plus(*add)),
                }
            }
        }
        self.stage = stage;
        added
    }

    /// Sends the sums of the own segment to those who receive, and receives the others' where this rank does.
    fn gather<T: Summand>(
        &mut self,
        length: usize,
        sums: &[T],
        receive: Option<&mut [T]>,
        receives: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let step = MESSAGE / size_of::<T>();
        let own = self.segment(length, self.member.rank);
        let wants = receive.is_some();
        let receive = receive.unwrap_or_default();
        for start in self.rounds(length, step) {
            let part = round(&own, start, step);
            let part = part.start - own.start..part.end - own.start;
            let outgoing: Vec<_> = peers(self.member)
                .filter(|rank| receives(*rank))
                .filter_map(|rank| piece::<T>(rank, &part))
                .collect();
            let incoming: Vec<_> = peers(self.member)
                .filter(|_| wants)
                .filter_map(|rank| piece::<T>(rank, &round(&self.segment(length, rank), start, step)))
                .collect();
            let (send, silence) = (cast_slice(sums), self.member.silence);
            self.exchange(send, &outgoing, cast_slice_mut(receive), &incoming, silence)?;
        }
        Ok(())
    }

    /// Sends the root's buffer to all.
    fn spread<T: Summand>(&mut self, root: usize, buffer: &mut [T]) -> Result<()> {
        let (step, silence) = (MESSAGE / size_of::<T>(), self.member.silence);
        for start in (0..buffer.len()).step_by(step) {
            let range = start..buffer.len().min(start + step);
            if root == self.member.rank {
                let outgoing: Vec<_> =
                    peers(self.member).filter_map(|rank| piece::<T>(rank, &range)).collect();
                self.exchange(cast_slice(buffer), &outgoing, &mut [], &[], silence)?;
            } else {
                let incoming: Vec<_> = piece::<T>(root, &range).into_iter().collect();
                self.exchange(&[], &[], cast_slice_mut(buffer), &incoming, silence)?;
            }
        }
        Ok(())
    }

    /// The numbers that a rank adds up.
    fn segment(&self, length: usize, rank: usize) -> Range<usize> {
        let world = self.member.world;
        length * rank / world..length * (rank + 1) / world
    }

    /// Where the rounds begin in which segments go: as many for all ranks.
    fn rounds(&self, length: usize, step: usize) -> impl Iterator<Item = usize> + use<> {
        (0..length.div_ceil(self.member.world)).step_by(step)
    }
}

/// What of a segment goes in the round that begins at `start` of it.
fn round(segment: &Range<usize>, start: usize, step: usize) -> Range<usize> {
    let from = segment.end.min(segment.start + start);
    from..segment.end.min(from + step)
}

/// A piece of numbers, unless there are none.
fn piece<T>(rank: usize, range: &Range<usize>) -> Option<Piece> {
    let size = size_of::<T>();
    (!range.is_empty()).then(|| Piece { rank, offset: range.start * size, length: range.len() * size })
}

impl Collective for GlooRank {
    fn member(&self) -> &Member {
        &self.member
    }

    fn all_reduce(&mut self, send: Values<'_>, receive: Buffer<'_>) -> Result<()> {
        on_host(Some(send), Some(&receive))?;
        let call = CollectiveCall::all_reduce(send, &receive)?;
        self.call(call, |rank| match (send, receive) {
            (Values::I64(send), Buffer::I64(receive)) => rank.sum(send, Some(receive), |_| true),
            (Values::F32(send), Buffer::F32(receive)) => rank.sum(send, Some(receive), |_| true),
            _ => Err(CollectiveError::Buffers(OUT_OF_REACH)),
        })
    }

    fn reduce(&mut self, root: usize, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()> {
        on_host(Some(send), receive.as_ref())?;
        let call = CollectiveCall::reduce(root, send, receive.as_ref(), self.member.rank, self.member.world)?;
        let at_root = |rank| rank == root;
        self.call(call, |rank| match (send, receive) {
            (Values::I64(send), Some(Buffer::I64(receive))) => rank.sum(send, Some(receive), at_root),
            (Values::F32(send), Some(Buffer::F32(receive))) => rank.sum(send, Some(receive), at_root),
            (Values::I64(send), _) => rank.sum(send, None, at_root),
            (Values::F32(send), _) => rank.sum(send, None, at_root),
            (Values::Device(_), _) => Err(CollectiveError::Buffers(OUT_OF_REACH)),
        })
    }

    fn broadcast(&mut self, root: usize, buffer: Buffer<'_>) -> Result<()> {
        on_host(None, Some(&buffer))?;
        let call = CollectiveCall::broadcast(root, &buffer, self.member.world)?;
        self.call(call, |rank| match buffer {
            Buffer::I64(buffer) => rank.spread(root, buffer),
            Buffer::F32(buffer) => rank.spread(root, buffer),
            Buffer::Device(_) => Err(CollectiveError::Buffers(OUT_OF_REACH)),
        })
    }
}

impl Drop for GlooRank {
    fn drop(&mut self) {
        // After an error the peers are to notice at once; else what was sent is to arrive.
        if let Err(error) = self.mesh.end(self.ended.is_some() || std::thread::panicking()) {
            tracing::warn!(%error, "a group was not left in good order");
        }
        if let Some(watcher) = self.watcher.take() {
            // It says itself what goes wrong.
            let _ = watcher.join();
        }
    }
}

/// Numbers that are added.
trait Summand: Pod {
    fn plus(self, other: Self) -> Self;
}

impl Summand for i64 {
    fn plus(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
}

impl Summand for f32 {
    fn plus(self, other: Self) -> Self {
        self + other
    }
}
