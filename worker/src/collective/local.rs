//! Groups of threads in one process.
//!
//! A call is a round: each rank brings its numbers, the last one adds them up in the order of ranks, and all go on. A rank copies
//! what it sends once, so a round holds `world` copies of a buffer: callers send large ones in chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use obsdiff_proto::{Epoch, lock};

use super::buffer::{Buffer, OUT_OF_REACH, Values, on_host};
use super::call::{CallKind, CollectiveCall};
use super::{Abort, Collective, CollectiveError, Member, Result, Transport};

/// Joins threads of this process. Clones join the same groups.
#[derive(Clone, Default)]
pub struct Local(Arc<Mutex<BTreeMap<Epoch, Arc<LocalGroup>>>>);

/// A group as its ranks share it.
struct LocalGroup {
    world: usize,
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Default)]
struct GroupState {
    joined: BTreeSet<usize>,
    /// Who ended the group, and why.
    ended: Option<(usize, CollectiveError)>,
    /// The call of the open round, by who called it first.
    call: Option<(usize, CollectiveCall)>,
    /// What each rank brought to the open round.
    brought: BTreeMap<usize, RoundNumbers>,
    /// Rounds closed.
    rounds: u64,
    /// Results of rounds, and how many ranks have yet to take each.
    results: BTreeMap<u64, (Arc<RoundNumbers>, usize)>,
}

/// Numbers that a round keeps.
#[derive(Debug)]
enum RoundNumbers {
    Nothing,
    I64(Vec<i64>),
    F32(Vec<f32>),
}

/// A rank's end.
struct LocalRank {
    member: Member,
    group: Arc<LocalGroup>,
    /// Calls made.
    calls: u64,
}

impl Transport for Local {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        member.check()?;
        let group = self.group(&member)?;
        {
            let mut state = lock(&group.state);
            if !state.joined.insert(member.rank) {
                return Err(CollectiveError::EpochUsed(member.epoch));
            }
            group.changed.notify_all();
        }
        let rank = LocalRank { member, group: group.clone(), calls: 0 };
        let weak = Arc::downgrade(&group);
        abort.when_raised(move || {
            if let Some(group) = weak.upgrade() {
                group.end(member.rank, CollectiveError::Aborted);
            }
        });
        let missing = |state: &mut GroupState| {
            let missing: Vec<_> = (0..member.world).filter(|rank| !state.joined.contains(rank)).collect();
            // A group that was given up forms no more.
            if missing.is_empty() && state.ended.is_none() { Ok(()) } else { Err(missing) }
        };
        group.wait(member.rank, member.form, missing)?;
        Ok(Box::new(rank))
    }
}

impl Local {
    /// The group of an epoch, which must not be older than another's.
    fn group(&self, member: &Member) -> Result<Arc<LocalGroup>> {
        let mut groups = lock(&self.0);
        let used = Err(CollectiveError::EpochUsed(member.epoch));
        if groups.last_key_value().is_some_and(|(newest, _)| *newest > member.epoch) {
            return used;
        }
        // The newest stays, so that its epoch is known to be used.
        groups.retain(|epoch, _| *epoch == member.epoch);
        let fresh = || LocalGroup { world: member.world, state: Mutex::default(), changed: Condvar::new() };
        let group = groups.entry(member.epoch).or_insert_with(|| Arc::new(fresh())).clone();
        if group.world != member.world {
            return Err(CollectiveError::Member { rank: member.rank, world: group.world });
        }
        Ok(group)
    }
}

impl LocalGroup {
    /// Ends the group; the first reason stays.
    fn end(&self, rank: usize, why: CollectiveError) {
        let mut state = lock(&self.state);
        if state.ended.is_none() {
            state.ended = Some((rank, why));
            state.brought.clear();
            self.changed.notify_all();
        }
    }

    /// Waits until `ready` gives a value; what it gives before that are the ranks it waits for.
    fn wait<T>(
        &self,
        rank: usize,
        patience: Duration,
        mut ready: impl FnMut(&mut GroupState) -> Result<T, Vec<usize>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let mut state = lock(&self.state);
        loop {
            let missing = match ready(&mut state) {
                Ok(value) => return Ok(value),
                Err(missing) => missing,
            };
            state.check(rank)?;
            let waited = begun.elapsed();
            let Some(left) = patience.checked_sub(waited).filter(|left| !left.is_zero()) else {
                drop(state);
                let error = CollectiveError::Timeout { ranks: missing, waited };
                self.end(rank, error.clone());
                return Err(error);
            };
            state = self.wait_change(state, left);
        }
    }

    fn wait_change<'a>(
        &self,
        state: MutexGuard<'a, GroupState>,
        left: Duration,
    ) -> MutexGuard<'a, GroupState> {
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl GroupState {
    /// The error that a rank gets from a group that ended.
    fn check(&self, rank: usize) -> Result<()> {
        match &self.ended {
            None => Ok(()),
            Some((by, why)) if *by == rank => Err(why.clone()),
            Some((by, why)) => Err(CollectiveError::PeerLost { rank: *by, why: why.to_string() }),
        }
    }

    /// Closes the open round when every rank is in it.
    fn close_round(&mut self, world: usize, call: CollectiveCall) {
        let brought = std::mem::take(&mut self.brought);
        let result = match call.what {
            CallKind::AllReduce | CallKind::Reduce { .. } => sum(brought.into_values()),
            CallKind::Broadcast { root } => {
                brought.into_iter().find(|(rank, _)| *rank == root).map_or(RoundNumbers::Nothing, |(_, n)| n)
            }
        };
        self.results.insert(self.rounds, (Arc::new(result), world));
        self.rounds += 1;
        self.call = None;
    }

    /// The result of a round, once it is closed.
    fn result(&mut self, round: u64) -> Option<Arc<RoundNumbers>> {
        let (result, left) = self.results.get_mut(&round)?;
        *left -= 1;
        let result = result.clone();
        if *left == 0 {
            self.results.remove(&round);
        }
        Some(result)
    }
}

impl LocalRank {
    /// Takes part in a round.
    fn round(&mut self, call: CollectiveCall, brings: RoundNumbers) -> Result<Arc<RoundNumbers>> {
        let (rank, world, round) = (self.member.rank, self.member.world, self.calls);
        self.calls += 1;
        {
            let mut state = lock(&self.group.state);
            state.check(rank)?;
            let expected = state.call.get_or_insert((rank, call)).1;
            if expected != call {
                drop(state);
                let error = CollectiveError::Mismatch {
                    rank,
                    called: call.to_string(),
                    expected: expected.to_string(),
                };
                self.group.end(rank, error.clone());
                return Err(error);
            }
            state.brought.insert(rank, brings);
            if state.brought.len() == world {
                state.close_round(world, call);
                self.group.changed.notify_all();
            }
        }
        self.group.wait(rank, self.member.silence, |state| {
            state
                .result(round)
                .ok_or_else(|| (0..world).filter(|rank| !state.brought.contains_key(rank)).collect())
        })
    }
}

impl Collective for LocalRank {
    fn member(&self) -> &Member {
        &self.member
    }

    fn all_reduce(&mut self, send: Values<'_>, receive: Buffer<'_>) -> Result<()> {
        on_host(Some(send), Some(&receive))?;
        let call = CollectiveCall::all_reduce(send, &receive)?;
        self.round(call, RoundNumbers::of(send)?)?.put(receive)
    }

    fn reduce(&mut self, root: usize, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()> {
        on_host(Some(send), receive.as_ref())?;
        let call = CollectiveCall::reduce(root, send, receive.as_ref(), self.member.rank, self.member.world)?;
        let sum = self.round(call, RoundNumbers::of(send)?)?;
        receive.map_or(Ok(()), |receive| sum.put(receive))
    }

    fn broadcast(&mut self, root: usize, buffer: Buffer<'_>) -> Result<()> {
        on_host(None, Some(&buffer))?;
        let call = CollectiveCall::broadcast(root, &buffer, self.member.world)?;
        if root == self.member.rank {
            return self.round(call, RoundNumbers::of(buffer.values())?).map(drop);
        }
        self.round(call, RoundNumbers::Nothing)?.put(buffer)
    }
}

impl Drop for LocalRank {
    fn drop(&mut self) {
        let why = if std::thread::panicking() { "it panicked" } else { "it left the group" };
        self.group.end(self.member.rank, CollectiveError::Transport(why.to_owned()));
    }
}

impl RoundNumbers {
    fn of(values: Values<'_>) -> Result<Self> {
        match values {
            Values::I64(values) => Ok(Self::I64(values.to_vec())),
            Values::F32(values) => Ok(Self::F32(values.to_vec())),
            Values::Device(_) => Err(CollectiveError::Buffers(OUT_OF_REACH)),
        }
    }

    fn put(&self, buffer: Buffer<'_>) -> Result<()> {
        match (self, buffer) {
            (Self::I64(from), Buffer::I64(to)) if from.len() == to.len() => to.copy_from_slice(from),
            (Self::F32(from), Buffer::F32(to)) if from.len() == to.len() => to.copy_from_slice(from),
            _ => return Err(CollectiveError::Buffers("what was received does not fit the buffer")),
        }
        Ok(())
    }
}

/// Adds up in the order given. All are of one shape, as every rank made the same call.
fn sum(numbers: impl Iterator<Item = RoundNumbers>) -> RoundNumbers {
    let add = |sum: RoundNumbers, next: RoundNumbers| match (sum, next) {
        (RoundNumbers::I64(mut sum), RoundNumbers::I64(next)) => {
            sum.iter_mut().zip(next).for_each(|(a, b)| *a = a.wrapping_add(b));
            RoundNumbers::I64(sum)
        }
        (RoundNumbers::F32(mut sum), RoundNumbers::F32(next)) => {
            sum.iter_mut().zip(next).for_each(|(a, b)| *a += b);
            RoundNumbers::F32(sum)
        }
        (sum, _) => sum,
    };
    numbers.reduce(add).unwrap_or(RoundNumbers::Nothing)
}
