//! Groups of processes with a GPU each, over NCCL.
//!
//! Sums of integers are exact, whatever NCCL does. Floats are added in an order that NCCL chooses by the group's size, its links and its
//! settings (`NCCL_*`): the same for the same group, but not that of ranks. NCCL's traffic between hosts is not encrypted.
//!
//! Numbers in the GPU's memory are summed where they lie. Those of the host go there and back, in chunks.
//!
//! Nothing here waits inside NCCL but the thread that leaves a group, which has a limit: NCCL is asked how far it is, while a lost peer,
//! silence and an abort are watched for.

mod departures;
mod ffi;
mod leaving;
mod one_rank;
mod rank;
mod staging;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::newest::NewestEpoch;
use super::{Abort, Alone, Collective, CollectiveError, Member, Rendezvous, Result, Transport};
use departures::Departures;
use ffi::{CallError, Communicator, Gpu, ID};
pub use leaving::OnStuck;
use leaving::{Leaving, Link};
use rank::NcclRank;
use staging::StagingLanes;

/// The rendezvous key of a group's unique id.
const UNIQUE_ID: &str = "unique-id";

/// How a worker uses NCCL.
#[derive(Clone)]
pub struct NcclSettings {
    /// The number of its GPU, as CUDA counts them.
    pub gpu: usize,
    /// Bytes of a call that the GPU works on at a time. Twice as many are taken on the GPU, and of pinned memory.
    pub chunk: usize,
    /// How long NCCL may take to leave a group.
    pub leave: Duration,
    /// Called when it takes longer.
    pub on_stuck: OnStuck,
}

impl NcclSettings {
    /// The defaults for a GPU. A chunk of 16 MiB is long enough that the time to start it, some 50 us, does not count.
    pub fn new(gpu: usize, on_stuck: OnStuck) -> Self {
        Self { gpu, chunk: 16 << 20, leave: Duration::from_secs(20), on_stuck }
    }
}

/// Joins the one worker of this process to groups with others.
pub struct Nccl {
    rendezvous: Arc<dyn Rendezvous>,
    alone: Alone,
    newest: NewestEpoch,
    library: &'static ffi::Nccl,
    gpu: Arc<Gpu>,
    chunk: usize,
    leaving: Arc<Leaving>,
}

impl Nccl {
    /// Whether NCCL is on this machine, in a version that can be used.
    pub fn is_present() -> bool {
        ffi::Nccl::load().is_ok()
    }

    /// A worker that finds its peers by this rendezvous.
    ///
    /// # Errors
    /// When NCCL, the driver or the GPU is missing: a sentence with the remedy.
    pub fn open(rendezvous: Arc<dyn Rendezvous>, settings: NcclSettings) -> Result<Self> {
        let gpu = Arc::new(Gpu::open(settings.gpu).map_err(CollectiveError::Transport)?);
        let library = ffi::Nccl::load().map_err(CollectiveError::Transport)?;
        let version = library.version().map_err(broken)?;
        tracing::info!(version = ffi::in_words(version), gpu = settings.gpu, "NCCL is loaded");
        Ok(Self {
            rendezvous,
            alone: Alone::default(),
            newest: NewestEpoch::default(),
            library,
            gpu,
            // Whole numbers of either type.
            chunk: settings.chunk.next_multiple_of(size_of::<i64>()).max(size_of::<i64>()),
            leaving: Arc::new(Leaving::new(settings.leave, settings.on_stuck)),
        })
    }

    /// Joins a group by NCCL, whatever its size.
    fn form(&self, member: Member, abort: &Abort) -> Result<NcclRank> {
        let begun = Instant::now();
        if !self.leaving.wait() {
            return Err(CollectiveError::Transport("an earlier group is not left yet".to_owned()));
        }
        let departures = Departures::follow(member, self.rendezvous.clone(), abort.clone());
        let departures = departures
            .map_err(|e| CollectiveError::Transport(format!("the system gives no more threads ({e})")))?;
        let begin = || {
            self.gpu.bind().map_err(broken)?;
            let chunk = self.chunk.max(member.world * size_of::<super::call::CallHeader>());
            let staging = StagingLanes::new(self.gpu.clone(), chunk).map_err(broken)?;
            let id = self.unique_id(member, begun, abort)?;
            departures.check(0)?;
            let communicator = Communicator::begin(self.library, id, member.rank, member.world);
            let communicator = communicator.map_err(broken)?;
            Ok(Link { gpu: self.gpu.clone(), communicator, staging, lent: Vec::new() })
        };
        let link = begin().inspect_err(|e: &CollectiveError| departures.announce(None, e.to_string()))?;
        let mut rank = NcclRank::new(member, departures, self.leaving.clone(), link);
        rank.joined(member.form.saturating_sub(begun.elapsed()))?;
        Ok(rank)
    }

    /// The group's unique id: rank 0 makes it, the others wait for it.
    fn unique_id(&self, member: Member, begun: Instant, abort: &Abort) -> Result<[u8; ID]> {
        if member.rank == 0 {
            let id = self.library.unique_id().map_err(broken)?;
            self.rendezvous.put(member.epoch, UNIQUE_ID, id.to_vec())?;
            return Ok(id);
        }
        let left = member.form.saturating_sub(begun.elapsed());
        let id = self.rendezvous.wait(member.epoch, UNIQUE_ID, left, abort)?;
        let id = id.ok_or_else(|| CollectiveError::Timeout { ranks: vec![0], waited: begun.elapsed() })?;
        id.try_into().map_err(|id: Vec<u8>| {
            CollectiveError::Transport(format!("a unique id of NCCL has {ID} bytes, this one {}", id.len()))
        })
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // The process may end next, and the libraries' own exit would meet a group that is still being left.
        self.leaving.wait();
    }
}

impl Transport for Nccl {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        member.check()?;
        self.newest.take(member.epoch)?;
        if member.world == 1 {
            return self.alone.join(member, abort);
        }
        Ok(Box::new(self.form(member, abort)?))
    }
}

fn broken(error: CallError) -> CollectiveError {
    CollectiveError::Transport(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests;
