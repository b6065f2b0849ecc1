//! A rank's end of a group over NCCL.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::{cast_slice, cast_slice_mut};
use obsdiff_engine::device::numbers::DeviceNumbers;

use super::departures::Departures;
use super::ffi::{CallError, DeviceMemory, Number, Operation, Progress};
use super::leaving::{Leaving, Link};
use crate::collective::buffer::OUT_OF_REACH;
use crate::collective::call::{CallHeader, CallKind, CollectiveCall};
use crate::collective::{Buffer, BufferShape, Collective, CollectiveError, Member, Result, Values};

/// How often NCCL and the GPU are asked how far they are, behind the first [`ASKED_AT_ONCE`] questions. NCCL has nothing to wait on.
const ASK: Duration = Duration::from_micros(100);
/// Questions in a row before the first pause. By NVLink, at some 400 GB/s, a chunk of 16 MiB takes 40 us: a pause would take longer.
const ASKED_AT_ONCE: u32 = 50;
/// How long the word of a peer that failed a call may take to arrive.
const NAMING: Duration = Duration::from_secs(1);

/// Numbers that a call takes at most: 64 MiB of integers, several chunks, so that agreeing on a call does not count.
const PIECE: usize = 8 << 20;

/// A rank of a group.
pub(super) struct NcclRank {
    member: Member,
    /// The number of its GPU.
    gpu: usize,
    departures: Arc<Departures>,
    leaving: Arc<Leaving>,
    /// None once the group is left.
    link: Option<Link>,
    /// Calls begun.
    calls: u64,
    /// Why the group is of no use any more.
    ended: Option<CollectiveError>,
}

/// A chunk of a call on its way. Numbers of the host go through its lane, whose event marks its end.
struct Chunk {
    lane: usize,
    bytes: Range<usize>,
}

/// Numbers that this rank sends.
#[derive(Clone, Copy)]
enum SendFrom<'a> {
    Host(&'a [u8]),
    Device(&'a DeviceNumbers),
}

/// Where this rank receives.
enum ReceiveInto<'a> {
    Host(&'a mut [u8]),
    Device(&'a DeviceNumbers),
}

impl NcclRank {
    /// A rank whose communicator is still joining.
    pub(super) fn new(
        member: Member,
        departures: Arc<Departures>,
        leaving: Arc<Leaving>,
        link: Link,
    ) -> Self {
        let gpu = link.gpu.ordinal();
        Self { member, gpu, departures, leaving, link: Some(link), calls: 0, ended: None }
    }

    /// Waits until all ranks have joined, at most so long. A rank that gave up meanwhile is in NCCL's group and answers no more, so each
    /// hears of every other that it is there.
    pub(super) fn joined(&mut self, most: Duration) -> Result<()> {
        let begun = Instant::now();
        let followed = self.until(begun, most, |link| link.communicator.progress()).and_then(|()| {
            let own = [self.member.epoch.0, self.member.world as u64, 0, 0, 0];
            match self
                .exchange(own, most.saturating_sub(begun.elapsed()))?
                .iter()
                .position(|said| *said != own)
            {
                None => Ok(()),
                Some(rank) => {
                    Err(CollectiveError::PeerLost { rank, why: "it is in another group".to_owned() })
                }
            }
        });
        self.ends(followed)
    }

    /// Keeps the first error, which ends the group.
    fn ends<T>(&mut self, followed: Result<T>) -> Result<T> {
        if let Err(error) = &followed {
            self.end(Some(error.clone()));
        }
        followed
    }

    fn end(&mut self, fault: Option<CollectiveError>) {
        self.ended = Some(fault.clone().unwrap_or_else(over));
        if let Some(link) = self.link.take() {
            self.leaving.leave(link, self.departures.clone(), self.calls, fault);
        }
    }

    /// Asks `step` until it is done: for at most `limit` since `begun`.
    fn until(
        &mut self,
        begun: Instant,
        limit: Duration,
        mut step: impl FnMut(&mut Link) -> Result<Progress, CallError>,
    ) -> Result<()> {
        let mut asked = 0;
        loop {
            let link = self.link.as_mut().ok_or_else(over)?;
            // An operation that failed may look done: what NCCL knows of is asked after it.
            let done = step(link).and_then(|done| link.communicator.progress().map(|_| done));
            if done.map_err(|error| self.failed(&error))? == Progress::Done {
                return Ok(());
            }
            self.departures.check(self.calls)?;
            if begun.elapsed() >= limit {
                // NCCL does not say which rank it waits for.
                let ranks = (0..self.member.world).filter(|rank| *rank != self.member.rank).collect();
                return Err(CollectiveError::Timeout { ranks, waited: begun.elapsed() });
            }
            if asked < ASKED_AT_ONCE {
                asked += 1;
                thread::yield_now();
            } else {
                self.departures.pause(ASK);
            }
        }
    }

    /// What an error of NCCL or of the GPU means for the group.
    fn failed(&self, error: &CallError) -> CollectiveError {
        if let Some(culprit) = self.departures.culprit(self.calls, NAMING) {
            return culprit;
        }
        if error.remote() && self.member.world == 2 {
            return CollectiveError::PeerLost { rank: 1 - self.member.rank, why: error.to_string() };
        }
        CollectiveError::Transport(error.to_string())
    }

    /// Does what uses NCCL or the GPU without waiting.
    fn with<T>(&mut self, act: impl FnOnce(&mut Link) -> Result<T, CallError>) -> Result<T> {
        let link = self.link.as_mut().ok_or_else(over)?;
        act(link).map_err(|error| self.failed(&error))
    }

    /// Makes a call; the first error ends the group.
    fn call(
        &mut self,
        call: CollectiveCall,
        send: Option<SendFrom<'_>>,
        mut receive: Option<ReceiveInto<'_>>,
    ) -> Result<()> {
        let sent = if let Some(SendFrom::Device(numbers)) = send { Some(numbers) } else { None };
        let received = if let Some(ReceiveInto::Device(numbers)) = receive { Some(numbers) } else { None };
        let lent: Vec<_> = sent.into_iter().chain(received).cloned().collect();
        if lent.iter().any(|numbers| numbers.gpu() != self.gpu) {
            return Err(CollectiveError::Buffers(OUT_OF_REACH));
        }
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        self.calls += 1;
        let followed = self.agree(call).and_then(|()| {
            // After an error the group keeps the memory until NCCL has let go of it.
            self.lend(lent)?;
            self.transfer(call, send, &mut receive)?;
            self.lend(Vec::new())
        });
        self.ends(followed)
    }

    /// Keeps memory that operations use, and no other any more.
    fn lend(&mut self, memory: Vec<DeviceNumbers>) -> Result<()> {
        self.with(|link| {
            link.lent = memory;
            Ok(())
        })
    }

    /// Sees that all ranks make the same call: NCCL would wait for ever, or write past a buffer.
    fn agree(&mut self, call: CollectiveCall) -> Result<()> {
        let own = call.encode(self.calls);
        let said = self.exchange(own, self.member.silence)?;
        match said.iter().enumerate().find(|(_, said)| **said != own) {
            None => Ok(()),
            Some((peer, said)) => {
                let called = CollectiveCall::decode(said)
                    .map_or_else(|| "something else".to_owned(), |c| c.to_string());
                Err(CollectiveError::Mismatch { rank: peer, called, expected: call.to_string() })
            }
        }
    }

    /// Sends a few numbers to all ranks, and returns those of each, by rank.
    fn exchange(&mut self, own: CallHeader, limit: Duration) -> Result<Vec<CallHeader>> {
        const WORDS: usize = size_of::<CallHeader>() / size_of::<u64>();
        let Member { rank, world, .. } = self.member;
        self.departures.check(self.calls)?;
        let place = |rank: usize| rank * size_of::<CallHeader>()..(rank + 1) * size_of::<CallHeader>();
        let bytes = place(world - 1).end;
        let begun = Instant::now();
        self.with(|link| {
            // The thread that calls need not be the one that joined.
            link.gpu.bind()?;
            let lane = &mut link.staging.lanes[0];
            lane.host(bytes)?[place(rank)].copy_from_slice(cast_slice(&own));
            lane.upload(bytes)?;
            link.communicator.gather((rank, world), lane.memory(), WORDS, &link.staging.stream)
        })?;
        self.until(begun, limit, |link| link.communicator.progress())?;
        self.with(|link| link.staging.lanes[0].download(bytes).and_then(|()| link.staging.lanes[0].mark()))?;
        self.until(begun, limit, |link| link.staging.lanes[0].is_done().map(progress))?;
        let mut said = vec![CallHeader::default(); world];
        self.with(|link| {
            cast_slice_mut(&mut said).copy_from_slice(link.staging.lanes[0].host(bytes)?);
            Ok(())
        })?;
        Ok(said)
    }

    /// Sends the numbers through the group in chunks, by two lanes in turn.
    fn transfer(
        &mut self,
        call: CollectiveCall,
        send: Option<SendFrom<'_>>,
        receive: &mut Option<ReceiveInto<'_>>,
    ) -> Result<()> {
        let (number, count) = numbers(call.shape);
        let total = count * number.bytes();
        let mut running: [Option<Chunk>; 2] = [None, None];
        let mut last = Instant::now();
        let chunk = self.with(|link| Ok(link.staging.chunk))?;
        for (index, start) in (0..total).step_by(chunk).enumerate() {
            let next = Chunk { lane: index % 2, bytes: start..(start + chunk).min(total) };
            if let Some(earlier) = running[next.lane].take() {
                self.finish(&earlier, &mut last, receive)?;
            }
            self.begin(call, number, &next, &mut last, (send, receive))?;
            running[index % 2] = Some(next);
        }
        let chunks = total.div_ceil(chunk);
        for lane in [chunks % 2, (chunks + 1) % 2] {
            if let Some(chunk) = running[lane].take() {
                self.finish(&chunk, &mut last, receive)?;
            }
        }
        Ok(())
    }

    /// Gives the stream a chunk: to the GPU, through the group, and back where it is received. What lies on the GPU stays there.
    fn begin(
        &mut self,
        call: CollectiveCall,
        number: Number,
        chunk: &Chunk,
        last: &mut Instant,
        (send, receive): (Option<SendFrom<'_>>, &Option<ReceiveInto<'_>>),
    ) -> Result<()> {
        let (length, silence) = (chunk.bytes.len(), self.member.silence);
        self.with(|link| {
            let lane = &mut link.staging.lanes[chunk.lane];
            if let Some(SendFrom::Host(send)) = send {
                lane.host(length)?.copy_from_slice(&send[chunk.bytes.clone()]);
                lane.upload(length)?;
            }
            let (of_lane, bytes) = (lane.memory(), || chunk.bytes.clone());
            let from = match send {
                Some(SendFrom::Device(numbers)) => DeviceMemory::of(numbers, bytes()),
                _ => of_lane,
            };
            let to = match receive {
                Some(ReceiveInto::Device(numbers)) => DeviceMemory::of(numbers, bytes()),
                _ => of_lane,
            };
            let (operation, places) = match call.what {
                CallKind::AllReduce => (Operation::AllReduce, (from, to)),
                CallKind::Reduce { root } => (Operation::Reduce { root }, (from, to)),
                // Who sends does not receive, and the other way round.
                CallKind::Broadcast { root } => {
                    let at = if send.is_some() { from } else { to };
                    (Operation::Broadcast { root }, (at, at))
                }
            };
            let stream = &link.staging.stream;
            link.communicator.enqueue(operation, places, length / number.bytes(), number, stream)
        })?;
        self.until(*last, silence, |link| link.communicator.progress())?;
        self.with(|link| {
            let lane = &mut link.staging.lanes[chunk.lane];
            if let Some(ReceiveInto::Host(_)) = receive {
                lane.download(length)?;
            }
            lane.mark()
        })
    }

    /// Waits for a chunk, which counts as a sign of life, and takes it where the host receives it.
    fn finish(
        &mut self,
        chunk: &Chunk,
        last: &mut Instant,
        receive: &mut Option<ReceiveInto<'_>>,
    ) -> Result<()> {
        self.until(*last, self.member.silence, |link| {
            link.staging.lanes[chunk.lane].is_done().map(progress)
        })?;
        *last = Instant::now();
        self.with(|link| {
            if let Some(ReceiveInto::Host(receive)) = receive {
                let bytes = chunk.bytes.clone();
                receive[bytes].copy_from_slice(link.staging.lanes[chunk.lane].host(chunk.bytes.len())?);
            }
            Ok(())
        })
    }
}

impl Collective for NcclRank {
    fn member(&self) -> &Member {
        &self.member
    }

    fn gpu(&self) -> Option<usize> {
        Some(self.gpu)
    }

    fn piece(&self) -> usize {
        PIECE
    }

    fn all_reduce(&mut self, send: Values<'_>, mut receive: Buffer<'_>) -> Result<()> {
        let call = CollectiveCall::all_reduce(send, &receive)?;
        self.call(call, Some(outgoing(send)), Some(incoming(&mut receive)))
    }

    fn reduce(&mut self, root: usize, send: Values<'_>, mut receive: Option<Buffer<'_>>) -> Result<()> {
        let call = CollectiveCall::reduce(root, send, receive.as_ref(), self.member.rank, self.member.world)?;
        self.call(call, Some(outgoing(send)), receive.as_mut().map(incoming))
    }

    fn broadcast(&mut self, root: usize, mut buffer: Buffer<'_>) -> Result<()> {
        let call = CollectiveCall::broadcast(root, &buffer, self.member.world)?;
        if root == self.member.rank {
            self.call(call, Some(outgoing(buffer.values())), None)
        } else {
            self.call(call, None, Some(incoming(&mut buffer)))
        }
    }
}

impl Drop for NcclRank {
    fn drop(&mut self) {
        if self.link.is_some() {
            self.end(None);
        }
    }
}

fn over() -> CollectiveError {
    CollectiveError::Transport("the group was left".to_owned())
}

fn numbers(shape: BufferShape) -> (Number, usize) {
    match shape {
        BufferShape::I64(count) => (Number::I64, count),
        BufferShape::F32(count) => (Number::F32, count),
    }
}

fn progress(done: bool) -> Progress {
    if done { Progress::Done } else { Progress::Running }
}

fn outgoing(values: Values<'_>) -> SendFrom<'_> {
    match values {
        Values::I64(values) => SendFrom::Host(cast_slice(values)),
        Values::F32(values) => SendFrom::Host(cast_slice(values)),
        Values::Device(numbers) => SendFrom::Device(numbers),
    }
}

fn incoming<'a>(buffer: &'a mut Buffer<'_>) -> ReceiveInto<'a> {
    match buffer {
        Buffer::I64(values) => ReceiveInto::Host(cast_slice_mut(values)),
        Buffer::F32(values) => ReceiveInto::Host(cast_slice_mut(values)),
        Buffer::Device(numbers) => ReceiveInto::Device(numbers),
    }
}
